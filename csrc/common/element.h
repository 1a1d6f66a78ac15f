// The element types of tensors; the two 16-bit ones as bits, converted a vector at a time (vector.h).
#pragma once

#include <cstdint>

namespace fastnest {

enum class Element { kFloat32, kBFloat16, kFloat16 };

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

}  // namespace fastnest
