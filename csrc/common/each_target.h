// Compiles FASTNEST_KERNEL once per instruction set, each in its own namespace, so that one binary serves every CPU.
// Deliberately without an include guard: each op's source includes it once with its own FASTNEST_KERNEL.
// FASTNEST_ENDS_ONLY leaves out the two in the middle, for builds under sanitizers, which compile for minutes.
#if !defined(FASTNEST_KERNEL)
#error "define FASTNEST_KERNEL before including each_target.h"
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/activation_kind.h"
#include "common/element.h"
#include "common/instruction_set.h"
#include "common/lockstep.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FASTNEST_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FASTNEST_BEGIN_TARGET(features) \
  FASTNEST_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FASTNEST_END_TARGET _Pragma("clang attribute pop")
#else
#define FASTNEST_BEGIN_TARGET(features) _Pragma("GCC push_options") FASTNEST_PRAGMA(GCC target(features))
#define FASTNEST_END_TARGET _Pragma("GCC pop_options")
#endif

#define FASTNEST_TARGET_LANES 16
#define FASTNEST_TARGET_FMA 1
#define FASTNEST_TARGET_BF16 1
FASTNEST_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
namespace fastnest::avx512_bf16 {
#include "common/target.h"
#include FASTNEST_KERNEL
}
FASTNEST_END_TARGET

#undef FASTNEST_TARGET_BF16
#if !defined(FASTNEST_ENDS_ONLY)
#define FASTNEST_TARGET_BF16 0
FASTNEST_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace fastnest::avx512 {
#include "common/target.h"
#include FASTNEST_KERNEL
}
FASTNEST_END_TARGET

#undef FASTNEST_TARGET_LANES
#define FASTNEST_TARGET_LANES 8
FASTNEST_BEGIN_TARGET("avx2,fma,f16c")
namespace fastnest::avx2 {
#include "common/target.h"
#include FASTNEST_KERNEL
}
FASTNEST_END_TARGET
#undef FASTNEST_TARGET_BF16
#endif  // FASTNEST_ENDS_ONLY

#undef FASTNEST_TARGET_LANES
#undef FASTNEST_TARGET_FMA
#endif  // __x86_64__

#define FASTNEST_TARGET_LANES 4
#define FASTNEST_TARGET_FMA 0
#define FASTNEST_TARGET_BF16 0
namespace fastnest::portable {
#include "common/target.h"
#include FASTNEST_KERNEL
}
#undef FASTNEST_TARGET_LANES
#undef FASTNEST_TARGET_FMA
#undef FASTNEST_TARGET_BF16
#undef FASTNEST_KERNEL

// function(...) as compiled for the instruction set in use.
#if defined(__x86_64__) && defined(FASTNEST_ENDS_ONLY)
#define FASTNEST_RUN(function, ...)                                                                       \
  (::fastnest::instruction_set().load(std::memory_order_relaxed) == ::fastnest::InstructionSet::kPortable \
       ? ::fastnest::portable::function(__VA_ARGS__)                                                      \
       : ::fastnest::avx512_bf16::function(__VA_ARGS__))
#elif defined(__x86_64__)
#define FASTNEST_RUN(function, ...)                                                                        \
  [&] {                                                                                                    \
    switch (::fastnest::instruction_set().load(std::memory_order_relaxed)) {                               \
      case ::fastnest::InstructionSet::kAvx512Bf16: return ::fastnest::avx512_bf16::function(__VA_ARGS__); \
      case ::fastnest::InstructionSet::kAvx512: return ::fastnest::avx512::function(__VA_ARGS__);          \
      case ::fastnest::InstructionSet::kAvx2: return ::fastnest::avx2::function(__VA_ARGS__);              \
      default: return ::fastnest::portable::function(__VA_ARGS__);                                         \
    }                                                                                                      \
  }()
#else
#define FASTNEST_RUN(function, ...) ::fastnest::portable::function(__VA_ARGS__)
#endif
