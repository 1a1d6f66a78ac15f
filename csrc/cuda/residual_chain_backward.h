// The residual chain backward, first launch: dx, and dz of every linear map, from the last block to the first.
//
// The stream is stepped back, x_{i-1} = x_i - up_i v_i, beside its gradient g, both in registers. What is read of each
// row: x_L, dy and x_0 once, and its features; written: dx once, and dz, as much as the features are.
#pragma once

#include "cuda/residual_chain_tiles.h"

namespace fastnest::cuda {

// Copies the weights' tiles in the order that the backward reads them.
template <class S>
class BackwardTiles {
 public:
  using T = typename S::T;
  FASTNEST_DEVICE BackwardTiles(const ResidualChain& chain, int first_column)
      : chain_(chain),
        passes_((chain.k + S::kPass - 1) / S::kPass),
        first_column_(first_column),
        tiles_(chain),
        block_(chain.l) {
    enter_block();
  }

  FASTNEST_DEVICE void operator()(T* slot) {
    if (block_ < 0) return;
    if (phase_ == kUp) tiles_.copy(slot, tiles_.up(block_, first_column_ + inner_ * S::kChunk, outer_ * S::kPass));
    else if (phase_ == kMid) tiles_.copy(slot, tiles_.mid_transposed(block_, outer_ * S::kPass, passes_ * S::kPass));
    else tiles_.copy_down(slot, block_, inner_ * S::kPass, first_column_ + outer_ * S::kChunk);
    const int inner = phase_ == kUp ? S::kChunks : phase_ == kMid ? 1 : passes_;
    const int outer = phase_ == kDown ? S::kChunks : passes_;
    if (++inner_ < inner) return;
    inner_ = 0;
    if (++outer_ < outer) return;
    outer_ = 0;
    if (phase_ == kDown) enter_block();
    else phase_ = phase_ == kUp && chain_.mid ? kMid : kDown;
  }

 private:
  enum Phase { kUp, kMid, kDown };
  FASTNEST_DEVICE void enter_block() {
    --block_;
    phase_ = block_ < chain_.ups ? kUp : chain_.mid ? kMid : kDown;
  }
  const ResidualChain& chain_;
  int passes_, first_column_;
  ResidualTiles<S> tiles_;
  int block_, phase_ = kUp, outer_ = 0, inner_ = 0;
};

// v of a block's rows [rows, k], to shared memory.
template <class S>
FASTNEST_DEVICE void load_features(const ResidualChain& chain, const ResidualBackward& io, int64_t first_row, int block,
                                   typename S::T* v, int pitch) {
  using T = typename S::T;
  const int layers = chain.layers(), k = chain.k, wide = pitch - pitch_of(0);
  const bool saved_value = idempotent(chain.activation);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < S::kRows * wide; i += S::kThreads) {
    const int row = i / wide, feature = i % wide;
    float value = 0;
    if (first_row + row < chain.n && feature < k) {
      const int64_t at = ((first_row + row) * chain.l + block) * layers + layers - 1;
      value = to_float(static_cast<const T*>(io.hidden)[at * k + feature]);
      if (!saved_value) value = activated(chain.activation, value);
    }
    v[row * pitch + feature] = from_float<T>(value);
  }
}

