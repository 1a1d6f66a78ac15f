// All that the kernels need of a GPU, and of CUDA beside its own names (threadIdx, __syncthreads, __shfl_xor_sync).
//
// tests/cuda/on_host has another file of this name, with which a C++ compiler makes of the same kernels functions that
// run their blocks on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <unordered_map>

#include "common/element.h"
#include "cuda/launch.h"

#define FASTNEST_DEVICE __device__ __forceinline__
// Dynamic shared memory, 128-byte aligned.
#define FASTNEST_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

namespace fastnest::cuda {

// The same number, of unknown origin: what a loop makes of it is made again each time, not kept in registers
// throughout.
FASTNEST_DEVICE int forgotten(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Numbers.

FASTNEST_DEVICE float to_float(float x) { return x; }
FASTNEST_DEVICE float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
FASTNEST_DEVICE float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T>
FASTNEST_DEVICE T from_float(float x);
template <>
FASTNEST_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
FASTNEST_DEVICE BFloat16 from_float<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
FASTNEST_DEVICE Half from_float<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// Two numbers in one register, the first in its low half.
template <class T>
FASTNEST_DEVICE uint32_t pack(float first, float second);
template <>
FASTNEST_DEVICE uint32_t pack<BFloat16>(float first, float second) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}
template <>
FASTNEST_DEVICE uint32_t pack<Half>(float first, float second) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

FASTNEST_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }

// The nearest TF32 number, as the bits of a float.
FASTNEST_DEVICE uint32_t to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

// Tensor cores. The threads of a warp hold a tile together; with g = lane / 4 and t = lane % 4:
//   d [16, 8]:            (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//   16 bit, a [16, 16]:   pairs at (g, 2t) (g+8, 2t) (g, 2t+8) (g+8, 2t+8);   b [16, 8]: pairs at (2t, g) (2t+8, g)
//   TF32,   a [16, 8]:    (g, t) (g+8, t) (g, t+4) (g+8, t+4);                b [8, 8]:  (t, g) (t+4, g)

template <class T>
FASTNEST_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
FASTNEST_DEVICE void multiply_add<BFloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
FASTNEST_DEVICE void multiply_add<Half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
FASTNEST_DEVICE void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FASTNEST_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives where row l % 8 of matrix l / 8 begins (16
// bytes, aligned), and gets of every matrix the pair at (g, 2t), or of its transpose.
template <bool kTransposed>
FASTNEST_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Copies that go on while the thread does: `bytes` of 16 come from memory, the rest is zero. Those since the last
// commit are a group; wait<kGroups> returns when at most that many groups of this thread are still going on.
FASTNEST_DEVICE void copy_16_bytes(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
FASTNEST_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
FASTNEST_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Adds to what this thread alone adds to, in its own order, and goes on.
FASTNEST_DEVICE void add_in_place(float* sum, float value) {
  asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(sum), "f"(value) : "memory");
}

// Clusters: blocks that run together and read one another's shared memory. A part older than sm_90 has clusters of one.

FASTNEST_DEVICE int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#else
  return 0;
#endif
}
// Of all threads of the cluster; what they wrote to shared memory before is there for all of them.
FASTNEST_DEVICE void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
// Four floats of the shared memory of the cluster's block `rank`, where this block has `own`.
FASTNEST_DEVICE float4 load_from_cluster(const float4* own, int rank) {
#if __CUDA_ARCH__ >= 900
  uint32_t address;
  float4 value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(address)
               : "memory");
  return value;
#else
  return *own;
#endif
}

// Launches.

// Asked once per thread and device: five questions at every launch would cost more than the launch.
inline Device current_device() {
  thread_local std::unordered_map<int, Device> known;
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  Device& facts = known[device];
  if (facts.multiprocessors) return facts;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&facts.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&facts.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  facts.clusters = major >= 9;
  facts.capability = 10 * major + minor;
  return facts;
}

// Lets a kernel have that much shared memory; more than the first 48 KB have to be asked for, once per thread and
// device.
inline cudaError_t allow_shared_bytes(const void* kernel, int bytes) {
  constexpr int kWithoutAsking = 48 << 10;
  if (bytes <= kWithoutAsking) return cudaSuccess;
  thread_local std::unordered_map<int, std::unordered_map<const void*, int>> allowed;
  int device = 0;
  cudaGetDevice(&device);
  int& most = allowed[device][kernel];
  if (bytes <= most) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) most = bytes;
  return error;
}

// Null, or why it could not be launched.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), const Grid& grid, void* stream, const Arguments&... arguments) {
  cudaError_t error = allow_shared_bytes(reinterpret_cast<const void*>(kernel), grid.shared_bytes);
  if (error == cudaSuccess) {
    cudaLaunchAttribute attributes[2] = {};
    int count = 0;
    if (grid.cluster > 1) {
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count++].val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
    }
    if (grid.overlaps) {
      attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid.x, grid.y, grid.z);
    config.blockDim = dim3(grid.threads);
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    config.numAttrs = count;
    error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastnest::cuda
