// The launchers of gradients.h.
#include "cuda/gradients.h"

#include "cuda/sums.h"

namespace fastnest::cuda {
namespace {

// function(T{}) for the type of the elements.
template <class Function>
const char* for_element(Element element, const Function& function) {
  switch (element) {
    case Element::kBFloat16: return function(BFloat16{});
    case Element::kFloat16: return function(Half{});
    default: return function(0.0f);
  }
}

}  // namespace

const char* slice_rows(Element element, const void* values, int64_t stride, int64_t n, float* slices, int count,
                       int64_t size, void* stream) {
  return for_element(
      element, [&](auto one) { return slice_rows<decltype(one)>(values, stride, slices, count, n, size, stream); });
}

const char* add_slices_to(Element element, const Target* targets, int64_t targets_count, const float* slices, int count,
                          int64_t size, void* stream) {
  return for_element(element, [&](auto one) {
    return add_slices_to<decltype(one)>(targets, targets_count, slices, count, size, stream);
  });
}

}  // namespace fastnest::cuda
