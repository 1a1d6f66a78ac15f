// Sums over rows, the gradients of parameters, and how slices of them land in tensors of their own: what a host hands
// to the launchers. No torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "common/element.h"

namespace fastnest::cuda {

// Where a part of a slice goes: elements begin, ..., begin + size - 1.
struct Target {
  void* data;
  int64_t begin, size;
};

// slices[s, i] = sum of values[row, i] over the rows of slice s, of n rows `stride` apart; slices is [count, size].
const char* slice_rows(Element element, const void* values, int64_t stride, int64_t n, float* slices, int count,
                       int64_t size, void* stream);

// Of every target, element i = sum of slices[s, begin + i] over s, in order; slices is [count, size].
const char* add_slices_to(Element element, const Target* targets, int64_t targets_count, const float* slices, int count,
                          int64_t size, void* stream);

}  // namespace fastnest::cuda
