// The tensors that the CPU's host functions make.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "torch.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastnest {

constexpr int64_t kHugeBytes = 4 << 20;

// A large tensor about to be written once: fewer and larger pages cost less to touch for the first time.
inline void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kPage - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// On the CPU, uninitialised, dimensions in memory in the order that `order` lists them, the last one consecutive.
// Through the C interface, which costs a third of the dispatcher's way.
inline Tensor empty_in_order(const int64_t* sizes, const int64_t* order, size_t dimensions, ScalarType type) {
  static const int32_t types[] = {aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16()};
  int64_t strides[4], count = 1;
  for (int64_t i = static_cast<int64_t>(dimensions) - 1; i >= 0; --i) {
    strides[order[i]] = std::max<int64_t>(count, 1);
    count *= sizes[order[i]];
  }
  const int32_t dtype = type == ScalarType::Float ? types[0] : type == ScalarType::BFloat16 ? types[1] : types[2];
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(dimensions), sizes, strides, dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  const int64_t bytes = count * (type == ScalarType::Float ? 4 : 2);
  if (bytes >= kHugeBytes) prefer_huge_pages(tensor.mutable_data_ptr(), bytes);
  return tensor;
}

inline Tensor empty(const int64_t* sizes, size_t dimensions, ScalarType type) {
  constexpr int64_t kOrder[] = {0, 1, 2, 3};
  return empty_in_order(sizes, kOrder, dimensions, type);
}

// [n, c, h, w] in channels-last memory.
inline Tensor empty_image(int64_t n, int64_t c, int64_t h, int64_t w, ScalarType type) {
  constexpr int64_t kOrder[] = {0, 2, 3, 1};
  const int64_t sizes[] = {n, c, h, w};
  return empty_in_order(sizes, kOrder, 4, type);
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  return empty(sizes.begin(), sizes.size(), type);
}

inline Tensor empty_as(const Tensor& x) {
  const auto sizes = x.sizes();
  return empty(sizes.data(), sizes.size(), x.scalar_type());
}

inline List empty_like(const List& list) {
  List out;
  for (const Tensor& t : list) out.push_back(empty_as(t));
  return out;
}

inline List empty_like(const OptionalList& list) { return empty_like(tensors_of(list)); }

}  // namespace fastnest
