// Which of the compiled instruction sets runs; best first.
#pragma once

#include <atomic>

namespace fastnest {

enum class InstructionSet { kAvx512Bf16, kAvx512, kAvx2, kPortable };
inline constexpr const char* kInstructionSetNames[] = {"avx512_bf16", "avx512", "avx2", "portable"};

inline bool runs_here(InstructionSet set) {
#if defined(FASTNEST_ENDS_ONLY)
  if (set == InstructionSet::kAvx512 || set == InstructionSet::kAvx2) return false;
#endif
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (set) {
    case InstructionSet::kAvx512Bf16: return avx512 && __builtin_cpu_supports("avx512bf16");
    case InstructionSet::kAvx512: return avx512;
    case InstructionSet::kAvx2: return avx2;
    default: return true;
  }
#else
  return set == InstructionSet::kPortable;
#endif
}

inline InstructionSet best_instruction_set() {
  for (auto set : {InstructionSet::kAvx512Bf16, InstructionSet::kAvx512, InstructionSet::kAvx2})
    if (runs_here(set)) return set;
  return InstructionSet::kPortable;
}

// The set in use: the best one, unless a test forces another.
inline std::atomic<InstructionSet>& instruction_set() {
  static std::atomic<InstructionSet> current{best_instruction_set()};
  return current;
}

}  // namespace fastnest
