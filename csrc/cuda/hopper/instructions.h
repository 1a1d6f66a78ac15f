// The instructions of sm_90a that Hopper kernels are made of, one function each: barriers in shared memory, TMA,
// matrices for a warp, warpgroup products (wgmma.h), registers, and launches that overlap.
//
// tests/cuda/on_host has another file of this name, with which the same kernels run on the CPU. A kernel's body stands
// inside `#if FASTNEST_HOPPER`: compiled for another GPU it only traps, and launchers never choose it there.
#pragma once

#include "cuda/device.h"
#include "cuda/hopper/tensor_map.h"
#include "cuda/hopper/wgmma.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FASTNEST_HOPPER 1
#else
#define FASTNEST_HOPPER 0
#endif

namespace fastnest::cuda::hopper {

FASTNEST_DEVICE void trap() { __trap(); }

// The index of a thread's warp, as a number that is known to be the same in all of its lanes.
FASTNEST_DEVICE int warp_index() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0); }

// Barriers: 8 bytes in shared memory. A phase is over when `arrivals` threads have arrived and all bytes that they
// expect have been loaded; phases are numbered 0, 1, 0, 1, ... (their parity).

FASTNEST_DEVICE void init_barrier(Address barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After all init_barrier of a thread, before the __syncthreads or cluster_barrier that shows them to the others.
FASTNEST_DEVICE void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
FASTNEST_DEVICE void arrive(Address barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// At the barrier of the cluster's block `rank` that lies where this block has `barrier`.
FASTNEST_DEVICE void arrive_in_cluster(Address barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
// Arrives, and lets the phase wait for that many bytes too.
FASTNEST_DEVICE void arrive_expecting(Address barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
FASTNEST_DEVICE bool is_over(Address barrier, int parity) {
  uint32_t over;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(over)
               : "r"(barrier), "r"(parity)
               : "memory");
  return over;
}
// Returns when the phase of that parity is over. A phase that never ends must not hang the GPU: after a few seconds,
// and a thousand polls in case a debugger held the GPU, it leaves a note (driver.h) and traps. (No printf: with a call
// in a kernel, ptxas makes each product wait for the one before.)
FASTNEST_DEVICE void wait(Address barrier, int parity, volatile int* note, int where) {
  constexpr int kPolls = 1 << 10;
  constexpr uint32_t kTicks = 2;  // of 2^32 cycles
  if (is_over(barrier, parity)) return;
  const auto now = [] {
    uint32_t ticks;
    asm volatile("mov.u32 %0, %%clock_hi;" : "=r"(ticks));
    return ticks;
  };
  const uint32_t start = now();
  do {
#pragma unroll 1
    for (int i = 0; i < kPolls; ++i)
      if (is_over(barrier, parity)) return;
  } while (now() - start < kTicks);
  if (note) {
    note[0] = where, note[1] = static_cast<int>(blockIdx.x), note[2] = static_cast<int>(threadIdx.x), note[3] = parity;
    __threadfence_system();
  }
  __trap();
}
// A barrier of the hardware, 1 to 15, for `threads` threads of a block.
FASTNEST_DEVICE void named_barrier(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// TMA: one thread asks for a box of a tensor, which is copied beside the threads. A load counts its bytes at a barrier;
// what lies outside of the tensor arrives as 0 and counts too. Coordinates are the box's first element, innermost
// dimension first.

FASTNEST_DEVICE void prefetch(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

FASTNEST_DEVICE void load_box(Address to, const TensorMap& map, Address barrier, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1)
      : "memory");
}
FASTNEST_DEVICE void load_box(Address to, const TensorMap& map, Address barrier, int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}
// The same bytes for every block of the cluster whose bit is set, each at its own `to` and counted at its own barrier.
FASTNEST_DEVICE void load_box_multicast(Address to, const TensorMap& map, Address barrier, int blocks, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "h"(static_cast<uint16_t>(blocks))
      : "memory");
}
// Consecutive bytes, a multiple of 16, with no tensor map.
FASTNEST_DEVICE void load_bytes(Address to, const void* from, Address barrier, int bytes) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %3, [%2];" ::"r"(to),
               "l"(from), "r"(barrier), "r"(bytes)
               : "memory");
}
// Between a block's writes to shared memory and TMA's or a product's reads of it.
FASTNEST_DEVICE void show_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
FASTNEST_DEVICE void store_box(const TensorMap& map, Address from, int c0, int c1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(from),
               "r"(c0), "r"(c1)
               : "memory");
}
FASTNEST_DEVICE void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but kGroups of this thread's groups of stores have read what they store.
template <int kGroups>
FASTNEST_DEVICE void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements, as load_matrices of device.h, by the address of a lane's row.
FASTNEST_DEVICE void load_matrices(uint32_t (&r)[4], Address row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// max(x, 0) in one register, the first in its low half; NaN stays.
template <class T>
FASTNEST_DEVICE uint32_t pack_relu(float first, float second);
template <>
FASTNEST_DEVICE uint32_t pack_relu<BFloat16>(float first, float second) {
  uint32_t both;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}
template <>
FASTNEST_DEVICE uint32_t pack_relu<Half>(float first, float second) {
  uint32_t both;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

// Registers of a warpgroup's threads, handed between warpgroups: all of its warps call it, with a multiple of 8.
template <int kCount>
FASTNEST_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
FASTNEST_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Launches that overlap (Grid::overlaps): the next kernel may start once every block has let it, and waits for this one
// to end, and for its writes, before it reads them or writes what this one reads.
FASTNEST_DEVICE void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
FASTNEST_DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

}  // namespace fastnest::cuda::hopper
