// Image tensors [n, c, h, w] in channels-last memory as the rows of channels that norm_conv works on.
#pragma once

#include "cpu/norm_conv.h"
#include "cpu/tensor.h"

namespace fastnest {

// Rows of channels: one per pixel, the same distance between all of them. (A dimension of size 1 has any stride.)
inline Pixels pixels_of(const Tensor& x) {
  int64_t stride = x.size(1);
  if (x.numel() == 0) return {const_cast<void*>(x.const_data_ptr()), stride};
  for (int64_t i : {0, 2, 3})
    if (x.size(i) > 1) stride = x.stride(i) / (i == 0 ? x.size(2) * x.size(3) : i == 2 ? x.size(3) : 1);
  return {const_cast<void*>(x.const_data_ptr()), stride};
}

inline int64_t bytes_of(Element element) { return element == Element::kFloat32 ? 4 : 2; }

inline Pixels channels_from(const Pixels& image, int64_t channel, Element element) {
  return {static_cast<char*>(image.data) + channel * bytes_of(element), image.stride};
}

inline float* floats(const Tensor& x) { return static_cast<float*>(const_cast<void*>(x.const_data_ptr())); }

}  // namespace fastnest
