// The dense chain backward, from the last chunk of columns to the first and in each from the last block to the first: a
// block's product dz W is added to the chunk's gradient, in registers in float32, until the block's own growth is
// whole. A tile of rows reads dy and y once and writes dz (and dz_hidden) and dx once: with r outputs of a block's
// first linear map, n (2 m_L + m + sum of d and h) e bytes. What a chunk has from later blocks' dz comes back through
// L2 with the weights, r x 64 rows (or 16) for r x 128 weights, so that m_L has no limit. No sum is split between
// warps.
//
// With scale and shift the product passes through shared memory, where sums over the tile's rows of their gradients are
// taken; they go to slices, one for each block of threads, which then shares out tiles.
#pragma once

#include "cuda/dense_chain_forward.h"

namespace fastnest::cuda {

template <class S>
constexpr int kSlot = S::kPass * pitch_of(S::kChunk) + S::kRows * pitch_of(S::kPass);  // of weights, and of dz

// What is in a block's shared memory, in bytes: the ring, a chunk in float32, one of x, sums of its columns, and a
// growth's dz and dz_hidden.
struct DenseBackwardShared {
  int slots, dz_pitch, hidden_pitch;
  int sums, x, columns, dz, hidden, bytes;

  template <class S>
  static DenseBackwardShared of(const DenseChain& chain, int most_bytes) {
    DenseBackwardShared shared{};
    const int size = sizeof(typename S::T);
    int d = 0, h = 0;
    for (int i = 0; i < chain.blocks; ++i) {
      d = d < chain.block[i].d ? chain.block[i].d : d;
      h = h < chain.block[i].h ? chain.block[i].h : h;
    }
    shared.dz_pitch = pitch_of(passes_of(d, S::kPass) * S::kPass);
    shared.hidden_pitch = pitch_of(passes_of(h, S::kPass) * S::kPass);
    for (shared.slots = 4; shared.slots >= 2; --shared.slots) {
      shared.sums = shared.slots * kSlot<S> * size;
      shared.x = shared.sums + S::kRows * pitch_of(S::kChunk) * 4;
      shared.columns = shared.x + chain.affine * S::kRows * pitch_of(S::kChunk) * size;
      shared.dz = shared.columns + chain.affine * 2 * S::kThreads * 4;
      shared.hidden = shared.dz + S::kRows * shared.dz_pitch * size;
      shared.bytes = shared.hidden + (h ? S::kRows * shared.hidden_pitch * size : 0);
      if (shared.bytes <= most_bytes) break;
    }
    return shared;
  }
};

// Copies the tiles of one chunk of columns in the order that the backward reads them: features [kPass, kChunk] of the
// weights, and behind them dz [rows, kPass] if it is of an earlier chunk.
template <class S>
class DenseBackwardTiles {
 public:
  using T = typename S::T;
  FASTNEST_DEVICE DenseBackwardTiles(const DenseChain& chain, const DenseBackward& io, int64_t first_row, int begin)
      : chain_(chain), io_(io), first_row_(first_row), begin_(begin), block_(chain.blocks - 1) {
    settle();
  }

  FASTNEST_DEVICE void operator()(T* slot) {
    if (block_ < 0) return;
    const DenseBlock& block = chain_.block[block_];
    const bool first = !through_hidden_;  // of the block's linear maps
    const DenseLinear linear(block, first);
    const int feature = pass_ * S::kPass, column = first ? begin_ : column_;
    const bool aligned = linear.columns * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(linear.weight) % 16 == 0;
    const T* const from =
        static_cast<const T*>(linear.weight) + static_cast<int64_t>(feature) * linear.columns + column;
    copy_tile(slot, pitch_of(S::kChunk), S::kPass, S::kChunk,
              Part<T>{from, linear.columns, linear.features - feature, linear.columns - column, aligned});
    if (first && block.m >= begin_ + S::kChunk) copy_dz(slot + S::kPass * pitch_of(S::kChunk), block, feature);
    if (++pass_ < passes_of(linear.features, S::kPass)) return;
    pass_ = 0;
    if (!first && (column_ += S::kChunk) < block.h) return;
    column_ = 0;
    if (first) --block_, through_hidden_ = true;
    else through_hidden_ = false;
    settle();
  }

