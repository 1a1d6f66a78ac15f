// The residual chain backward, second launch: sums over rows, the gradients of down, up, scale and shift.
//
// Given v and dz of all blocks, a column of x and g depends on no other column. A block of threads has 64 columns and
// some tiles of 64 rows: it steps both back again, now for its columns alone, and adds to a slice of the sums that is
// its own, in the order of its rows. Per tile of rows it reads x_L, dy and x_0 of its columns, v and dz.
#pragma once

#include "cuda/residual_chain_tiles.h"

namespace fastnest::cuda {

// The rows kernel's shape, narrow: four warps of rows by two of columns.
template <class Product, int kPass>
using WeightsShape = ResidualShape<Product, 1, 2, 1, kPass>;

struct WeightsShared {
  int slot_elements, slots, tile;  // a tile: where the rows' part of a slot begins, behind the weights' part
  int rows, sums, scratch, bytes;  // rows [rows, columns] twice: g and a, rounded

  template <class S>
  static WeightsShared of(const ResidualChain& chain, int most_bytes) {
    WeightsShared shared{};
    const int size = sizeof(typename S::T);
    shared.tile = std::max(S::kDownElements, S::kUpElements);
    shared.slot_elements = shared.tile + S::kRows * S::kUpPitch;
    for (shared.slots = 3; shared.slots >= 2; --shared.slots) {
      shared.rows = shared.slots * shared.slot_elements * size;
      shared.sums = shared.rows + 2 * S::kRows * S::kDownPitch * size;
      shared.scratch = shared.sums + (chain.scale ? 2 * S::kRowGroups * S::kChunk * 4 : 0);
      shared.bytes = shared.scratch + (piecewise_linear(chain.activation) ? 0 : S::kScratch * 4);
      if (shared.bytes <= most_bytes) break;
    }
    return shared;
  }
};

// Copies, for every tile of rows, block and pass, `up` with the features v, then `down` with dz.
template <class S>
class WeightsTiles {
 public:
  using T = typename S::T;
  FASTNEST_DEVICE WeightsTiles(const ResidualChain& chain, const ResidualBackward& io, int tile)
      : chain_(chain),
        io_(io),
        tile_(tile),
        passes_((chain.k + S::kPass - 1) / S::kPass),
        tiles_(chain),
        aligned_(chain.k * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(io.hidden) % 16 == 0 &&
                 reinterpret_cast<uintptr_t>(io.dz) % 16 == 0),
        first_row_(static_cast<int64_t>(blockIdx.y) * S::kRows),
        block_(chain.l - 1),
        down_(block_ >= chain.ups) {}

  FASTNEST_DEVICE void operator()(T* slot) {
    if (first_row_ >= chain_.n) return;
    const int feature = pass_ * S::kPass, column = static_cast<int>(blockIdx.x) * S::kChunk;
    if (down_) tiles_.copy_down(slot, block_, feature, column);
    else tiles_.copy(slot, tiles_.up(block_, column, feature));
    const int layers = chain_.layers();
    const int64_t row = static_cast<int64_t>(chain_.l) * layers * chain_.k;
    const T* const from = static_cast<const T*>(down_ ? io_.dz : io_.hidden) + first_row_ * row +
                          static_cast<int64_t>(block_ * layers + (down_ ? 0 : layers - 1)) * chain_.k + feature;
    const int64_t left = chain_.n - first_row_;
    copy_tile(slot + tile_, S::kUpPitch, S::kRows, S::kPass,
              Part<T>{from, row, left < S::kRows ? static_cast<int>(left) : S::kRows, chain_.k - feature, aligned_});
    if (++pass_ < passes_) return;
    pass_ = 0;
    if (!down_) {
      down_ = true;
      return;
    }
    if (--block_ < 0) {
      block_ = chain_.l - 1;
      first_row_ += static_cast<int64_t>(gridDim.y) * S::kRows;
    }
    down_ = block_ >= chain_.ups;
  }

