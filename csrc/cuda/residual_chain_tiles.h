// The residual chain's tiles: how a block's warps share rows and columns, and what both directions do with them.
//
// A block has a tile of rows, and its stream stays in registers through all blocks of the chain, in float32, as the
// tensor cores' d: each warp has kTiles x 16 rows and, of every chunk of columns, 32. As a of the next product it needs
// no way through shared memory, which only the weights pass (ring.h), once a block of rows.
#pragma once

#include <algorithm>

#include "cuda/activation.h"
#include "cuda/mma.h"
#include "cuda/residual_chain.h"
#include "cuda/ring.h"

namespace fastnest::cuda {

template <class Product_, int kTiles_, int kColumnWarps_, int kChunks_, int kPass_>
struct ResidualShape {
  using Product = Product_;
  using T = typename Product::Element;
  static constexpr int kTiles = kTiles_, kColumnWarps = kColumnWarps_, kChunks = kChunks_;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kRowGroups = kWarps / kColumnWarps;
  static constexpr int kRows = kRowGroups * kTiles * 16;
  static constexpr int kChunk = kColumnWarps * 32;
  static constexpr int kColumns = kChunks * kChunk;
  static constexpr int kPass = kPass_;  // features at a time
  static constexpr int kOwners = kColumnWarps < kPass / 8 ? kColumnWarps : kPass / 8;
  static constexpr int kOwn = kPass / 8 / kOwners;  // tiles of features that each of a row group's owners completes
  static constexpr int kDownPitch = pitch_of(kChunk), kUpPitch = pitch_of(kPass);
  // Behind a tile of `down`, scale and shift of its columns.
  static constexpr int kDownElements = kPass * kDownPitch + 2 * kChunk, kUpElements = kChunk * kUpPitch;
  static constexpr int kPartials = (kColumnWarps - 1) * kRows * kPass;  // floats
  static constexpr int kSums = kRows * kPass;                           // floats, of each of two turns
  static constexpr int kStepTiles = Product::kDepth / 8, kStep = kTiles * kStepTiles * 4;  // as a product is deep
  static constexpr int kScratch = std::max({kStep, kTiles * kOwn * 4, 16}) * kThreads;     // floats
};

// What is in a block's shared memory, in bytes: the ring, sums on their way between warps and between blocks, features,
// of which there are several buffers [rows, k], and scratch of the activation.
struct ResidualShared {
  int slot_elements, slots, features_pitch;
  int partials, sums, features, scratch, bytes;

  template <class S>
  static ResidualShared of(const ResidualChain& chain, int buffers, int cluster, int most_bytes) {
    ResidualShared shared{};
    const int wide = (chain.k + S::kPass - 1) / S::kPass * S::kPass, size = sizeof(typename S::T);
    const int mid = chain.mid ? std::max(S::kPass * pitch_of(wide), wide * S::kUpPitch) : 0;
    shared.slot_elements = std::max({S::kDownElements, S::kUpElements, mid});
    shared.features_pitch = pitch_of(wide);
    for (shared.slots = 4; shared.slots >= 2; --shared.slots) {
      shared.partials = shared.slots * shared.slot_elements * size;
      shared.sums = shared.partials + S::kPartials * 4;
      shared.features = shared.sums + (cluster > 1 ? 2 * S::kSums * 4 : 0);
      shared.scratch = shared.features + buffers * S::kRows * shared.features_pitch * size;
      shared.bytes = shared.scratch + (piecewise_linear(chain.activation) ? 0 : S::kScratch * 4);
      if (shared.bytes <= most_bytes) break;
    }
    return shared;
  }
};

// The tiles of the weights, as both directions copy them.
template <class S>
class ResidualTiles {
 public:
  using T = typename S::T;
  struct Tile {
    Part<T> part;
    int pitch, rows, columns;
  };

  FASTNEST_DEVICE explicit ResidualTiles(const ResidualChain& chain)
      : chain_(chain),
        wide_(chain.m * sizeof(T) % 16 == 0 && aligned(chain.down) && aligned(chain.scale) && aligned(chain.shift)),
        narrow_(chain.k * sizeof(T) % 16 == 0 && aligned(chain.mid) && aligned(chain.up)) {}

