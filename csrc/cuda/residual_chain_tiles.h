// The residual chain's tiles: how a block's warps share rows and columns, and what both directions do with them.
//
// A block has a tile of rows, and its stream stays in registers through all blocks of the chain, in float32, as the
// tensor cores' d: each warp has kTiles x 16 rows and, of every chunk of columns, 32. As a of the next product it needs
// no way through shared memory, which only the weights pass (ring.h), once a block of rows.
#pragma once

#include <algorithm>

#include "cuda/activation.h"
#include "cuda/residual_chain.h"
#include "cuda/ring.h"
#include "cuda/warps.h"

namespace fastnest::cuda {

template <class Product_, int kTiles_, int kColumnWarps_, int kChunks_, int kPass_>
struct ResidualShape : WarpShape<Product_, kTiles_, 8 / kColumnWarps_, kColumnWarps_, kPass_> {
  using Base = WarpShape<Product_, kTiles_, 8 / kColumnWarps_, kColumnWarps_, kPass_>;
  using Base::kChunk, Base::kOwn, Base::kPass, Base::kThreads, Base::kTiles;
  static constexpr int kChunks = kChunks_;
  static constexpr int kColumns = kChunks * kChunk;
  static constexpr int kDownPitch = pitch_of(kChunk), kUpPitch = pitch_of(kPass);
  // Behind a tile of `down`, scale and shift of its columns.
  static constexpr int kDownElements = kPass * kDownPitch + 2 * kChunk, kUpElements = kChunk * kUpPitch;
  static constexpr int kStep =
      kTiles * Product_::kDepth / 2;  // elements of a thread in as many columns as a product is deep
  static constexpr int kScratch = std::max(kStep, kTiles * kOwn * 4) * kThreads;  // floats
};

// What is in a block's shared memory, in bytes: the ring, sums on their way between warps and between blocks, features,
// and scratch of the activation.
struct ResidualShared {
  int slot_elements, slots, features_pitch;
  int partials, sums, features, scratch, bytes;

  template <class S>
  static ResidualShared of(const ResidualChain& chain, int cluster, int most_bytes) {
    ResidualShared shared{};
    const int wide = (chain.k + S::kPass - 1) / S::kPass * S::kPass, size = sizeof(typename S::T);
    const int mid = chain.mid ? std::max(S::kPass * pitch_of(wide), wide * S::kUpPitch) : 0;
    shared.slot_elements = std::max({S::kDownElements, S::kUpElements, mid});
    shared.features_pitch = pitch_of(wide);
    for (shared.slots = 4; shared.slots >= 2; --shared.slots) {
      shared.partials = shared.slots * shared.slot_elements * size;
      shared.sums = shared.partials + S::kPartials * 4;
      shared.features = shared.sums + (cluster > 1 ? 2 * S::kSums * 4 : 0);
      shared.scratch = shared.features + chain.layers() * S::kRows * shared.features_pitch * size;
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

template <class S>
using Stream = Chunk<S>[S::kChunks];
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
using Step = float[S::kTiles][S::Product::kDepth / 8][4];

// u = scale x + shift for the step of a chunk that begins at tile j, given the tile of `down` behind which they are.
template <class S>
FASTNEST_DEVICE void apply_affine(const Place<S>& place, const ResidualChain& chain, Step<S>& u, const Chunk<S>& x,
                                  int first, const typename S::T* down) {
  const auto* const scale = down + S::kPass * S::kDownPitch;
#pragma unroll
  for (int j = 0; j < S::Product::kDepth / 8; ++j)
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

}  // namespace fastnest::cuda
