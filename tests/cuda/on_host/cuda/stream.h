// csrc/cuda/stream.h for kernels that run on the CPU, and their registration as the CPU's.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>

#define FASTNEST_GPU CPU

namespace fastnest {

struct OnGpu {
  explicit OnGpu(int32_t) {}
  void* const stream = nullptr;
};

}  // namespace fastnest
