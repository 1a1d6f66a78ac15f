// residual_chain for NVIDIA GPUs: the host side on tensors | registration.
#include "cuda/precision.h"
#include "cuda/residual_chain.h"
#include "cuda/tensor.h"

namespace fastnest::cuda {
namespace {

ResidualChain describe(const Tensor& x, const Tensor& down, const std::optional<Tensor>& down_bias,
                       const std::optional<Tensor>& mid, const std::optional<Tensor>& mid_bias, const Tensor& up,
                       const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                       const std::string& activation, bool pre_activation) {
  ResidualChain chain{};
  chain.element = element_of(x);
  chain.tf32 = chain.element == Element::kFloat32 && tf32_is_asked_for();
  chain.n = x.size(0);
  chain.m = static_cast<int>(x.size(1)), chain.k = static_cast<int>(down.size(1));
  chain.l = static_cast<int>(down.size(0)), chain.ups = static_cast<int>(up.size(0));
  chain.activation = activation_named(activation);
  chain.pre_activation = pre_activation;
  chain.down = down.const_data_ptr(), chain.down_bias = data_or_null(down_bias);
  chain.mid = data_or_null(mid), chain.mid_bias = data_or_null(mid_bias);
  chain.up = up.const_data_ptr();
  chain.scale = data_or_null(scale), chain.shift = data_or_null(shift);
  return chain;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(Tensor x, Tensor down, std::optional<Tensor> down_bias,
                                                   std::optional<Tensor> mid, std::optional<Tensor> mid_bias, Tensor up,
                                                   std::optional<Tensor> scale, std::optional<Tensor> shift,
                                                   std::string activation, bool pre_activation, bool features,
                                                   bool save) {
  const OnGpu gpu(x.get_device_index());
  const ResidualChain chain = describe(x, down, down_bias, mid, mid_bias, up, scale, shift, activation, pre_activation);
  const auto type = x.scalar_type();
  const bool features_are_hidden = save && idempotent(chain.activation) && !mid;
  const auto maybe = [&](bool wanted, std::initializer_list<int64_t> sizes, ScalarType of) {
    return wanted ? empty_like(x, sizes, of) : empty_like(x, {0}, of);
  };
  Tensor y = empty_like(x, {chain.n, chain.m}, type);
  Tensor v = maybe(features && !features_are_hidden, {chain.n, chain.l, chain.k}, type);
  Tensor hidden = maybe(save, {chain.n, chain.l, chain.layers(), chain.k}, type);
  Tensor stream = maybe(save && chain.element != Element::kFloat32, {chain.n, chain.m}, ScalarType::Float);
  const auto data = [](Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; };
  const ResidualForward io{
      x.const_data_ptr(), x.stride(0), y.mutable_data_ptr(), data(v), data(hidden), static_cast<float*>(data(stream))};
  check_launch(residual_chain_forward(chain, io, gpu.stream));
  return {y, v, hidden, stream};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    std::optional<Tensor> dy, std::optional<Tensor> dfeatures, Tensor x, Tensor stream, Tensor hidden, Tensor down,
    std::optional<Tensor> down_bias, std::optional<Tensor> mid, std::optional<Tensor> mid_bias, Tensor up,
    std::optional<Tensor> scale, std::optional<Tensor> shift, std::string activation, bool pre_activation) {
  const OnGpu gpu(x.get_device_index());
  const ResidualChain chain = describe(x, down, down_bias, mid, mid_bias, up, scale, shift, activation, pre_activation);
  const auto type = x.scalar_type();
  const int64_t l = chain.l, m = chain.m, k = chain.k;
  const int slices = residual_chain_slices(chain);
  // Gradients, or zeros where there are no rows to sum over.
  const auto like = [&](const std::optional<Tensor>& parameter, std::initializer_list<int64_t> sizes) {
    if (!parameter) return empty_like(x, {0}, type);
    return chain.n ? empty_like(x, sizes, type) : zeros_like(x, sizes, type);
  };
  const auto sums = [&](bool wanted, int64_t size) {
    return zeros_like(x, {wanted ? slices * size : 0}, ScalarType::Float);
  };
  Tensor dx = empty_like(x, {chain.n, m}, type), dz = empty_like(x, {chain.n, l, chain.layers(), k}, type);
  Tensor ddown = like(down, {l, k, m}), ddown_bias = like(down_bias, {l, k}), dmid = like(mid, {l, k, k}),
         dmid_bias = like(mid_bias, {l, k}), dup = like(up, {chain.ups, m, k}), dscale = like(scale, {l, m}),
         dshift = like(shift, {l, m});
  if (chain.n == 0) return {dx, ddown, ddown_bias, dmid, dmid_bias, dup, dscale, dshift};
  Tensor down_sums = sums(true, l * k * m), mid_sums = sums(chain.mid, l * k * k),
         up_sums = sums(true, chain.ups * m * k), scale_sums = sums(chain.scale, l * m),
         shift_sums = sums(chain.scale, l * m);
  const auto data = [](Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; };
  const auto floats = [&](Tensor& t) { return static_cast<float*>(data(t)); };
  ResidualBackward io{};
  io.dy = data_or_null(dy), io.dy_stride = dy ? dy->stride(0) : 0;
  io.dfeatures = data_or_null(dfeatures);
  io.x = x.const_data_ptr(), io.x_stride = x.stride(0);
  io.stream = static_cast<const float*>(stream.const_data_ptr());
  io.hidden = hidden.const_data_ptr();
  io.dx = dx.mutable_data_ptr(), io.dz = dz.mutable_data_ptr();
  io.slices = slices;
  io.ddown = floats(down_sums), io.dmid = floats(mid_sums), io.dup = floats(up_sums);
  io.dscale = floats(scale_sums), io.dshift = floats(shift_sums);
  const ResidualGradients out{data(ddown), data(ddown_bias), data(dmid),  data(dmid_bias),
                              data(dup),   data(dscale),     data(dshift)};
  check_launch(residual_chain_backward(chain, io, gpu.stream));
  Tensor rows = empty_like(x, {slices, l, k}, ScalarType::Float);
  check_launch(residual_chain_gradients(chain, io, out, floats(rows), slices, gpu.stream));
  return {dx, ddown, ddown_bias, dmid, dmid_bias, dup, dscale, dshift};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, FASTNEST_GPU, m) {
  m.impl("residual_chain_backward", TORCH_BOX(&backward));
  m.impl("residual_chain_forward", TORCH_BOX(&forward));
}

}  // namespace fastnest::cuda
