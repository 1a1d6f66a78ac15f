// How the warps of a block share its rows, and the columns or the features of a product; sums over what they share.
#pragma once

#include "cuda/mma.h"

namespace fastnest::cuda {

// Warps: kRowGroups of rows, of each kColumnWarps of columns. A warp has kTiles x 16 rows and, of every chunk of
// columns, 32.
template <class Product_, int kTiles_, int kRowGroups_, int kColumnWarps_, int kPass_>
struct WarpShape {
  using Product = Product_;
  using T = typename Product::Element;
  static constexpr int kTiles = kTiles_, kRowGroups = kRowGroups_, kColumnWarps = kColumnWarps_;
  static constexpr int kWarps = kRowGroups * kColumnWarps, kThreads = 32 * kWarps;
  static constexpr int kRows = kRowGroups * kTiles * 16;
  static constexpr int kChunk = kColumnWarps * 32;
  static constexpr int kPass = kPass_;  // features at a time
  static constexpr int kOwners = kColumnWarps < kPass / 8 ? kColumnWarps : kPass / 8;
  static constexpr int kOwn = kPass / 8 / kOwners;  // tiles of features that each of a row group's owners completes
  static constexpr int kPartials = (kColumnWarps - 1) * kRows * kPass;  // floats
  static constexpr int kSums = kRows * kPass;                           // floats, of each of two turns
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

// d [rows, 32 columns of the warp] += a [rows, features] b^T, b [columns, features] or transposed; both shared.
template <class S, bool kTransposed>
FASTNEST_DEVICE void add_features(const Place<S>& place, Chunk<S>& d, const typename S::T* a, int a_pitch,
                                  const typename S::T* b, int b_pitch) {
  using P = typename S::Product;
#pragma unroll 1
  for (int k = 0; k < S::kPass; k += P::kDepth) {
    typename P::A rows[S::kTiles];
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile)
      rows[tile] = P::load_a(a + (place.group * S::kTiles + tile) * 16 * a_pitch + k, a_pitch, place.lane);
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
