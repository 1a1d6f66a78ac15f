// Products of a warpgroup (four warps): d [64, N] += a [64, 32 bytes] b [32 bytes, N], float32 sums. a lies in shared
// memory or in registers, b in shared memory; both are read beside the threads until wait_for_products.
#pragma once

#include "cuda/device.h"

namespace fastnest::cuda::hopper {

using Address = uint32_t;     // in shared memory, in bytes
using Descriptor = uint64_t;  // of an operand in shared memory (fragment.h)

// Before a warpgroup's first product, and wherever its threads have changed registers of one since.
FASTNEST_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FASTNEST_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but kGroups of the groups that were committed are done.
template <int kGroups>
FASTNEST_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
// The compiler may not move registers of products across this: behind wait_for_products for those that it waited for,
// before begin_products for those that go in.
template <int N>
FASTNEST_DEVICE void keep(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
FASTNEST_DEVICE void keep(uint32_t (&a)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(a[i][j])::"memory");
}

// Specialised below by the element and by N: from_shared(d, a, b, add), from_registers(d, a, b, add); without `add` the
// sums begin at 0. kTransposed: a 16-bit b is N-major (its rows of 128 bytes are along N).
template <class T, int N>
struct Product;

// Registers of d in an instruction's text.
#define FASTNEST_R8_0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define FASTNEST_R8_1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define FASTNEST_R8_2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define FASTNEST_R8_3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define FASTNEST_R8_4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define FASTNEST_R8_5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define FASTNEST_R8_6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define FASTNEST_R8_7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define FASTNEST_R8_8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define FASTNEST_R8_9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define FASTNEST_R8_10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define FASTNEST_R8_11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define FASTNEST_R24 FASTNEST_R8_0 ", " FASTNEST_R8_1 ", " FASTNEST_R8_2
#define FASTNEST_R32 FASTNEST_R24 ", " FASTNEST_R8_3
#define FASTNEST_R48 FASTNEST_R32 ", " FASTNEST_R8_4 ", " FASTNEST_R8_5
#define FASTNEST_R64 FASTNEST_R48 ", " FASTNEST_R8_6 ", " FASTNEST_R8_7
#define FASTNEST_R72 FASTNEST_R64 ", " FASTNEST_R8_8
#define FASTNEST_R96 FASTNEST_R72 ", " FASTNEST_R8_9 ", " FASTNEST_R8_10 ", " FASTNEST_R8_11
// d as operands.
#define FASTNEST_D8(i)                                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define FASTNEST_D24 FASTNEST_D8(0), FASTNEST_D8(8), FASTNEST_D8(16)
#define FASTNEST_D32 FASTNEST_D24, FASTNEST_D8(24)
#define FASTNEST_D48 FASTNEST_D32, FASTNEST_D8(32), FASTNEST_D8(40)
#define FASTNEST_D64 FASTNEST_D48, FASTNEST_D8(48), FASTNEST_D8(56)
#define FASTNEST_D72 FASTNEST_D64, FASTNEST_D8(64)
#define FASTNEST_D96 FASTNEST_D72, FASTNEST_D8(72), FASTNEST_D8(80), FASTNEST_D8(88)

// One element and N. P0 to P5 are the operands behind d; SHARED_MAJOR and REGISTERS_MAJOR say which operands are
// transposed, which only 16-bit products can.
#define FASTNEST_WGMMA(T, KIND, N, COUNT, P0, P1, P2, P3, P4, P5, SHARED_MAJOR, REGISTERS_MAJOR)                    \
  template <>                                                                                                       \
  struct Product<T, N> {                                                                                            \
    template <bool kTransposed = false>                                                                             \
    static FASTNEST_DEVICE void from_shared(float (&d)[COUNT], Descriptor a, Descriptor b, bool add) {              \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N KIND        \
                   " {" FASTNEST_R##COUNT "}, %" P0 ", %" P1 ", p, 1, 1" SHARED_MAJOR ";\n}"                        \
                   : FASTNEST_D##COUNT                                                                              \
                   : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposed));                                 \
    }                                                                                                               \
    template <bool kTransposed = false>                                                                             \
    static FASTNEST_DEVICE void from_registers(float (&d)[COUNT], const uint32_t (&a)[4], Descriptor b, bool add) { \
      asm volatile(                                                                                                 \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %" P5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N KIND                 \
          " {" FASTNEST_R##COUNT "}, {%" P0 ", %" P1 ", %" P2 ", %" P3 "}, %" P4 ", p, 1, 1" REGISTERS_MAJOR ";\n}" \
          : FASTNEST_D##COUNT                                                                                       \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposed));      \
    }                                                                                                               \
  };
#define FASTNEST_WGMMA_OF(N, COUNT, P0, P1, P2, P3, P4, P5, P6)                                          \
  FASTNEST_WGMMA(BFloat16, "k16.f32.bf16.bf16", N, COUNT, P0, P1, P2, P3, P4, P5, ", 0, %" P3, ", %" P6) \
  FASTNEST_WGMMA(Half, "k16.f32.f16.f16", N, COUNT, P0, P1, P2, P3, P4, P5, ", 0, %" P3, ", %" P6)       \
  FASTNEST_WGMMA(float, "k8.f32.tf32.tf32", N, COUNT, P0, P1, P2, P3, P4, P5, "", "")

FASTNEST_WGMMA_OF(48, 24, "24", "25", "26", "27", "28", "29", "30")
FASTNEST_WGMMA_OF(64, 32, "32", "33", "34", "35", "36", "37", "38")
FASTNEST_WGMMA_OF(96, 48, "48", "49", "50", "51", "52", "53", "54")
FASTNEST_WGMMA_OF(128, 64, "64", "65", "66", "67", "68", "69", "70")
FASTNEST_WGMMA_OF(144, 72, "72", "73", "74", "75", "76", "77", "78")
FASTNEST_WGMMA_OF(192, 96, "96", "97", "98", "99", "100", "101", "102")

}  // namespace fastnest::cuda::hopper