 private:
  // On to the next product that there is.
  FASTNEST_DEVICE void settle() {
    for (; block_ >= 0; --block_, through_hidden_ = true) {
      const DenseBlock& block = chain_.block[block_];
      if (through_hidden_ && block.h && block.m >= begin_ && block.m < begin_ + S::kChunk) return;
      through_hidden_ = false;
      if (block.m > begin_) return;
    }
  }
  FASTNEST_DEVICE void copy_dz(T* slot, const DenseBlock& block, int feature) const {
    const int64_t stride = block.h ? chain_.hidden : chain_.width - chain_.in;
    const T* const dz = static_cast<const T*>(block.h ? io_.dz_hidden : io_.dz) + first_row_ * stride +
                        (block.h ? block.hidden_before : block.m - chain_.in) + feature;
    const bool aligned = reinterpret_cast<uintptr_t>(dz) % 16 == 0 && stride * sizeof(T) % 16 == 0;
    const int rows = static_cast<int>(min(static_cast<int64_t>(S::kRows), chain_.n - first_row_));
    copy_tile(slot, pitch_of(S::kPass), S::kRows, S::kPass, Part<T>{dz, stride, rows, block.wide() - feature, aligned});
  }

  const DenseChain& chain_;
  const DenseBackward& io_;
  int64_t first_row_;
  int begin_, block_, pass_ = 0, column_ = 0;
  bool through_hidden_ = true;
};

// A chunk in registers to and from its place in shared memory, [rows, kChunk].
template <class S>
FASTNEST_DEVICE void put_chunk(Chunk<S>& values, float* sums) {
  for_pairs<S>(Place<S>(1), 0, values, [&](int row, int column, float& first, float& second) {
    *reinterpret_cast<float2*>(sums + row * pitch_of(S::kChunk) + column) = make_float2(first, second);
  });
}
template <class S>
FASTNEST_DEVICE void add_chunk(Chunk<S>& values, const float* sums) {
  for_pairs<S>(Place<S>(1), 0, values, [&](int row, int column, float& first, float& second) {
    const float2 pair = *reinterpret_cast<const float2*>(sums + row * pitch_of(S::kChunk) + column);
    first += pair.x, second += pair.y;
  });
}

// The rows of a block of threads' tile, and where gradients of them are.
template <class S>
struct DenseRows {
  using T = typename S::T;
  const DenseChain& chain;
  const DenseBackward& io;
  int64_t first_row;
  float* sums;

  FASTNEST_DEVICE bool there(int row) const { return first_row + row < chain.n; }

  // function(row, column) for rows of the tile and columns from `begin` to `end`, shared out among the threads.
  template <class Function>
  FASTNEST_DEVICE void each(int begin, int end, const Function& function) const {
    const int columns = end - begin;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < S::kRows * columns; i += S::kThreads)
      function(i / columns, begin + i % columns);
  }

  // The whole gradient of x's or a growth's column, given that of the chunk which begins at `begin` by later blocks.
  FASTNEST_DEVICE float gradient(int row, int begin, int column) const {
    float g = sums[row * pitch_of(S::kChunk) + column - begin];
    const int64_t at = first_row + row;
    if (chain.pre_activation && !chain.affine)  // of every block alike
      g = activated_backward(chain.activation, g, to_float(static_cast<const T*>(io.y)[at * chain.width + column]));
    const int64_t of_dy = at * io.dy_stride + column;
    return g +
           (io.dy_is_float ? static_cast<const float*>(io.dy)[of_dy] : to_float(static_cast<const T*>(io.dy)[of_dy]));
  }

  FASTNEST_DEVICE void write_dx(int begin, int end) const {
    each(begin, end, [&](int row, int column) {
      if (!there(row)) return;
      const float g = gradient(row, begin, column);
      const int64_t at = (first_row + row) * chain.begin() + column;
      if (io.dx_is_float) static_cast<float*>(io.dx)[at] = g;
      else static_cast<T*>(io.dx)[at] = from_float<T>(g);
    });
  }