  FASTNEST_DEVICE void copy(T* slot, const Tile& tile) const {
    copy_tile(slot, tile.pitch, tile.rows, tile.columns, tile.part);
  }
  // [kPass, kChunk] of down, and behind it scale and shift.
  FASTNEST_DEVICE void copy_down(T* slot, int block, int feature, int column) const {
    const int m = chain_.m, k = chain_.k;
    const T* const down = static_cast<const T*>(chain_.down) + (static_cast<int64_t>(block) * k + feature) * m + column;
    copy(slot, {{down, m, k - feature, m - column, wide_}, S::kDownPitch, S::kPass, S::kChunk});
    if (!chain_.scale) return;
    const int64_t at = static_cast<int64_t>(block) * m + column;
    const T* const scale = static_cast<const T*>(chain_.scale) + at;
    const int64_t between = static_cast<const T*>(chain_.shift) - static_cast<const T*>(chain_.scale);
    copy(slot + S::kPass * S::kDownPitch, {{scale, between, 2, m - column, wide_}, S::kChunk, 2, S::kChunk});
  }
  // [kPass, wide] of mid, or transposed [wide, kPass].
  FASTNEST_DEVICE Tile mid(int block, int feature, int wide) const {
    const int k = chain_.k;
    const T* const mid = static_cast<const T*>(chain_.mid) + (static_cast<int64_t>(block) * k + feature) * k;
    return {{mid, k, k - feature, k, narrow_}, pitch_of(wide), S::kPass, wide};
  }
  FASTNEST_DEVICE Tile mid_transposed(int block, int feature, int wide) const {
    const int k = chain_.k;
    const T* const mid = static_cast<const T*>(chain_.mid) + static_cast<int64_t>(block) * k * k + feature;
    return {{mid, k, k, k - feature, narrow_}, S::kUpPitch, wide, S::kPass};
  }
  // [kChunk, kPass] of up.
  FASTNEST_DEVICE Tile up(int block, int column, int feature) const {
    const int m = chain_.m, k = chain_.k;
    const T* const up = static_cast<const T*>(chain_.up) + (static_cast<int64_t>(block) * m + column) * k + feature;
    return {{up, k, m - column, k - feature, narrow_}, S::kUpPitch, S::kChunk, S::kPass};
  }

 private:
  static FASTNEST_DEVICE bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
  const ResidualChain& chain_;
  bool wide_, narrow_;
};

// Where a thread is.
template <class S>
struct Place {
  Lane lane;
  int group, warp;  // of rows, and of a group's columns
  int rank, cluster;
  int64_t first_row;
  int first_column;  // of the block

  FASTNEST_DEVICE explicit Place(int blocks_in_cluster) {
    const int thread = forgotten(static_cast<int>(threadIdx.x));
    lane = lane_of(thread);
    group = thread / 32 / S::kColumnWarps, warp = thread / 32 % S::kColumnWarps;
    cluster = blocks_in_cluster;
    rank = cluster > 1 ? cluster_rank() : 0;
    first_row = static_cast<int64_t>(blockIdx.x) / cluster * S::kRows;
    first_column = rank * S::kColumns;
  }
  // Of a thread's first element of a tile, in the block: the second is the next column, the others 8 rows below.
  FASTNEST_DEVICE int row(int tile) const { return (group * S::kTiles + tile) * 16 + lane.g; }
  FASTNEST_DEVICE int column(int chunk, int j) const { return chunk * S::kChunk + warp * 32 + j * 8 + 2 * lane.t; }
};

template <class S>
using Chunk = float[S::kTiles][4][4];  // of the stream, or its gradient: rows, 4 tiles of columns, a lane's elements
template <class S>
using Stream = Chunk<S>[S::kChunks];
template <class S>
using Features = float[S::kTiles][S::kPass / 8][4];
template <class S>
using OwnFeatures = float[S::kTiles * S::kOwn * 4];

// Two neighbours in memory as float: of a row's columns [0, columns).
template <class T>
FASTNEST_DEVICE float2 load_pair(const T* row, int column, int columns) {
  return make_float2(column < columns ? to_float(row[column]) : 0.0f,
                     column + 1 < columns ? to_float(row[column + 1]) : 0.0f);
}
template <class T>
FASTNEST_DEVICE void store_pair(T* row, int column, int columns, float first, float second) {
  if (column < columns) row[column] = from_float<T>(first);
  if (column + 1 < columns) row[column + 1] = from_float<T>(second);
}

// function(row, column, first, second) for every pair that the thread has of a chunk: row and column in the block.
template <class S, class Function>
FASTNEST_DEVICE void for_pairs(const Place<S>& place, int chunk, Chunk<S>& values, const Function& function) {
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        function(place.row(tile) + half * 8, place.column(chunk, j), values[tile][j][2 * half],
                 values[tile][j][2 * half + 1]);
}

template <class S, class T>
FASTNEST_DEVICE void load_stream(const Place<S>& place, Stream<S>& values, const T* x, int64_t stride, int64_t n,
                                 int m) {
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c)
    for_pairs<S>(place, c, values[c], [&](int row, int column, float& first, float& second) {
      float2 pair = make_float2(0, 0);
      if (place.first_row + row < n)
        pair = load_pair(x + (place.first_row + row) * stride, place.first_column + column, m);
      first = pair.x, second = pair.y;
    });
}