// dz = f'(z) d of a layer, from what the owners have summed; d rounded as memory keeps it, where the next step reads
// it.
template <class S>
FASTNEST_DEVICE void finish_gradient(int cluster, const ResidualChain& chain, const ResidualBackward& io,
                                     OwnFeatures<S>& d, typename S::T* shared, int pitch, int block, int pass,
                                     int layer, float* scratch) {
  using T = typename S::T;
  const Place<S> place(cluster);
  if (place.warp >= S::kOwners) return;
  const int k = chain.k, layers = chain.layers();
  OwnFeatures<S> z;
  for_own<S>(place, pass, [&](int index, int row, int feature) {
    const int64_t of_block = (place.first_row + row) * chain.l + block;
    float2 saved = make_float2(0, 0), more = make_float2(0, 0);
    if (place.first_row + row < chain.n) {
      saved = load_pair(static_cast<const T*>(io.hidden) + (of_block * layers + layer) * k, feature, k);
      if (io.dfeatures && layer == layers - 1)
        more = load_pair(static_cast<const T*>(io.dfeatures) + of_block * k, feature, k);
    }
    z[index] = saved.x, z[index + 1] = saved.y;
    d[index] += more.x, d[index + 1] += more.y;
  });
  activate_backward<S::kTiles * S::kOwn * 4>(chain.activation, d, z, scratch);
  for_own<S>(place, pass, [&](int index, int row, int feature) {
    const float first = feature < k ? d[index] : 0.0f, second = feature + 1 < k ? d[index + 1] : 0.0f;
    shared[row * pitch + feature] = from_float<T>(first);
    shared[row * pitch + feature + 1] = from_float<T>(second);
    if (place.rank == 0 && place.first_row + row < chain.n)
      store_pair(static_cast<T*>(io.dz) + (((place.first_row + row) * chain.l + block) * layers + layer) * k, feature,
                 k, first, second);
  });
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    residual_rows_kernel(const ResidualChain chain, const ResidualBackward io, const ResidualShared layout,
                         const int cluster) {
  using T = typename S::T;
  using Here = Place<S>;  // made anew where it is needed, which takes fewer registers than to keep it
  FASTNEST_SHARED(shared);
  auto* const partials = reinterpret_cast<float4*>(shared + layout.partials);
  auto* const sums = reinterpret_cast<float4*>(shared + layout.sums);
  auto* const scratch = reinterpret_cast<float*>(shared + layout.scratch);
  const int pitch = layout.features_pitch, passes = (chain.k + S::kPass - 1) / S::kPass;
  T* const v = reinterpret_cast<T*>(shared + layout.features);
  T* const last_dz = v + S::kRows * pitch;  // of the last linear map before v
  T* const dz = chain.mid ? last_dz + S::kRows * pitch : last_dz;
  Ring<T, BackwardTiles<S>> ring(reinterpret_cast<T*>(shared), layout.slot_elements, layout.slots,
                                 BackwardTiles<S>(chain, Here(cluster).first_column));
  Stream<S> x, g = {};
  load_stream<S>(Here(cluster), x, io.stream, chain.m, chain.n, chain.m);
  if (io.dy) load_stream<S>(Here(cluster), g, static_cast<const T*>(io.dy), io.dy_stride, chain.n, chain.m);
  int turn = 0;
  for (int block = chain.l - 1; block >= 0; --block) {
    load_features<S>(chain, io, Here(cluster).first_row, block, v, pitch);
    for (int pass = 0; pass < passes; ++pass) {
      OwnFeatures<S> own = {};
      if (block < chain.ups) {
        Features<S> d = {};
#pragma unroll
        for (int c = 0; c < S::kChunks; ++c) {
          const T* const up = ring.next();
          add_features<S, false, true>(Here(cluster), x[c], v + pass * S::kPass, pitch, up, S::kUpPitch);
          add_chunk<S, true>(Here(cluster), d, g[c], up, S::kUpPitch);
        }
        complete<S>(Here(cluster), d, own, partials, sums, turn);
        turn ^= 1;
      }
      finish_gradient<S>(cluster, chain, io, own, last_dz, pitch, block, pass, chain.layers() - 1, scratch);
    }
    if (chain.mid) {
      for (int pass = 0; pass < passes; ++pass) {
        OwnFeatures<S> own;
        const T* const weight = ring.next();
        if (Here(cluster).warp < S::kOwners)
          through_mid<S, true>(Here(cluster), own, last_dz, pitch, weight, S::kUpPitch, passes * S::kPass);
        finish_gradient<S>(cluster, chain, io, own, dz, pitch, block, pass, 0, scratch);
      }
    }
    // The first block's as it came, so that its zeros are zeros.
    if (block == 0) load_stream<S>(Here(cluster), x, static_cast<const T*>(io.x), io.x_stride, chain.n, chain.m);
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      Chunk<S> du = {};
      const T* down = nullptr;
      for (int pass = 0; pass < passes; ++pass) {
        down = ring.next();
        add_features<S, true>(Here(cluster), du, dz + pass * S::kPass, pitch, down, S::kDownPitch);
      }
      through_activation<S>(Here(cluster), chain, du, x[c], down, scratch);
      add_scaled<S>(Here(cluster), chain, g[c], du, down);
      clear_behind<S>(Here(cluster), c, g[c], chain.m);
    }
  }
  ring.finish();
  store_stream<S>(Here(cluster), g, static_cast<T*>(io.dx), chain.n, chain.m);
  if (cluster > 1) cluster_barrier();  // no block ends while another reads its sums
}

}  // namespace fastnest::cuda
