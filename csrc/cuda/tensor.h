// Tensors and launches as the CUDA host functions make them; where they are is where `like` is.
#pragma once

#include <initializer_list>

#include "cuda/stream.h"
#include "torch.h"

namespace fastnest::cuda {

inline Tensor empty_like(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(like, {sizes.begin(), sizes.size()}, type);
}
inline Tensor zeros_like(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  return torch::stable::new_zeros(like, {sizes.begin(), sizes.size()}, type);
}

inline void check_launch(const char* why_not) {
  STD_TORCH_CHECK(why_not == nullptr, "fastnest: a CUDA kernel could not be launched: ", why_not);
}

}  // namespace fastnest::cuda