template <class S, class T>
FASTNEST_DEVICE void store_stream(const Place<S>& place, Stream<S>& values, T* y, int64_t n, int m) {
#pragma unroll
  for (int c = 0; c < S::kChunks; ++c)
    for_pairs<S>(place, c, values[c], [&](int row, int column, float& first, float& second) {
      if (place.first_row + row < n)
        store_pair(y + (place.first_row + row) * m, place.first_column + column, m, first, second);
    });
}

// Columns behind the last are 0 again, whatever infinite features made of them.
template <class S>
FASTNEST_DEVICE void clear_behind(const Place<S>& place, int chunk, Chunk<S>& values, int m) {
  if (place.first_column + (chunk + 1) * S::kChunk <= m) return;
  for_pairs<S>(place, chunk, values, [&](int, int column, float& first, float& second) {
    if (place.first_column + column >= m) first = 0;
    if (place.first_column + column + 1 >= m) second = 0;
  });
}

// As many columns as a product is deep, of all a warp's rows.
template <class S>
using Step = float[S::kTiles][S::kStepTiles][4];

// u = scale x + shift for the step of a chunk that begins at tile j, given the tile of `down` behind which they are.
template <class S>
FASTNEST_DEVICE void apply_affine(const Place<S>& place, const ResidualChain& chain, Step<S>& u, const Chunk<S>& x,
                                  int first, const typename S::T* down) {
  const auto* const scale = down + S::kPass * S::kDownPitch;
#pragma unroll
  for (int j = 0; j < S::kStepTiles; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = place.column(0, first + j) + e % 2;
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) {
        u[tile][j][e] = x[tile][first + j][e];
        if (chain.scale) u[tile][j][e] = u[tile][j][e] * to_float(scale[column]) + to_float(scale[S::kChunk + column]);
      }
    }
}

// values of the step that begins at tile j, as they are, or back.
template <class S>
FASTNEST_DEVICE void take_step(Step<S>& step, const Chunk<S>& values, int j) {
#pragma unroll
  for (int i = 0; i < S::kTiles * S::kStepTiles * 4; ++i)
    step[i / 4 / S::kStepTiles][i / 4 % S::kStepTiles][i % 4] =
        values[i / 4 / S::kStepTiles][j + i / 4 % S::kStepTiles][i % 4];
}
template <class S>
FASTNEST_DEVICE void put_step(Chunk<S>& values, const Step<S>& step, int j) {
#pragma unroll
  for (int i = 0; i < S::kTiles * S::kStepTiles * 4; ++i)
    values[i / 4 / S::kStepTiles][j + i / 4 % S::kStepTiles][i % 4] =
        step[i / 4 / S::kStepTiles][i / 4 % S::kStepTiles][i % 4];
}

// du <- f'(scale x + shift) du of a chunk, given its tile of `down`.
template <class S>
FASTNEST_DEVICE void through_activation(const Place<S>& place, const ResidualChain& chain, Chunk<S>& du,
                                        const Chunk<S>& x, const typename S::T* down, float* scratch) {
#pragma unroll
  for (int j = 0; j < 4; j += S::kStepTiles) {
    Step<S> u, d;
    apply_affine<S>(place, chain, u, x, j, down);
    take_step<S>(d, du, j);
    activate_backward<S::kStep>(chain.before(), &d[0][0][0], &u[0][0][0], scratch);
    put_step<S>(du, d, j);
  }
}

