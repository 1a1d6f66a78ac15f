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

// [n, channels, h, w] as x [n, _, h, w], in channels-last memory.
inline Tensor empty_image_like(const Tensor& x, int64_t channels) {
  const int64_t sizes[] = {x.size(0), channels, x.size(2), x.size(3)};
  const auto at_least = [](int64_t size) { return size > 1 ? size : 1; };
  const int64_t pixel = at_least(channels), line = pixel * at_least(sizes[3]);
  const int64_t strides[] = {line * at_least(sizes[2]), 1, line, pixel};
  int32_t device = 0, dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, sizes, strides, dtype, device, x.get_device_index(), &handle));
  return Tensor(handle);
}

inline void check_launch(const char* why_not) {
  STD_TORCH_CHECK(why_not == nullptr, "fastnest: a CUDA kernel could not be launched: ", why_not);
}

}  // namespace fastnest::cuda