 private:
  const ResidualChain& chain_;
  const ResidualBackward& io_;
  int tile_, passes_;
  ResidualTiles<S> tiles_;
  bool aligned_;
  int64_t first_row_;
  int block_;
  bool down_;
  int pass_ = 0;
};

// sum [to, of] += a^T b, both [kRows, ...] in shared memory, `to` the first kTo columns of a and `of` the first kOf of
// b: the warps share tiles of 16 by 16.
template <class S, int kTo, int kOf>
FASTNEST_DEVICE void add_outer(float* sum, int64_t stride, int to_there, int of_there, const typename S::T* a,
                               int a_pitch, const typename S::T* b, int b_pitch) {
  using P = typename S::Product;
  const int thread = forgotten(static_cast<int>(threadIdx.x));
  const Lane lane = lane_of(thread);
#pragma unroll 1
  for (int tile = thread / 32; tile < kTo / 16 * (kOf / 16); tile += S::kWarps) {
    const int to = tile / (kOf / 16) * 16, of = tile % (kOf / 16) * 16;
    float d[2][4] = {};
#pragma unroll
    for (int row = 0; row < S::kRows; row += P::kDepth) {
      typename P::B right[2];
      P::load_b_transposed(right, b + row * b_pitch + of, b_pitch, lane);
      const auto left = P::load_a_transposed(a + row * a_pitch + to, a_pitch, lane);
      P::add(d[0], left, right[0]);
      P::add(d[1], left, right[1]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = to + lane.g + e / 2 * 8, k = of + j * 8 + 2 * lane.t + e % 2;
        if (i < to_there && k < of_there) add_in_place(sum + i * stride + k, d[j][e]);
      }
  }
}

// v of a slot's rows where memory keeps what the activation is taken of.
template <class S>
FASTNEST_DEVICE void activate_rows(Activation activation, typename S::T* rows) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < S::kRows * S::kPass; i += S::kThreads) {
    auto* const at = rows + i / S::kPass * S::kUpPitch + i % S::kPass;
    *at = from_float<typename S::T>(activated(activation, to_float(*at)));
  }
}

// Rounded, to shared memory [rows, columns]; rows behind the last are 0, as they may have a shift, and an infinite one.
template <class S>
FASTNEST_DEVICE void store_rows(const Place<S>& place, Chunk<S>& values, typename S::T* to, int64_t left) {
  for_pairs<S>(place, 0, values, [&](int row, int column, float& first, float& second) {
    to[row * S::kDownPitch + column] = from_float<typename S::T>(row < left ? first : 0.0f);
    to[row * S::kDownPitch + column + 1] = from_float<typename S::T>(row < left ? second : 0.0f);
  });
}

// Adds the sums over the tile's rows of du x and du to dscale and dshift of the block's columns.
template <class S>
FASTNEST_DEVICE void add_affine_sums(const Place<S>& place, Chunk<S>& du, const Chunk<S>& x, float* sums, float* dscale,
                                     float* dshift, int columns, int64_t left) {
  for_pairs<S>(place, 0, du, [&](int row, int, float& first, float& second) {
    if (row >= left) first = second = 0;  // whatever f' is there
  });
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float of_scale = du[0][j][e] * x[0][j][e] + du[0][j][2 + e] * x[0][j][2 + e];
      float of_shift = du[0][j][e] + du[0][j][2 + e];
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        of_scale += __shfl_xor_sync(0xffffffffu, of_scale, lanes);
        of_shift += __shfl_xor_sync(0xffffffffu, of_shift, lanes);
      }
      if (place.lane.g == 0) {
        sums[place.group * S::kChunk + place.column(0, j) + e] = of_scale;
        sums[(S::kRowGroups + place.group) * S::kChunk + place.column(0, j) + e] = of_shift;
      }
    }
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (column >= columns || column >= S::kChunk) return;
  float of_scale = 0, of_shift = 0;
  for (int group = 0; group < S::kRowGroups; ++group) {
    of_scale += sums[group * S::kChunk + column];
    of_shift += sums[(S::kRowGroups + group) * S::kChunk + column];
  }
  add_in_place(dscale + column, of_scale);
  add_in_place(dshift + column, of_shift);
}

