// Sums that blocks took side by side, each into a slice of its own, added in the slices' order: the same bits always.
#pragma once

#include "cuda/device.h"

namespace fastnest::cuda {

constexpr int kSumThreads = 256;

// total[i] = sum of slices[s * size + i] over s.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    add_slices_kernel(const float* slices, T* total, int count, int64_t size) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
  for (int s = 0; s < count; ++s) sum += slices[s * size + i];
  total[i] = from_float<T>(sum);
}

// Values [n, size] within rows that have more: in groups that lie apart.
template <class T>
struct RowGroups {
  const T* data;
  int64_t stride;               // elements between rows
  int64_t group, group_stride;  // consecutive elements, and from the beginning of a group to that of the next
};

// slices[s, i] = sum of values[row, i] over the rows of slice s: every count-th.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    add_rows_kernel(const RowGroups<T> values, float* slices, int count, int64_t n, int64_t size) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= size) return;
  const T* const column = values.data + i / values.group * values.group_stride + i % values.group;
  float sum = 0;
  for (int64_t row = blockIdx.y; row < n; row += count) sum += to_float(column[row * values.stride]);
  slices[blockIdx.y * size + i] = sum;
}

template <class T>
const char* add_slices(const float* slices, void* total, int count, int64_t size, void* stream) {
  if (size == 0) return nullptr;
  return launch(add_slices_kernel<T>, Grid{divide_up(size, kSumThreads), kSumThreads}, stream, slices,
                static_cast<T*>(total), count, size);
}

// total[i] = sum of values[row, i] over n rows, by way of `count` slices.
template <class T>
const char* add_rows(const RowGroups<T>& values, float* slices, int count, int64_t n, int64_t size, void* total,
                     void* stream) {
  if (size == 0) return nullptr;
  Grid grid{divide_up(size, kSumThreads), kSumThreads};
  grid.y = count;
  const char* const error = launch(add_rows_kernel<T>, grid, stream, values, slices, count, n, size);
  return error ? error : add_slices<T>(slices, total, count, size, stream);
}

}  // namespace fastnest::cuda