  // dz of the columns of a growth that are in the chunk, here and in memory.
  FASTNEST_DEVICE void write_dz(const DenseBlock& block, int begin, T* dz, int pitch) const {
    const int end = min(begin + S::kChunk, block.m + block.d);
    each(max(begin, block.m), end, [&](int row, int column) {
      float g = 0;
      if (there(row)) {
        const int64_t at = first_row + row;
        g = gradient(row, begin, column);
        if (!chain.pre_activation) {
          const T* const z = chain.keeps_growth() ? static_cast<const T*>(io.hidden) + at * chain.kept() +
                                                        chain.kept_before(block) + block.h + column - block.m
                                                  : static_cast<const T*>(io.y) + at * chain.width + column;
          g = activated_backward(chain.activation, g, to_float(*z));
        }
        static_cast<T*>(io.dz)[at * (chain.width - chain.in) + column - chain.in] = from_float<T>(g);
      }
      dz[row * pitch + column - block.m] = from_float<T>(g);
    });
  }

  // dz of as many hidden features from `first` on, here and in memory.
  FASTNEST_DEVICE void write_dz_hidden(const DenseBlock& block, int first, T* dz, int pitch) const {
    each(first, min(first + S::kChunk, block.h), [&](int row, int feature) {
      float g = 0;
      if (there(row)) {
        const int64_t at = first_row + row;
        const T z = static_cast<const T*>(io.hidden)[at * chain.kept() + chain.kept_before(block) + feature];
        g = activated_backward(chain.activation, sums[row * pitch_of(S::kChunk) + feature - first], to_float(z));
        static_cast<T*>(io.dz_hidden)[at * chain.hidden + block.hidden_before + feature] = from_float<T>(g);
      }
      dz[row * pitch + feature] = from_float<T>(g);
    });
  }

  // Features that a product reads behind the last.
  FASTNEST_DEVICE void clear_behind(int features, T* dz, int pitch) const {
    each(features, passes_of(features, S::kPass) * S::kPass,
         [&](int row, int feature) { dz[row * pitch + feature] = T{}; });
  }

  // Through f(scale x + shift) in place; sums over the rows of scale's and shift's gradients. Two barriers.
  FASTNEST_DEVICE void through_affine(const DenseBlock& block, int begin, const T* x, float* columns) const {
    __syncthreads();
    const int thread = static_cast<int>(threadIdx.x), in_chunk = thread % S::kChunk, column = begin + in_chunk;
    float dscale = 0, dshift = 0;
    if (column < block.m) {
      const float scale = to_float(static_cast<const T*>(block.scale)[column]);
      const float shift = to_float(static_cast<const T*>(block.shift)[column]);
#pragma unroll 1
      for (int row = thread / S::kChunk; row < S::kRows && there(row); row += S::kThreads / S::kChunk) {
        float& du = sums[row * pitch_of(S::kChunk) + in_chunk];
        const float value = to_float(x[row * pitch_of(S::kChunk) + in_chunk]);
        const float d = activated_backward(chain.before(), du, value * scale + shift);
        dscale += d * value, dshift += d;
        du = d * scale;
      }
    }
    columns[2 * thread] = dscale, columns[2 * thread + 1] = dshift;
    __syncthreads();
    if (thread >= S::kChunk || column >= block.m) return;
    for (int other = thread + S::kChunk; other < S::kThreads; other += S::kChunk)
      dscale += columns[2 * other], dshift += columns[2 * other + 1];
    float* const slice = io.daffine + blockIdx.x * 2 * io.affine_columns + block.columns_before + column;
    add_in_place(slice, dscale);
    add_in_place(slice + io.affine_columns, dshift);
  }
};

