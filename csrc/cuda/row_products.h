// Products over rows, the gradients of weights: what a host hands to the launcher. No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/activation_kind.h"
#include "common/element.h"

namespace fastnest::cuda {

constexpr int kProductsInLaunch = 48;  // kernels' parameters have 4 KB

// out [to, of] = sum over rows of a[row, to] f(scale b[row, of] + shift).
struct RowProduct {
  int64_t a, b;               // first columns in a and in b
  int64_t out;                // first element in a slice
  const void *scale, *shift;  // [of] or null
  int to, of;
};

struct RowProducts {
  Element element;
  bool tf32;
  Activation f;
  int64_t n;
  const void *a, *b;
  int64_t a_stride, b_stride;
  float* slices;  // [splits, total]: sums of rows each, every element written; to be added in order
  int64_t total;
  int splits, count;
  RowProduct product[kProductsInLaunch];
};

// How many splits of n rows keep the current device busy, of products with `total` elements in all.
int row_products_splits(Element element, int64_t n, int64_t total);

// Launched on `stream` of the current device. Null, or why it could not be launched.
const char* row_products(const RowProducts& products, void* stream);

}  // namespace fastnest::cuda