// g += scale du of a chunk, given its tile of `down`.
template <class S>
FASTNEST_DEVICE void add_scaled(const Place<S>& place, const ResidualChain& chain, Chunk<S>& g, const Chunk<S>& du,
                                const typename S::T* down) {
  const auto* const scale = down + S::kPass * S::kDownPitch;
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float factor = chain.scale ? to_float(scale[place.column(0, j) + e % 2]) : 1.0f;
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) g[tile][j][e] += du[tile][j][e] * factor;
    }
}

// d [rows, 32 columns of the warp] += or -= a [rows, features] b^T, b [columns, features] or transposed; both shared.
template <class S, bool kTransposed, bool kMinus = false>
FASTNEST_DEVICE void add_features(const Place<S>& place, Chunk<S>& d, const typename S::T* a, int a_pitch,
                                  const typename S::T* b, int b_pitch) {
  using P = typename S::Product;
#pragma unroll 1
  for (int k = 0; k < S::kPass; k += P::kDepth) {
    typename P::A rows[S::kTiles];
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      rows[tile] = P::load_a(a + (place.group * S::kTiles + tile) * 16 * a_pitch + k, a_pitch, place.lane);
      if constexpr (kMinus) P::negate(rows[tile]);
    }
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      typename P::B columns[2];
      const int column = place.warp * 32 + j * 8;
      if constexpr (kTransposed) P::load_b_transposed(columns, b + k * b_pitch + column, b_pitch, place.lane);
      else P::load_b(columns, b + column * b_pitch + k, b_pitch, place.lane);
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) {
        P::add(d[tile][j], rows[tile], columns[0]);
        P::add(d[tile][j + 1], rows[tile], columns[1]);
      }
    }
  }
}

// z [rows, kPass features] += a b^T for the step of a chunk's columns that begins at tile j; b [features, columns] or
// transposed, shared.
template <class S, bool kTransposed>
FASTNEST_DEVICE void add_step(const Place<S>& place, Features<S>& z, const Step<S>& a, int j, const typename S::T* b,
                              int b_pitch) {
  using P = typename S::Product;
  typename P::A rows[S::kTiles];
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) rows[tile] = P::from_tiles(a[tile]);
  const int column = place.warp * 32 + j * 8;
#pragma unroll
  for (int f = 0; f < S::kPass / 8; f += 2) {
    typename P::B features[2];
    if constexpr (kTransposed) P::load_b_transposed(features, b + column * b_pitch + f * 8, b_pitch, place.lane);
    else P::load_b(features, b + f * 8 * b_pitch + column, b_pitch, place.lane);
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      P::add(z[tile][f], rows[tile], features[0]);
      P::add(z[tile][f + 1], rows[tile], features[1]);
    }
  }
}

// The same of a whole chunk as it is.
template <class S, bool kTransposed>
FASTNEST_DEVICE void add_chunk(const Place<S>& place, Features<S>& z, const Chunk<S>& values, const typename S::T* b,
                               int b_pitch) {
#pragma unroll
  for (int j = 0; j < 4; j += S::kStepTiles) {
    Step<S> a;
    take_step<S>(a, values, j);
    add_step<S, kTransposed>(place, z, a, j, b, b_pitch);
  }
}

