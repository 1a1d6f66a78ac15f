// What a tensor map describes: a tensor in memory and the box of it that one load takes, 128 bytes innermost.
#pragma once

#include <cstdint>

#include "common/element.h"

namespace fastnest::cuda::hopper {

constexpr int kMostDimensions = 5;

// Innermost dimension first; strides in bytes, multiples of 16 behind the innermost; data aligned to 16 bytes.
struct BoxLayout {
  const void* data;
  Element element;
  int dimensions;
  int64_t sizes[kMostDimensions];
  int64_t strides[kMostDimensions];
  int box[kMostDimensions];
  bool operator==(const BoxLayout&) const = default;
};

}  // namespace fastnest::cuda::hopper
