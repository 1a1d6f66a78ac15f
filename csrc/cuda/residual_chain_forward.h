// The residual chain forward: one launch, whatever the depth. A block reads its rows of x once and writes those of y
// once; weights come through L2, once a block of rows (a cluster's blocks have columns of their own, and so a part of
// the weights each). Barriers a layer: one a tile of weights, and two for each pass over features.
#pragma once

#include "cuda/residual_chain_tiles.h"

namespace fastnest::cuda {

// Copies the weights' tiles in the order that the forward reads them.
template <class S>
class ForwardTiles {
 public:
  using T = typename S::T;
  FASTNEST_DEVICE ForwardTiles(const ResidualChain& chain, int first_column)
      : chain_(chain), passes_((chain.k + S::kPass - 1) / S::kPass), first_column_(first_column), tiles_(chain) {}

  FASTNEST_DEVICE void operator()(T* slot) {
    if (block_ >= chain_.l) return;
    if (phase_ == kDown) tiles_.copy_down(slot, block_, outer_ * S::kPass, first_column_ + inner_ * S::kChunk);
    else
      tiles_.copy(slot, phase_ == kMid ? tiles_.mid(block_, outer_ * S::kPass, passes_ * S::kPass)
                                       : tiles_.up(block_, first_column_ + outer_ * S::kChunk, inner_ * S::kPass));
    const int inner = phase_ == kDown ? S::kChunks : phase_ == kMid ? 1 : passes_;
    const int outer = phase_ == kUp ? S::kChunks : passes_;
    if (++inner_ < inner) return;
    inner_ = 0;
    if (++outer_ < outer) return;
    outer_ = 0;
    phase_ = phase_ == kDown && chain_.mid ? kMid : phase_ != kUp && block_ < chain_.ups ? kUp : kNext;
    if (phase_ == kNext) ++block_, phase_ = kDown;
  }