// Sums over the columns of all warps and blocks: of every row group, the first kOwners warps complete kOwn tiles of
// features each, always in the same order. Two barriers, with a cluster three.
template <class S>
FASTNEST_DEVICE void complete(const Place<S>& place, const Features<S>& z, OwnFeatures<S>& own, float4* partials,
                              float4* sums, int turn) {
  const auto at = [&](int owner, int slot, int tile, int j) {
    return ((((owner * (S::kColumnWarps - 1) + slot) * S::kRowGroups + place.group) * S::kTiles + tile) * S::kOwn + j) *
               32 +
           place.lane.index;
  };
#pragma unroll
  for (int owner = 0; owner < S::kOwners; ++owner) {
    const int slot = (place.warp - owner - 1 + S::kColumnWarps) % S::kColumnWarps;
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile)
#pragma unroll
      for (int j = 0; j < S::kOwn; ++j) {
        const float (&d)[4] = z[tile][owner * S::kOwn + j];
        if (owner == place.warp) {
#pragma unroll
          for (int e = 0; e < 4; ++e) own[(tile * S::kOwn + j) * 4 + e] = d[e];
        } else {
          partials[at(owner, slot, tile, j)] = make_float4(d[0], d[1], d[2], d[3]);
        }
      }
  }
  __syncthreads();
  const bool owns = place.warp < S::kOwners;
  if (owns) {
#pragma unroll
    for (int slot = 0; slot < S::kColumnWarps - 1; ++slot)
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile)
#pragma unroll
        for (int j = 0; j < S::kOwn; ++j) {
          const float4 d = partials[at(place.warp, slot, tile, j)];
          float* const sum = own + (tile * S::kOwn + j) * 4;
          sum[0] += d.x, sum[1] += d.y, sum[2] += d.z, sum[3] += d.w;
        }
  }
  if (place.cluster == 1) return;
  float4* const mine = sums + turn * (S::kSums / 4) +
                       ((place.warp * S::kRowGroups + place.group) * S::kTiles) * S::kOwn * 32 + place.lane.index;
  if (owns) {
#pragma unroll
    for (int i = 0; i < S::kTiles * S::kOwn; ++i) {
      mine[i * 32] = make_float4(own[4 * i], own[4 * i + 1], own[4 * i + 2], own[4 * i + 3]);
      own[4 * i] = own[4 * i + 1] = own[4 * i + 2] = own[4 * i + 3] = 0;
    }
  }
  cluster_barrier();
  if (!owns) return;
  for (int rank = 0; rank < place.cluster; ++rank)
#pragma unroll
    for (int i = 0; i < S::kTiles * S::kOwn; ++i) {
      const float4 d = load_from_cluster(mine + i * 32, rank);
      own[4 * i] += d.x, own[4 * i + 1] += d.y, own[4 * i + 2] += d.z, own[4 * i + 3] += d.w;
    }
}

// The owners' part of features [rows, features] times weight^T, weight [kPass, features] or transposed; both shared.
template <class S, bool kTransposed>
FASTNEST_DEVICE void through_mid(const Place<S>& place, OwnFeatures<S>& own, const typename S::T* features,
                                 int features_pitch, const typename S::T* weight, int weight_pitch, int depth) {
  using P = typename S::Product;
  float d[S::kTiles][2][4] = {};
  // Tiles of b come in pairs: an owner of one tile leaves out its neighbour's.
  const int first = place.warp * S::kOwn / 2 * 2, mine = S::kOwn == 1 ? place.warp % 2 : 0;
  static_assert(S::kOwn <= 2);
  for (int k = 0; k < depth; k += P::kDepth) {
    typename P::B columns[2];
    if constexpr (kTransposed)
      P::load_b_transposed(columns, weight + k * weight_pitch + first * 8, weight_pitch, place.lane);
    else P::load_b(columns, weight + first * 8 * weight_pitch + k, weight_pitch, place.lane);
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      const auto rows =
          P::load_a(features + (place.group * S::kTiles + tile) * 16 * features_pitch + k, features_pitch, place.lane);
      P::add(d[tile][0], rows, columns[0]);
      P::add(d[tile][1], rows, columns[1]);
    }
  }
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile)
#pragma unroll
    for (int j = 0; j < S::kOwn; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        own[(tile * S::kOwn + j) * 4 + e] = S::kOwn == 1 && mine ? d[tile][1][e] : d[tile][j][e];
}

// function(index, row, feature) for every pair of an owner's features: index of the first in `own`, row in the block.
template <class S, class Function>
FASTNEST_DEVICE void for_own(const Place<S>& place, int pass, const Function& function) {
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile)
#pragma unroll
    for (int j = 0; j < S::kOwn; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        function((tile * S::kOwn + j) * 4 + 2 * half, place.row(tile) + half * 8,
                 pass * S::kPass + (place.warp * S::kOwn + j) * 8 + 2 * place.lane.t);
}

}  // namespace fastnest::cuda
