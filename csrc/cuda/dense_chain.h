// What the dense chain's host hands to its launchers: sizes and raw pointers. No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/activation_kind.h"
#include "common/element.h"

namespace fastnest::cuda {

// Blocks that one launch takes, alike or not: their parameters are the kernel's, which may have 4 KB.
constexpr int kBlocksInLaunch = 48;

// One growth of d features behind the first m; pointers are null where absent.
struct DenseBlock {
  const void *weight, *bias;                // [d, h or m], [d]
  const void *hidden_weight, *hidden_bias;  // [h, m], [h]
  const void *scale, *shift;                // [m]
  int m, d, h;                              // h is 0 without a hidden layer
  int hidden_before;                        // the sum of h, and of m, of the chain's blocks before this one
  int64_t columns_before;

  constexpr int wide() const { return h ? h : d; }  // outputs of the product over the prefix
};

// Blocks of x_i = [x_{i-1}, q_i] in one buffer; of a longer chain, consecutive ones.
struct DenseChain {
  Element element;
  bool tf32;  // float32: products of TF32, else with the error of float32
  bool pre_activation, affine;
  Activation activation;
  int64_t n;
  int in;      // features before the chain's first block
  int width;   // of y, behind its last
  int hidden;  // the sum of h
  int blocks;
  DenseBlock block[kBlocksInLaunch];

  constexpr Activation before() const { return pre_activation ? activation : Activation::kIdentity; }
  constexpr bool keeps_growth() const { return !pre_activation && !idempotent(activation); }
  // What the forward keeps: a block's hidden features, then its growth before the activation.
  constexpr int kept() const { return hidden + (keeps_growth() ? width - in : 0); }
  constexpr int kept_before(const DenseBlock& one) const {
    return one.hidden_before + (keeps_growth() ? one.m - in : 0);
  }
  constexpr int begin() const { return block[0].m; }
  constexpr int end() const { return block[blocks - 1].m + block[blocks - 1].d; }
};

struct DenseForward {
  const void* x;  // [n, begin], rows x_stride apart; may be y itself
  int64_t x_stride;
  void* y;       // [n, width]
  void* hidden;  // [n, kept] or null
};

struct DenseBackward {
  const void* dy;  // [n, end], rows dy_stride apart
  int64_t dy_stride;
  const void *y, *hidden;         // [n, width], [n, kept]
  void* dx;                       // [n, begin]
  bool dy_is_float, dx_is_float;  // where other blocks follow, and where they precede
  void *dz, *dz_hidden;  // [n, width - in], [n, hidden]: the gradient of what each activation is taken of, or q's
  // Of scale and shift, in slices [slices, 2, sum of m] that are added later; zero at first; null where absent.
  float* daffine;
  int64_t affine_columns;
  int slices;
};

// Launched on `stream` of the current device. Null, or why it could not be launched.
const char* dense_chain_forward(const DenseChain& chain, const DenseForward& io, void* stream);
const char* dense_chain_backward(const DenseChain& chain, const DenseBackward& io, void* stream);
// As many slices as there are blocks that share the rows.
int dense_chain_affine_slices(int64_t n);

}  // namespace fastnest::cuda
