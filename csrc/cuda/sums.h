// Sums that blocks took side by side, each into a slice of its own, added in the slices' order: the same bits always.
#pragma once

#include "cuda/device.h"
#include "cuda/gradients.h"

namespace fastnest::cuda {

constexpr int kSumThreads = 256;

// slices[s, i] = sum of values[row, i] over the rows of slice s: every count-th.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    add_rows_kernel(const T* values, int64_t stride, float* slices, int count, int64_t n, int64_t size) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
  for (int64_t row = blockIdx.y; row < n; row += count) sum += to_float(values[row * stride + i]);
  slices[blockIdx.y * size + i] = sum;
}

constexpr int kTargetsInLaunch = 128;
struct Targets {
  Target target[kTargetsInLaunch];
};

// target[i] = sum of slices[s * size + begin + i] over s, for every target.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    add_slices_to_kernel(const float* slices, const __grid_constant__ Targets targets, int count, int64_t size) {
  const Target& target = targets.target[blockIdx.y];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= target.size) return;
  float sum = 0;
  for (int s = 0; s < count; ++s) sum += slices[s * size + target.begin + i];
  static_cast<T*>(target.data)[i] = from_float<T>(sum);
}

template <class T>
const char* add_slices_to(const Target* targets, int64_t targets_count, const float* slices, int count, int64_t size,
                          void* stream) {
  const char* error = nullptr;
  for (int64_t first = 0; first < targets_count && !error; first += kTargetsInLaunch) {
    Targets some{};
    Grid grid{0, kSumThreads};
    for (grid.y = 0; grid.y < kTargetsInLaunch && first + grid.y < targets_count; ++grid.y) {
      some.target[grid.y] = targets[first + grid.y];
      const int64_t blocks = divide_up(some.target[grid.y].size, kSumThreads);
      grid.x = grid.x < blocks ? blocks : grid.x;
    }
    if (grid.x) error = launch(add_slices_to_kernel<T>, grid, stream, slices, some, count, size);
  }
  return error;
}

// slices[s, i] = sum of values[row, i] over the rows of slice s, of n.
template <class T>
const char* slice_rows(const void* values, int64_t stride, float* slices, int count, int64_t n, int64_t size,
                       void* stream) {
  if (size == 0) return nullptr;
  Grid grid{divide_up(size, kSumThreads), kSumThreads};
  grid.y = count;
  return launch(add_rows_kernel<T>, grid, stream, static_cast<const T*>(values), stride, slices, count, n, size);
}

}  // namespace fastnest::cuda
