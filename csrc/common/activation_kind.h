// The activation functions by name, for every instruction set and device alike.
#pragma once

#include <optional>
#include <string_view>

namespace fastnest {

enum class Activation { kIdentity, kRelu, kLeakyRelu, kTanh, kSilu, kGelu, kGeluTanh };

inline std::optional<Activation> parse_activation(std::string_view name) {
  if (name == "identity") return Activation::kIdentity;
  if (name == "relu") return Activation::kRelu;
  if (name == "leaky_relu") return Activation::kLeakyRelu;
  if (name == "tanh") return Activation::kTanh;
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  return std::nullopt;
}

// act(act(z)) = act(z), and act'(z) can be read off act(z): the backward keeps the output instead of z.
constexpr bool idempotent(Activation activation) {
  return activation == Activation::kIdentity || activation == Activation::kRelu;
}

}  // namespace fastnest
