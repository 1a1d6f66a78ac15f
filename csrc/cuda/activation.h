// The activation functions and their derivatives in float32, by the formulas of fastnest's reference. Which one is
// known only when the kernel runs, in a branch that all threads take alike.
//
// A thread's values are in registers, of which no loop can ask for the i-th: every function would be there once a
// value. Of the piecewise linear ones that is one or two instructions. The others go through shared memory, where a
// loop can run over them: `scratch`, a place of its own for every thread.
#pragma once

#include "common/activation_kind.h"
#include "cuda/device.h"

namespace fastnest::cuda {

constexpr float kLeakySlope = 0.01f;
constexpr float kSqrtHalf = 0.7071067811865476f, kInvSqrtTwoPi = 0.3989422804014327f;
constexpr float kSqrtTwoOverPi = 0.7978845608028654f, kCubic = 0.044715f;

constexpr bool piecewise_linear(Activation activation) {
  return activation == Activation::kIdentity || activation == Activation::kRelu || activation == Activation::kLeakyRelu;
}

FASTNEST_DEVICE float sigmoid(float z) { return 1 / (1 + expf(-z)); }

// f(z) of the functions that are not piecewise linear.
FASTNEST_DEVICE float curve(Activation activation, float z) {
  switch (activation) {
    case Activation::kTanh: return tanhf(z);
    case Activation::kSilu: return z * sigmoid(z);
    case Activation::kGelu: return 0.5f * z * (1 + erff(z * kSqrtHalf));
    default: return 0.5f * z * (1 + tanhf((z + z * z * z * kCubic) * kSqrtTwoOverPi));
  }
}

// f'(z) of them.
FASTNEST_DEVICE float slope(Activation activation, float z) {
  if (activation == Activation::kSilu) {
    const float s = sigmoid(z);
    return s * (1 + z * (1 - s));
  }
  if (activation == Activation::kGelu)
    return 0.5f * (1 + erff(z * kSqrtHalf)) + z * expf(-0.5f * z * z) * kInvSqrtTwoPi;
  const bool tanh_itself = activation == Activation::kTanh;
  const float t = tanhf(tanh_itself ? z : (z + z * z * z * kCubic) * kSqrtTwoOverPi);
  if (tanh_itself) return 1 - t * t;
  return 0.5f * (1 + t + z * (1 - t * t) * (1 + z * z * (3 * kCubic)) * kSqrtTwoOverPi);
}

// f(z), and f'(z) d, of any function, one value at a time; of relu and identity z may be f(z).
FASTNEST_DEVICE float activated(Activation activation, float z) {
  if (activation == Activation::kIdentity) return z;
  if (activation == Activation::kRelu) return z < 0 ? 0.0f : z;
  return activation == Activation::kLeakyRelu ? (z < 0 ? z * kLeakySlope : z) : curve(activation, z);
}
FASTNEST_DEVICE float activated_backward(Activation activation, float d, float z) {
  if (activation == Activation::kIdentity) return d;
  if (activation == Activation::kRelu) return z <= 0 ? 0.0f : d;
  return activation == Activation::kLeakyRelu ? (z > 0 ? d : d * kLeakySlope) : slope(activation, z) * d;
}

// z = function(z) for each, by a loop. scratch: kCount floats for every thread of the block.
template <int kCount, class Function>
FASTNEST_DEVICE void through_scratch(float* scratch, float* z, const Function& function) {
  float* const own = scratch + threadIdx.x;
  const int threads = static_cast<int>(blockDim.x);
#pragma unroll
  for (int i = 0; i < kCount; ++i) own[i * threads] = z[i];
#pragma unroll 1
  for (int i = 0; i < kCount; ++i) own[i * threads] = function(own[i * threads]);
#pragma unroll
  for (int i = 0; i < kCount; ++i) z[i] = own[i * threads];
}

// z = f(z) for each.
template <int kCount>
FASTNEST_DEVICE void activate(Activation activation, float* z, float* scratch) {
  if (activation == Activation::kRelu) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = z[i] < 0 ? 0.0f : z[i];  // NaN stays
  } else if (activation == Activation::kLeakyRelu) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = z[i] < 0 ? z[i] * kLeakySlope : z[i];
  } else if (activation != Activation::kIdentity) {
    through_scratch<kCount>(scratch, z, [&](float value) { return curve(activation, value); });
  }
}

// d = f'(z) d for each; of relu and identity z may be f(z). Changes z.
template <int kCount>
FASTNEST_DEVICE void activate_backward(Activation activation, float* d, float* z, float* scratch) {
  if (activation == Activation::kRelu) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) d[i] = z[i] <= 0 ? 0.0f : d[i];
  } else if (activation == Activation::kLeakyRelu) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) d[i] = z[i] > 0 ? d[i] : d[i] * kLeakySlope;
  } else if (activation != Activation::kIdentity) {
    through_scratch<kCount>(scratch, z, [&](float value) { return slope(activation, value); });
#pragma unroll
    for (int i = 0; i < kCount; ++i) d[i] *= z[i];
  }
}

}  // namespace fastnest::cuda
