// csrc/cuda/device.h for the CPU (blocks.cpp): the threads of a cluster's blocks are fibres, which one thread of the
// process runs in turns. A fibre runs until it waits for others, so that warps are as far apart as barriers let them
// be.
//
// What a GPU leaves open is made the worst of: shared memory begins as NaN; copies that go on beside the thread are
// done at once, or only when it waits for them; and the first thread to run is the first or the last (Order). A barrier
// that not all threads reach, and lanes of a warp that call different functions, end the process with a message.
#pragma once

#include <math.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

#include "common/element.h"
#include "cuda/launch.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __grid_constant__
#define FASTNEST_DEVICE inline
#define FASTNEST_SHARED(name) unsigned char* const name = fastnest::cuda::host::shared_memory()

using std::isfinite;

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = void*;

using std::max, std::min;

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

void __syncthreads();
void __syncwarp();
float __shfl_sync(unsigned mask, float value, int lane);
float __shfl_xor_sync(unsigned mask, float value, int lanes);
template <class T>
T __ldg(const T* p) {
  return *p;
}

namespace fastnest::cuda {

namespace host {

// Which thread runs first, and when copies are done.
enum class Order { kFirstThreadLateCopies, kLastThreadEarlyCopies };
extern Order order;

unsigned char* shared_memory();

// The device that launchers find.
extern Device device;

// Launches are checked, and nothing runs.
extern bool only_launch;

// Runs a kernel's blocks, a cluster at a time.
void run(const Grid& grid, const std::function<void()>& kernel);

}  // namespace host

inline int forgotten(int x) { return x; }

inline float to_float(float x) { return x; }
float to_float(BFloat16 x);
float to_float(Half x);
template <class T>
T from_float(float x);
template <class T>
uint32_t pack(float first, float second) {
  return from_float<T>(first).bits | static_cast<uint32_t>(from_float<T>(second).bits) << 16;
}
inline float as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
uint32_t to_tf32(float x);

template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <bool kTransposed>
void load_matrices(uint32_t (&r)[4], const void* row);

void copy_16_bytes(void* shared, const void* global, int bytes);
void commit_copies();
void wait_for_copies(int groups);
template <int kGroups>
void wait_for_copies() {
  wait_for_copies(kGroups);
}

inline void add_in_place(float* sum, float value) { *sum += value; }

int cluster_rank();
void cluster_barrier();
float4 load_from_cluster(const float4* own, int rank);

inline Device current_device() { return host::device; }
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), const Grid& grid, void*, const Arguments&... arguments) {
  host::run(grid, [&] { kernel(arguments...); });
  return nullptr;
}

}  // namespace fastnest::cuda
