// The residual chain backward, third launch, with mid only: mid's gradient, of each block the sum over rows of dz' h.
#pragma once

#include "cuda/residual_chain_weights.h"

namespace fastnest::cuda {

// Two tiles [rows, kPass], and no more: the products are few.
template <class S>
constexpr int mid_shared_bytes() {
  return 2 * S::kRows * S::kUpPitch * static_cast<int>(sizeof(typename S::T));
}

// A block of threads has one block of the chain, and some tiles of rows: it adds to a slice of its own.
template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    residual_mid_kernel(const ResidualChain chain, const ResidualBackward io) {
  using T = typename S::T;
  FASTNEST_SHARED(shared);
  T* const dz = reinterpret_cast<T*>(shared);
  T* const h = dz + S::kRows * S::kUpPitch;
  const int k = chain.k, block = static_cast<int>(blockIdx.x);
  const int64_t row = static_cast<int64_t>(chain.l) * 2 * k;
  const bool aligned = k * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(io.hidden) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(io.dz) % 16 == 0;
  float* const sum = io.dmid + (static_cast<int64_t>(blockIdx.y) * chain.l + block) * k * k;
  for (int64_t first_row = static_cast<int64_t>(blockIdx.y) * S::kRows; first_row < chain.n;
       first_row += static_cast<int64_t>(gridDim.y) * S::kRows) {
    const int64_t at = first_row * row + static_cast<int64_t>(block) * 2 * k, left = chain.n - first_row;
    const auto load = [&](T* tile, const void* from, int layer, int feature) {
      copy_tile(tile, S::kUpPitch, S::kRows, S::kPass,
                Part<T>{static_cast<const T*>(from) + at + layer * k + feature, row,
                        left < S::kRows ? static_cast<int>(left) : S::kRows, k - feature, aligned});
    };
    for (int to = 0; to < k; to += S::kPass)
      for (int of = 0; of < k; of += S::kPass) {
        __syncthreads();  // the tiles before have been read
        load(dz, io.dz, 1, to);
        load(h, io.hidden, 0, of);
        commit_copies();
        wait_for_copies<0>();
        __syncthreads();
        if (!idempotent(chain.activation)) {
          activate_rows<S>(chain.activation, h);
          __syncthreads();
        }
        add_outer<S, S::kPass, S::kPass>(sum + static_cast<int64_t>(to) * k + of, k, k - to, k - of, dz, S::kUpPitch, h,
                                         S::kUpPitch);
      }
  }
}

}  // namespace fastnest::cuda
