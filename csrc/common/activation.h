// The activation functions on vectors, with their derivatives. Included once per instruction set after vector.h: no
// include guard, no includes. Branch-free, no tables; NaN, infinities and signed zeros come out as torch has them in
// float64: silu and gelu are NaN at -inf and their derivatives at both infinities, but never at a finite z.
//
// The coefficients are minimax fits made for this file, rounded to float one after another with the remaining ones
// fitted again. "ulp" counts units in the last place of the result, as tests/common measures them.

// The lesser of x and bound, the greater of x and bound; a NaN in x stays.
FASTNEST_INLINE Vec at_most(Vec x, float bound) {
#if FASTNEST_TARGET_LANES == 16
  return (Vec)_mm512_min_ps((__m512)broadcast(bound), (__m512)x);
#elif FASTNEST_TARGET_FMA
  return (Vec)_mm256_min_ps((__m256)broadcast(bound), (__m256)x);
#else
  return broadcast(bound) < x ? broadcast(bound) : x;
#endif
}
FASTNEST_INLINE Vec at_least(Vec x, float bound) { return maximum(broadcast(bound), x); }

// c[0] + c[1] t + c[2] t^2 + ...
template <int kTerms>
FASTNEST_INLINE Vec polynomial(Vec t, const float (&c)[kTerms]) {
  Vec sum = broadcast(c[kTerms - 1]);
#pragma GCC unroll 8
  for (int i = kTerms - 2; i >= 0; --i) sum = fma(sum, t, broadcast(c[i]));
  return sum;
}

// x = n log 2 + rest with |rest| <= log(2) / 2 and scale = 2^n, for |x| <= 88; NaN for NaN.
struct Reduced {
  Vec scale, rest;
};

FASTNEST_INLINE Reduced reduce(Vec x) {
  constexpr float kLog2High = 0.693359375f, kLog2Low = -0x1.bd0106p-13f;  // n kLog2High is exact
  constexpr float kRound = 0x1.8p23f + 127.0f;  // adding it leaves n + 127, rounded to nearest, in the low bits
  const Vec shifted = fma(x, broadcast(0x1.715476p0f), broadcast(kRound));
  const Vec n = shifted - broadcast(kRound);
  return {(Vec)((IVec)shifted << 23), fma(n, broadcast(-kLog2Low), fma(n, broadcast(-kLog2High), x))};
}

// e^r - 1 = r + r^2 q(r) for |r| <= log(2) / 2; q's fit is 1.4e-8 / |r| off. That one is not added here lets the
// callers form scale (1 + exp_minus_one) + more in one rounding.
FASTNEST_INLINE Vec exp_minus_one(Vec r) {
  constexpr float kQ[] = {0.5f, 0x1.5554b2p-3f, 0x1.5554c8p-5f, 0x1.12267ep-7f, 0x1.6d721ap-10f};
  return fma(r * r, polynomial(r, kQ), r);
}

// 1 / (1 + e^-z), at most 2 ulp, and 1 / (1 + e^z) without the cancellation of 1 - value. Zeros end both, so that
// their products with large z do: value for z < -88, where it is denormal, complement for |z| > 80.
struct Sigmoid {
  Vec value, complement;
};

FASTNEST_INLINE Sigmoid sigmoid(Vec z) {
  const Reduced x = reduce(at_least(-z, -87.0f));
  const Vec e = exp_minus_one(x.rest);
  const Vec value = 1.0f / (x.scale + fma(x.scale, e, broadcast(1.0f)));
  const Vec magnitude = (Vec)((IVec)z & 0x7fffffff);
  return {select(z < broadcast(-88.0f), Vec{}, value),
          select(magnitude < broadcast(80.0f), fma(x.scale, e, x.scale) * value, Vec{})};
}

// e^(-z^2 / 2) / sqrt(2 pi); 0 where it is denormal.
FASTNEST_INLINE Vec normal_density(Vec z) {
  const Vec exponent = z * z * broadcast(-0.5f);
  const Reduced x = reduce(exponent);
  const Vec density = broadcast(0x1.988454p-2f) * fma(x.scale, exp_minus_one(x.rest), x.scale);
  return select(exponent < broadcast(-86.0f), Vec{}, density);
}