// One chunk of columns, from the last block to the first.
template <class S>
FASTNEST_DEVICE void backward_chunk(const DenseRows<S>& rows, int begin, const DenseBackwardShared& layout,
                                    unsigned char* shared) {
  using T = typename S::T;
  const DenseChain& chain = rows.chain;
  T* const x = reinterpret_cast<T*>(shared + layout.x);
  T* const dz = reinterpret_cast<T*>(shared + layout.dz);
  T* const hidden = reinterpret_cast<T*>(shared + layout.hidden);
  constexpr int kPitch = pitch_of(S::kChunk);
  const int end = begin + S::kChunk;
  if (chain.affine) {  // arrives with the ring's first tile
    const T* const y = static_cast<const T*>(rows.io.y) + rows.first_row * chain.width + begin;
    const bool aligned = reinterpret_cast<uintptr_t>(rows.io.y) % 16 == 0 && chain.width * sizeof(T) % 16 == 0;
    const int there = static_cast<int>(min(static_cast<int64_t>(S::kRows), chain.n - rows.first_row));
    copy_tile(x, kPitch, S::kRows, S::kChunk, Part<T>{y, chain.width, there, chain.end() - begin, aligned});
    commit_copies();
  }
  Ring<T, DenseBackwardTiles<S>> ring(reinterpret_cast<T*>(shared), kSlot<S>, layout.slots,
                                      DenseBackwardTiles<S>(chain, rows.io, rows.first_row, begin));
  Chunk<S> total = {};
#pragma unroll 1
  for (int i = chain.blocks - 1; i >= 0 && chain.block[i].m + chain.block[i].d > begin; --i) {
    const DenseBlock& block = chain.block[i];
    if (block.m < end) {
      put_chunk<S>(total, rows.sums);
      __syncthreads();
      rows.write_dz(block, begin, dz, layout.dz_pitch);
      if (block.m < begin) break;  // the rest of it, and all before, are of other chunks
      rows.clear_behind(block.d, dz, layout.dz_pitch);
      __syncthreads();
    }
    // dz_hidden, where it is not there yet; then what the block makes of the chunk.
    int column = block.h && block.m < end ? 0 : block.h;
#pragma unroll 1
    while (column < block.h || block.m > begin) {
      const bool is_hidden = column < block.h;
      const int features = is_hidden ? block.d : block.wide();
      const bool here = block.m < end;
      const T* const from = is_hidden || !block.h ? dz : hidden;
      const int pitch = !here ? pitch_of(S::kPass) : is_hidden || !block.h ? layout.dz_pitch : layout.hidden_pitch;
      Chunk<S> product = {};
#pragma unroll 1
      for (int feature = 0; feature < features; feature += S::kPass) {
        const T* const weight = ring.next();
        add_features<S, true>(Place<S>(1), product, here ? from + feature : weight + S::kPass * kPitch, pitch, weight,
                              kPitch);
      }
      if (is_hidden || chain.affine) put_chunk<S>(product, rows.sums);
      if (is_hidden) {
        __syncthreads();
        rows.write_dz_hidden(block, column, hidden, layout.hidden_pitch);
        column += S::kChunk;
        if (column >= block.h) rows.clear_behind(block.h, hidden, layout.hidden_pitch);
        __syncthreads();
        continue;
      }
      if (chain.affine) {
        rows.through_affine(block, begin, x, reinterpret_cast<float*>(shared + layout.columns));
        add_chunk<S>(total, rows.sums);
        __syncthreads();
      } else {
#pragma unroll
        for (int tile = 0; tile < S::kTiles; ++tile)
#pragma unroll
          for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) total[tile][j][e] += product[tile][j][e];
      }
      break;
    }
  }
  if (begin < chain.begin()) {
    put_chunk<S>(total, rows.sums);
    __syncthreads();
    rows.write_dx(begin, min(end, chain.begin()));
  }
  ring.finish();
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    dense_backward_kernel(const __grid_constant__ DenseChain chain, const __grid_constant__ DenseBackward io,
                          const DenseBackwardShared layout) {
  FASTNEST_SHARED(shared);
  const int64_t tiles = (chain.n + S::kRows - 1) / S::kRows;
#pragma unroll 1
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const DenseRows<S> rows{chain, io, tile * S::kRows, reinterpret_cast<float*>(shared + layout.sums)};
#pragma unroll 1
    for (int begin = (chain.end() - 1) / S::kChunk * S::kChunk; begin >= 0; begin -= S::kChunk) {
      backward_chunk<S>(rows, begin, layout, shared);
      __syncthreads();
    }
  }
}

}  // namespace fastnest::cuda