 private:
  enum Phase { kDown, kMid, kUp, kNext };
  const ResidualChain& chain_;
  int passes_, first_column_;
  ResidualTiles<S> tiles_;
  int block_ = 0, phase_ = kDown, outer_ = 0, inner_ = 0;
};

// z [rows, kPass] += f(scale x + shift) down^T over a chunk of columns, given its tile of `down`.
template <class S>
FASTNEST_DEVICE void add_down(const Place<S>& place, const ResidualChain& chain, Features<S>& z, const Chunk<S>& x,
                              const typename S::T* down, float* scratch) {
#pragma unroll
  for (int j = 0; j < 4; j += S::kStepTiles) {
    Step<S> a;
    apply_affine<S>(place, chain, a, x, j, down);
    activate<S::kStep>(chain.before(), &a[0][0][0], scratch);
    add_step<S, false>(place, z, a, j, down, S::kDownPitch);
  }
}

// Features from what the owners have summed: biased, rounded as memory keeps them, activated; written where they go.
template <class S>
FASTNEST_DEVICE void finish_features(int cluster, const ResidualChain& chain, const ResidualForward& io,
                                     OwnFeatures<S>& z, const typename S::T* bias, typename S::T* shared, int pitch,
                                     int block, int pass, int layer, float* scratch) {
  using T = typename S::T;
  const Place<S> place(cluster);
  if (place.warp >= S::kOwners) return;
  const int k = chain.k, layers = chain.layers();
  T* const hidden = place.rank == 0 ? static_cast<T*>(io.hidden) : nullptr;
  T* const features = place.rank == 0 && layer == layers - 1 ? static_cast<T*>(io.features) : nullptr;
  const auto keep = [&](int index, int row, int feature) {
    const int64_t of_block = (place.first_row + row) * chain.l + block;
    if (place.first_row + row < chain.n)
      store_pair(hidden + (of_block * layers + layer) * k, feature, k, z[index], z[index + 1]);
  };
  for_own<S>(place, pass, [&](int index, int, int feature) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float more = bias && feature + e < k ? to_float(bias[feature + e]) : 0.0f;
      // As the backward will read it, or the stream would not step back.
      z[index + e] = to_float(from_float<T>(z[index + e] + more));
    }
  });
  const bool keep_value = idempotent(chain.activation);
  if (hidden && !keep_value) for_own<S>(place, pass, keep);
  activate<S::kTiles * S::kOwn * 4>(chain.activation, z, scratch);
  if (hidden && keep_value) for_own<S>(place, pass, keep);
  for_own<S>(place, pass, [&](int index, int row, int feature) {
    const float first = feature < k ? z[index] : 0.0f, second = feature + 1 < k ? z[index + 1] : 0.0f;
    shared[row * pitch + feature] = from_float<T>(first);
    shared[row * pitch + feature + 1] = from_float<T>(second);
    if (features && place.first_row + row < chain.n)
      store_pair(features + ((place.first_row + row) * chain.l + block) * k, feature, k, first, second);
  });
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    residual_forward_kernel(const ResidualChain chain, const ResidualForward io, const ResidualShared layout,
                            const int cluster) {
  using T = typename S::T;
  using Here = Place<S>;  // made anew where it is needed, which takes fewer registers than to keep it
  FASTNEST_SHARED(shared);
  auto* const partials = reinterpret_cast<float4*>(shared + layout.partials);
  auto* const sums = reinterpret_cast<float4*>(shared + layout.sums);
  T* const v = reinterpret_cast<T*>(shared + layout.features);
  auto* const scratch = reinterpret_cast<float*>(shared + layout.scratch);
  const int pitch = layout.features_pitch, passes = (chain.k + S::kPass - 1) / S::kPass;
  const Place<S> place(cluster);
  Ring<T, ForwardTiles<S>> ring(reinterpret_cast<T*>(shared), layout.slot_elements, layout.slots,
                                ForwardTiles<S>(chain, place.first_column));
  Stream<S> x;
  load_stream<S>(place, x, static_cast<const T*>(io.x), io.x_stride, chain.n, chain.m);
  int turn = 0;
  const auto bias_of = [&](const void* bias, int block) {
    return bias ? static_cast<const T*>(bias) + static_cast<int64_t>(block) * chain.k : nullptr;
  };
  for (int block = 0; block < chain.l; ++block) {
    for (int pass = 0; pass < passes; ++pass) {
      Features<S> z = {};
#pragma unroll
      for (int c = 0; c < S::kChunks; ++c) add_down<S>(Here(cluster), chain, z, x[c], ring.next(), scratch);
      OwnFeatures<S> own;
      complete<S>(Here(cluster), z, own, partials, sums, turn);
      turn ^= 1;
      finish_features<S>(cluster, chain, io, own, bias_of(chain.down_bias, block), v, pitch, block, pass, 0, scratch);
    }
    const T* last = v;
    if (chain.mid) {
      T* const out = v + S::kRows * pitch;
      for (int pass = 0; pass < passes; ++pass) {
        OwnFeatures<S> own;
        const T* const weight = ring.next();
        if (Here(cluster).warp < S::kOwners)
          through_mid<S, false>(Here(cluster), own, v, pitch, weight, pitch_of(passes * S::kPass), passes * S::kPass);
        finish_features<S>(cluster, chain, io, own, bias_of(chain.mid_bias, block), out, pitch, block, pass, 1,
                           scratch);
      }
      last = out;
    }
    if (block >= chain.ups) continue;
#pragma unroll
    for (int c = 0; c < S::kChunks; ++c) {
      for (int pass = 0; pass < passes; ++pass)
        add_features<S, false>(Here(cluster), x[c], last + pass * S::kPass, pitch, ring.next(), S::kUpPitch);
      clear_behind<S>(Here(cluster), c, x[c], chain.m);
    }
  }
  ring.finish();
  store_stream<S>(Here(cluster), x, static_cast<T*>(io.y), chain.n, chain.m);
  if (io.stream) store_stream<S>(Here(cluster), x, io.stream, chain.n, chain.m);
  if (cluster > 1) cluster_barrier();  // no block ends while another reads its sums
}

}  // namespace fastnest::cuda