// tanh z, at most 2 ulp: for |z| < 0.55 |z| + |z|^3 p(z^2), p's fit 1e-9 off, then 1 - 2 / (1 + e^(2 |z|)), which loses
// little as at most 1/2 is taken away.
FASTNEST_INLINE Vec tanh(Vec z) {
  constexpr float kP[] = {-0x1.55554cp-2f, 0x1.110d66p-3f, -0x1.b93108p-5f, 0x1.597972p-6f, -0x1.9c5e98p-8f};
  const IVec sign = (IVec)z & (IVec)broadcast(-0.0f);
  const Vec magnitude = (Vec)((IVec)z ^ sign), square = magnitude * magnitude;
  const Vec near = fma(magnitude * square, polynomial(square, kP), magnitude);
  const Vec bounded = at_most(magnitude, 9.1f);  // 1 from there on
  const Reduced x = reduce(bounded + bounded);
  const Vec far = 1.0f - 2.0f / (x.scale + fma(x.scale, exp_minus_one(x.rest), broadcast(1.0f)));
  return (Vec)((IVec)select(magnitude < broadcast(0.55f), near, far) | sign);
}

template <Activation kA>
struct ValueAndDerivative {
  Vec value, derivative;
};

// act(h) and act'(h), where h is what the backward keeps: act's output where it is idempotent, else z. Whatever of
// the two is not used costs nothing.
template <Activation kA>
FASTNEST_INLINE ValueAndDerivative<kA> value_and_derivative(Vec h) {
  const Vec one = broadcast(1.0f);
  if constexpr (kA == Activation::kIdentity) {
    return {h, one};
  } else if constexpr (kA == Activation::kRelu) {
    return {maximum(Vec{}, h), select(h <= Vec{}, Vec{}, one)};  // NaN: value NaN, derivative 1
  } else if constexpr (kA == Activation::kLeakyRelu) {
    const Vec slope = select(h > Vec{}, one, broadcast(0.01f));  // NaN: value NaN, derivative 0.01
    return {h * slope, slope};
  } else if constexpr (kA == Activation::kTanh) {
    const Vec y = tanh(h);
    return {y, fma(-y, y, one)};
  } else if constexpr (kA == Activation::kSilu) {
    const Sigmoid s = sigmoid(h);
    const Vec y = h * s.value;
    return {y, fma(y, s.complement, s.value)};
  } else if constexpr (kA == Activation::kGelu) {
    // Phi(h) = sigmoid(h logit(h^2)), |error of h Phi(h)| <= 2.4e-8 max(1, |h|); Phi' is the normal density.
    constexpr float kLogit[] = {0x1.98846cp+0f,  0x1.29a1dap-4f,   -0x1.09fec6p-14f, -0x1.d2a314p-14f,
                                0x1.0db486p-17f, -0x1.24fb24p-22f, 0x1.0176e8p-28f};
    const Vec cdf = sigmoid(h * polynomial(at_most(h * h, 30.25f), kLogit)).value;
    return {h * cdf, fma(h, normal_density(h), cdf)};
  } else {
    static_assert(kA == Activation::kGeluTanh);
    // (1 + tanh u) / 2 = sigmoid(2 u) with 2 u = h (c + d h^2); the bound keeps inf * 0 out for finite h.
    constexpr float kC = 0x1.988454p+0f, kD = 0x1.2444f2p-4f;
    const Vec square = at_most(h * h, 1e30f);
    const Sigmoid s = sigmoid(h * fma(square, broadcast(kD), broadcast(kC)));
    const Vec y = h * s.value;
    return {y, fma(y * s.complement, fma(square, broadcast(3 * kD), broadcast(kC)), s.value)};
  }
}

template <Activation kA>
FASTNEST_INLINE Vec activate(Vec z) {
  return value_and_derivative<kA>(z).value;
}

template <Activation kA>
FASTNEST_INLINE Vec derivative(Vec h) {
  return value_and_derivative<kA>(h).derivative;
}