// a = f(scale x + shift) of a chunk, given its tile of `down`.
template <class S>
FASTNEST_DEVICE void activate_chunk(const Place<S>& place, const ResidualChain& chain, Chunk<S>& a, const Chunk<S>& x,
                                    const typename S::T* down, float* scratch) {
#pragma unroll
  for (int j = 0; j < 4; j += S::kStepTiles) {
    Step<S> step;
    apply_affine<S>(place, chain, step, x, j, down);
    activate<S::kStep>(chain.before(), &step[0][0][0], scratch);
    put_step<S>(a, step, j);
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    residual_weights_kernel(const ResidualChain chain, const ResidualBackward io, const WeightsShared layout) {
  using T = typename S::T;
  using Here = Place<S>;
  FASTNEST_SHARED(shared);
  T* const g_rows = reinterpret_cast<T*>(shared + layout.rows);
  T* const a_rows = g_rows + S::kRows * S::kDownPitch;
  auto* const sums = reinterpret_cast<float*>(shared + layout.sums);
  auto* const scratch = reinterpret_cast<float*>(shared + layout.scratch);
  const int m = chain.m, k = chain.k, passes = (k + S::kPass - 1) / S::kPass;
  const int first_column = static_cast<int>(blockIdx.x) * S::kChunk, columns = m - first_column;
  const int64_t block_size = static_cast<int64_t>(m) * k;
  float* const ddown = io.ddown + blockIdx.y * chain.l * block_size + first_column;
  float* const dup = io.dup + blockIdx.y * chain.ups * block_size + static_cast<int64_t>(first_column) * k;
  const int64_t of_affine = static_cast<int64_t>(blockIdx.y) * chain.l * m + first_column;
  Ring<T, WeightsTiles<S>> ring(reinterpret_cast<T*>(shared), layout.slot_elements, layout.slots,
                                WeightsTiles<S>(chain, io, layout.tile));
  const auto here = [&](int64_t first_row) {
    Here place(1);
    place.first_row = first_row;
    place.first_column = first_column;
    return place;
  };
  for (int64_t first_row = static_cast<int64_t>(blockIdx.y) * S::kRows; first_row < chain.n;
       first_row += static_cast<int64_t>(gridDim.y) * S::kRows) {
    Stream<S> x, g = {};
    load_stream<S>(here(first_row), x, io.stream, m, chain.n, m);
    if (io.dy) load_stream<S>(here(first_row), g, static_cast<const T*>(io.dy), io.dy_stride, chain.n, m);
    for (int block = chain.l - 1; block >= 0; --block) {
      if (block < chain.ups) {
        store_rows<S>(here(first_row), g[0], g_rows, chain.n - first_row);
        for (int pass = 0; pass < passes; ++pass) {
          T* const up = ring.next();
          T* const v = up + layout.tile;
          if (!idempotent(chain.activation)) {
            activate_rows<S>(chain.activation, v);
            __syncthreads();
          }
          add_features<S, false, true>(here(first_row), x[0], v, S::kUpPitch, up, S::kUpPitch);
          add_outer<S, S::kChunk, S::kPass>(dup + block * block_size + pass * S::kPass, k, columns, k - pass * S::kPass,
                                            g_rows, S::kDownPitch, v, S::kUpPitch);
        }
      }
      if (block == 0) load_stream<S>(here(first_row), x, static_cast<const T*>(io.x), io.x_stride, chain.n, m);
      Chunk<S> du = {};
      const T* down = nullptr;
      for (int pass = 0; pass < passes; ++pass) {
        down = ring.next();
        const T* const dz = down + layout.tile;
        if (pass == 0) {
          Chunk<S> a;
          activate_chunk<S>(here(first_row), chain, a, x[0], down, scratch);
          store_rows<S>(here(first_row), a, a_rows, chain.n - first_row);
          __syncthreads();
        }
        add_features<S, true>(here(first_row), du, dz, S::kUpPitch, down, S::kDownPitch);
        add_outer<S, S::kPass, S::kChunk>(ddown + block * block_size + static_cast<int64_t>(pass) * S::kPass * m, m,
                                          k - pass * S::kPass, columns, dz, S::kUpPitch, a_rows, S::kDownPitch);
      }
      through_activation<S>(here(first_row), chain, du, x[0], down, scratch);
      if (chain.scale)
        add_affine_sums<S>(here(first_row), du, x[0], sums, io.dscale + of_affine + static_cast<int64_t>(block) * m,
                           io.dshift + of_affine + static_cast<int64_t>(block) * m, columns, chain.n - first_row);
      add_scaled<S>(here(first_row), chain, g[0], du, down);
    }
  }
  ring.finish();
}

}  // namespace fastnest::cuda
