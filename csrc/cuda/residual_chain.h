// What the residual chain's host hands to its launchers: sizes and raw pointers. No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/activation_kind.h"
#include "common/element.h"

namespace fastnest::cuda {

constexpr int kMostBlocksInCluster = 8;  // that every part with clusters takes

// x_i = x_{i-1} + up_i v_i, v_i = f(down_i f(scale_i x_{i-1} + shift_i) + down_bias_i); pointers are null where absent.
struct ResidualChain {
  Element element;
  bool tf32;  // float32: products of TF32
  int64_t n;
  int m, k, l;
  int ups;  // l, or l - 1: the last block yields its features only
  Activation activation;
  bool pre_activation;
  const void *down, *down_bias;  // [l, k, m], [l, k]
  const void *mid, *mid_bias;    // [l, k, k], [l, k]
  const void* up;                // [ups, m, k]
  const void *scale, *shift;     // [l, m]

  constexpr int layers() const { return mid ? 2 : 1; }
  constexpr Activation before() const { return pre_activation ? activation : Activation::kIdentity; }
};

struct ResidualForward {
  const void* x;  // [n, m], rows x_stride apart
  int64_t x_stride;
  void* y;         // [n, m]
  void* features;  // [n, l, k] or null
  void* hidden;    // [n, l, layers, k] or null
  float* stream;   // [n, m] or null
};

struct ResidualBackward {
  const void *dy, *dfeatures;  // [n, m], rows dy_stride apart, and [n, l, k]; null for zero
  int64_t dy_stride;
  const void* x;  // x_0
  int64_t x_stride;
  const float* stream;  // x_L, unrounded [n, m]
  const void* hidden;
  void* dx;  // [n, m]
  void* dz;  // [n, l, layers, k]: the gradient of what each activation behind a linear map is taken of
  // Sums over rows, in slices [slices, ...] that are added later; zero at first; null where absent.
  int slices;
  float *ddown, *dup, *dscale, *dshift;
};

// Launched on `stream` of the current device. Null, or why one could not be launched.
const char* residual_chain_forward(const ResidualChain& chain, const ResidualForward& io, void* stream);
// How many slices the backward's sums should have.
int residual_chain_slices(const ResidualChain& chain);
const char* residual_chain_backward(const ResidualChain& chain, const ResidualBackward& io, void* stream);

}  // namespace fastnest::cuda
