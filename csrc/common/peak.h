// What one core can do at most: the yardstick that benchmarks hold the kernels against.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/instruction_set.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastnest {

#if defined(__x86_64__)
// Twelve accumulators cover the latency of two units; the empty statement keeps the loop from being folded.
#define FASTNEST_PEAK(name, features, vector, lanes_flops, zero, step)                                              \
  __attribute__((target(features))) inline double name(int64_t rounds) {                                            \
    vector a0 = zero, a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;                                \
    vector a8 = a0, a9 = a0, a10 = a0, a11 = a0, b = zero;                                                          \
    asm volatile("" : "+v"(b));                                                                                     \
    for (int64_t i = 0; i < rounds; ++i) {                                                                          \
      step(a0) step(a1) step(a2) step(a3) step(a4) step(a5) step(a6) step(a7) step(a8) step(a9) step(a10) step(a11) \
    }                                                                                                               \
    return 12.0 * rounds * lanes_flops;                                                                             \
  }
#define FASTNEST_STEP_F32_512(a) \
  a = _mm512_fmadd_ps(b, b, a);  \
  asm volatile("" : "+v"(a));
#define FASTNEST_STEP_BF16_512(a)                    \
  a = _mm512_dpbf16_ps(a, (__m512bh)b, (__m512bh)b); \
  asm volatile("" : "+v"(a));
#define FASTNEST_STEP_F32_256(a) \
  a = _mm256_fmadd_ps(b, b, a);  \
  asm volatile("" : "+v"(a));
FASTNEST_PEAK(peak_float32_512, "avx512f", __m512, 32, _mm512_setzero_ps(), FASTNEST_STEP_F32_512)
FASTNEST_PEAK(peak_bfloat16_512, "avx512f,avx512bf16", __m512, 64, _mm512_setzero_ps(), FASTNEST_STEP_BF16_512)
FASTNEST_PEAK(peak_float32_256, "avx2,fma", __m256, 16, _mm256_setzero_ps(), FASTNEST_STEP_F32_256)
#endif

inline double peak_portable(int64_t rounds) {
  typedef float Four __attribute__((vector_size(16)));
  Four a[8] = {}, b = {1e-3f, 1e-3f, 1e-3f, 1e-3f};
  for (int64_t i = 0; i < rounds; ++i)
    for (auto& x : a) x = b * b + x;
  volatile float sink = a[0][0] + a[7][3];
  (void)sink;
  return 8.0 * rounds * 8;
}

// The best of several short bursts within the given time. Where bfloat16 has no instruction it runs as float32.
inline double peak_gflops(const std::string& dtype, double seconds) {
  if (dtype != "float32" && dtype != "bfloat16")
    throw std::invalid_argument("peak_gflops: dtype must be 'float32' or 'bfloat16', got '" + dtype + "'");
  double (*burst)(int64_t) = peak_portable;
#if defined(__x86_64__)
  const InstructionSet set = instruction_set();
  if (set == InstructionSet::kAvx512Bf16 && dtype == "bfloat16") burst = peak_bfloat16_512;
  else if (set <= InstructionSet::kAvx512) burst = peak_float32_512;
  else if (set == InstructionSet::kAvx2) burst = peak_float32_256;
#endif
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
  double best = 0;
  do {
    const auto start = Clock::now();
    const double flops = burst(200'000);
    best = std::max(best, flops / std::chrono::duration<double>(Clock::now() - start).count() * 1e-9);
  } while (Clock::now() < deadline);
  return best;
}

}  // namespace fastnest
