// What the dense chain's host hands to its kernels: sizes and raw pointers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/activation_kind.h"
#include "common/element.h"
#include "common/share.h"

namespace fastnest {

// One growth; pointers are null where absent.
struct DenseBlock {
  int64_t m, d, h;            // features it reads, features it adds, features of its hidden layer (0: none)
  const void *weight, *bias;  // [d, h or m], [d]
  const void *hidden_weight, *hidden_bias;    // [h, m], [h]
  const void *scale, *shift;                  // [m]
  int64_t kept;                               // its first column of what the forward keeps
  int64_t wide() const { return h ? h : d; }  // outputs of the product over the prefix
};

// x_i = [x_{i-1}, q_i] in one buffer.
struct DenseChain {
  Element element;
  int64_t n, m, width;  // rows, features of the input and of the output
  int64_t kept;         // columns the backward needs of hidden layers and activated growths
  Activation activation;
  bool pre_activation;
  std::vector<DenseBlock> blocks;

  bool affine() const { return blocks[0].scale; }
  bool keeps_growth() const { return !pre_activation && !idempotent(activation); }
  Activation before() const { return pre_activation ? activation : Activation::kIdentity; }
  double flops() const {  // of the forward
    double each_row = 0;
    for (const DenseBlock& block : blocks) each_row += 2.0 * (block.m * block.wide() + block.h * block.d);
    return n * each_row;
  }
  int64_t widest() const {
    int64_t most = 0;
    for (const DenseBlock& block : blocks) most = std::max({most, block.d, block.h});
    return most;
  }
  bool even() const {
    bool all = m % 2 == 0;
    for (const DenseBlock& block : blocks) all = all && block.d % 2 == 0 && block.h % 2 == 0;
    return all;
  }
};

struct DenseForward {
  const void* x;  // [n, m], rows x_stride apart
  int64_t x_stride;
  void* y;       // [n, width]
  void* hidden;  // [n, kept] or null
};

struct DenseBackward {
  const void* dy;  // [n, width], rows dy_stride apart
  int64_t dy_stride;
  const void* y;
  const void* hidden;
  void* dx;  // [n, m]
};

struct DenseGradients {  // of one block's parameters; null where absent
  void *weight, *bias, *hidden_weight, *hidden_bias, *scale, *shift;
};

}  // namespace fastnest
