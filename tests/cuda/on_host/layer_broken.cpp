// Mistakes that the layer has to see.
#include "layer.h"

namespace layer {
namespace {

// Without a barrier each reads what its neighbour below wrote, or is about to.
__global__ void missing_barrier_kernel(float* seen) {
  FASTNEST_SHARED(shared);
  auto* const values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  seen[threadIdx.x] = threadIdx.x ? values[threadIdx.x - 1] : -1;
}
bool breaks_missing_barrier() {
  std::vector<float> seen(64);
  launch(missing_barrier_kernel, Grid{1, 64, 256}, nullptr, seen.data());
  for (int i = 0; i < 64; ++i)
    if (seen[i] != static_cast<float>(i - 1)) return holds(false, "each sees its neighbour's");
  return true;
}

__global__ void barrier_of_some_kernel() {
  if (threadIdx.x < 32) __syncthreads();
}
bool breaks_barrier_of_some() { return !launch(barrier_of_some_kernel, Grid{1, 64}, nullptr); }

__global__ void diverging_kernel() {
  FASTNEST_SHARED(shared);
  uint32_t r[4];
  if (threadIdx.x < 16) load_matrices<false>(r, shared);
  else load_matrices<true>(r, shared);
}
bool breaks_diverging_lanes() { return !launch(diverging_kernel, Grid{1, 32, 16}, nullptr); }

__global__ void behind_shared_kernel(float* seen) {
  FASTNEST_SHARED(shared);
  seen[threadIdx.x] = reinterpret_cast<const float*>(shared)[threadIdx.x + 1];
}
bool breaks_behind_shared_memory() {
  std::vector<float> seen(32);
  return !launch(behind_shared_kernel, Grid{1, 32, 128}, nullptr, seen.data());
}

__global__ void behind_memory_kernel(const float* from) {
  FASTNEST_SHARED(shared);
  copy_16_bytes(shared, from + 4 * threadIdx.x, 16);
  wait_for_copies<0>();
  commit_copies();
  wait_for_copies<0>();
}
bool breaks_behind_memory() {
  std::vector<float> from(4 * 31);
  return !launch(behind_memory_kernel, Grid{1, 32, 16}, nullptr, static_cast<const float*>(from.data()));
}

__global__ void unaligned_copy_kernel(const float* from) {
  FASTNEST_SHARED(shared);
  copy_16_bytes(shared, from + 1, 16);
}
bool breaks_unaligned_copy() {
  alignas(16) const float from[8] = {};
  return !launch(unaligned_copy_kernel, Grid{1, 32, 16}, nullptr, static_cast<const float*>(from));
}

__global__ void unaligned_load_kernel() {
  FASTNEST_SHARED(shared);
  uint32_t r[4];
  load_matrices<false>(r, shared + 8);
}
bool breaks_unaligned_load() { return !launch(unaligned_load_kernel, Grid{1, 32, 64}, nullptr); }

__global__ void unfinished_copy_kernel(const float* from) {
  FASTNEST_SHARED(shared);
  copy_16_bytes(shared, from, 16);
  commit_copies();
}
bool breaks_unfinished_copy() {
  alignas(16) const float from[4] = {};
  return !launch(unfinished_copy_kernel, Grid{1, 32, 16}, nullptr, static_cast<const float*>(from));
}

__global__ void nothing_kernel() {}
bool breaks_too_much_shared_memory() {
  return !launch(nothing_kernel, Grid{1, 32, host::device.shared_bytes + 1}, nullptr);
}
bool breaks_cluster_where_there_is_none() {
  host::device.clusters = false;
  return !launch(nothing_kernel, Grid{2, 32, 0, 2}, nullptr);
}

}  // namespace

const Checks kBroken = {
    {"breaks_missing_barrier", breaks_missing_barrier},
    {"breaks_barrier_of_some", breaks_barrier_of_some},
    {"breaks_diverging_lanes", breaks_diverging_lanes},
    {"breaks_behind_shared_memory", breaks_behind_shared_memory},
    {"breaks_behind_memory", breaks_behind_memory},
    {"breaks_unaligned_copy", breaks_unaligned_copy},
    {"breaks_unaligned_load", breaks_unaligned_load},
    {"breaks_unfinished_copy", breaks_unfinished_copy},
    {"breaks_too_much_shared_memory", breaks_too_much_shared_memory},
    {"breaks_cluster_where_there_is_none", breaks_cluster_where_there_is_none},
};

}  // namespace layer
