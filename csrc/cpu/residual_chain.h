// What the residual chain's host hands to its kernels: sizes, raw pointers, and how the work is shared.
#pragma once

#include <cstdint>

#include "common/activation_kind.h"
#include "common/element.h"
#include "common/share.h"

namespace fastnest {

// x_i = x_{i-1} + up_i v_i, v_i = act(down_i f(scale_i x_{i-1} + shift_i) + bias_i); pointers are null where absent.
struct ResidualChain {
  Element element;
  int64_t n, m, k, l;
  int64_t ups;  // l, or l - 1: the last block yields its features only
  Activation activation;
  bool pre_activation;
  const void *down, *down_bias;  // [l, k, m], [l, k]
  const void *mid, *mid_bias;    // [l, k, k], [l, k]
  const void* up;                // [ups, m, k]
  const void *scale, *shift;     // [l, m]

  double flops() const { return 4.0 * n * m * k * l; }  // of the forward
  int layers() const { return mid ? 2 : 1; }
  Activation before() const { return pre_activation ? activation : Activation::kIdentity; }
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
  const void *dy, *dfeatures;  // [n, m] and [n, l, k], null for zero
  int64_t dy_stride;
  const void* x;  // x_0
  int64_t x_stride;
  const float* stream;  // x_L, unrounded
  const void* hidden;
  void* dx;  // [n, m]
};

struct ResidualGradients {  // of the parameters, shaped like them; null where absent
  void *ddown, *ddown_bias, *dmid, *dmid_bias, *dup, *dscale, *dshift;
};

}  // namespace fastnest
