// The vector type of one instruction set. Included once per target by each_target.h, inside that target's namespace:
// no include guard, no includes. Kernels use the operators of the compiler's vector extension and what is named here.

constexpr int kLanes = FASTNEST_TARGET_LANES;
constexpr bool kHasBf16Dot = FASTNEST_TARGET_BF16;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HVec __attribute__((vector_size(2 * kLanes)));

#undef FASTNEST_INLINE
#define FASTNEST_INLINE static inline __attribute__((always_inline))

FASTNEST_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

FASTNEST_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }

FASTNEST_INLINE Vec broadcast(float x) {
#if FASTNEST_TARGET_LANES == 16
  return (Vec)_mm512_set1_ps(x);
#elif FASTNEST_TARGET_FMA
  return (Vec)_mm256_set1_ps(x);
#else
  return Vec{x, x, x, x};
#endif
}

// a * b + c, rounded once where the hardware can.
FASTNEST_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if FASTNEST_TARGET_LANES == 16
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FASTNEST_TARGET_FMA
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

FASTNEST_INLINE Vec select(IVec mask, Vec a, Vec b) { return mask ? a : b; }

// The larger of a and b; b where either is NaN.
FASTNEST_INLINE Vec maximum(Vec a, Vec b) {
#if FASTNEST_TARGET_LANES == 16
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif FASTNEST_TARGET_FMA
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// The bits of v rounded to bfloat16, to nearest even; a NaN keeps its sign and becomes quiet.
FASTNEST_INLINE UVec round_bf16(Vec v) {
  UVec bits = (UVec)v;
  UVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return v != v ? (bits >> 16) | 0x40u : rounded;
}

// Two floats rounded to bfloat16 in one 32-bit lane: `low` in the lower half, as two neighbours lie in memory.
FASTNEST_INLINE Vec pack_bf16(Vec low, Vec high) {
#if FASTNEST_TARGET_BF16
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (Vec)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
#else
  return (Vec)(round_bf16(low) | (round_bf16(high) << 16));
#endif
}

FASTNEST_INLINE Vec low_bf16(Vec pair) { return (Vec)((UVec)pair << 16); }
FASTNEST_INLINE Vec high_bf16(Vec pair) { return (Vec)((UVec)pair & 0xffff0000u); }

// One vector of kLanes consecutive elements of a tensor, widened to float32 and back (round to nearest even).
FASTNEST_INLINE Vec load(const BFloat16* p) {
  HVec h;
  __builtin_memcpy(&h, p, sizeof(h));
  return (Vec)(__builtin_convertvector(h, UVec) << 16);
}

FASTNEST_INLINE void store(BFloat16* p, Vec v) {
#if FASTNEST_TARGET_BF16
  __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
  HVec h = __builtin_convertvector(round_bf16(v), HVec);
#endif
  __builtin_memcpy(p, &h, sizeof(h));
}

FASTNEST_INLINE Vec load(const Half* p) {
  HVec h;
  __builtin_memcpy(&h, p, sizeof(h));
#if FASTNEST_TARGET_LANES == 16
  return (Vec)_mm512_cvtph_ps((__m256i)h);
#elif FASTNEST_TARGET_FMA
  return (Vec)_mm256_cvtph_ps((__m128i)h);
#else
  // Exponent and mantissa move up by 13 bits; a multiplication by 2^112 mends the exponent's bias, subnormals included.
  UVec bits = __builtin_convertvector(h, UVec);
  UVec magnitude = (bits & 0x7fffu) << 13;
  UVec scaled = (UVec)((Vec)magnitude * 0x1p112f);
  UVec special = magnitude | 0x7f800000u;
  return (Vec)(((bits & 0x7fffu) >= 0x7c00u ? special : scaled) | ((bits & 0x8000u) << 16));
#endif
}

FASTNEST_INLINE void store(Half* p, Vec v) {
#if FASTNEST_TARGET_LANES == 16
  HVec h = (HVec)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif FASTNEST_TARGET_FMA
  HVec h = (HVec)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  UVec bits = (UVec)v, sign = (bits >> 16) & 0x8000u;
  Vec magnitude = (Vec)(bits & 0x7fffffffu);
  // Below 2^-14 the result is subnormal: adding 1/2 makes the float32 adder round at 2^-24, its last bit.
  UVec subnormal = (UVec)(magnitude + 0.5f) - 0x3f000000u;
  UVec m = (UVec)magnitude;
  UVec normal = (m - 0x38000000u + 0xfffu + ((m >> 13) & 1u)) >> 13;
  normal = normal > 0x7c00u ? (normal - normal) + 0x7c00u : normal;
  UVec half = magnitude < 0x1p-14f ? subnormal : normal;
  half = m >= 0x7f800000u ? (m > 0x7f800000u ? (m - m) + 0x7e00u : (m - m) + 0x7c00u) : half;
  HVec h = __builtin_convertvector(half | sign, HVec);
#endif
  __builtin_memcpy(p, &h, sizeof(h));
}

FASTNEST_INLINE float to_float(float x) { return x; }
FASTNEST_INLINE float to_float(BFloat16 x) {
  uint32_t bits = (uint32_t)x.bits << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
FASTNEST_INLINE float to_float(Half x) {
  Half lane[kLanes] = {x};
  return load(lane)[0];
}

template <class T>
FASTNEST_INLINE T from_float(float x) {
  T lane[kLanes];
  store(lane, broadcast(x));
  return lane[0];
}

// v as it will read after being stored as T.
template <class T>
FASTNEST_INLINE Vec round_to(Vec v) {
  T lane[kLanes];
  store(lane, v);
  return load(lane);
}
template <>
inline __attribute__((always_inline)) Vec round_to<float>(Vec v) {
  return v;
}

FASTNEST_INLINE float sum(Vec v) {
  float s[kLanes];
  __builtin_memcpy(s, &v, sizeof(v));
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
}
