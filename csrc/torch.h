// Tensors on torch's stable ABI, as the host functions of every device read them.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <optional>
#include <string>
#include <vector>

#include "common/activation_kind.h"
#include "common/element.h"

namespace fastnest {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What the schemas call Tensor[] and Tensor[]?. An absent list never arrives as an empty one: AOTInductor's runtime
// would hand None on for that.
using List = std::vector<Tensor>;
using OptionalList = std::optional<List>;

inline Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Element::kFloat32;
    case ScalarType::BFloat16: return Element::kBFloat16;
    case ScalarType::Half: return Element::kFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, "fastnest: the compiled kernels take float32, bfloat16 and float16");
}

inline const void* data_or_null(const std::optional<Tensor>& x) { return x ? x->const_data_ptr() : nullptr; }

// The list, or none of any tensors where it is absent.
inline const List& tensors_of(const OptionalList& list) {
  static const List none;
  return list ? *list : none;
}

inline Activation activation_named(const std::string& name) {
  auto kind = parse_activation(name);
  STD_TORCH_CHECK(kind.has_value(), "fastnest: unknown activation ", name);
  return *kind;
}

}  // namespace fastnest
