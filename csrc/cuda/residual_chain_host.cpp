// residual_chain for NVIDIA GPUs: the host side on tensors | registration.
#include "cuda/gradients_host.h"
#include "cuda/precision.h"
#include "cuda/residual_chain.h"

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
  const Element element = chain.element;
  const int64_t n = chain.n, l = chain.l, m = chain.m, k = chain.k, layers = chain.layers();
  const auto listed = [](const std::optional<Tensor>& one) { return one ? List{*one} : List{}; };
  Gradients ddown({down}), ddown_bias(listed(down_bias), l), dmid(listed(mid), l), dmid_bias(listed(mid_bias), l),
      dup({up}), dscale(listed(scale)), dshift(listed(shift));
  Tensor dx = empty_like(x, {n, m}, x.scalar_type());
  const auto result = [&] {
    const auto first = [&](Gradients& of) {
      return of.tensors.empty() ? empty_like(x, {0}, x.scalar_type()) : of.tensors[0];
    };
    return std::tuple(dx, first(ddown), first(ddown_bias), first(dmid), first(dmid_bias), first(dup), first(dscale),
                      first(dshift));
  };
  if (n == 0) {
    for (Gradients* of : {&ddown, &ddown_bias, &dmid, &dmid_bias, &dup, &dscale, &dshift}) of->zero();
    return result();
  }
  Tensor dz = empty_like(x, {n, l * layers * k}, x.scalar_type());
  const int slices = residual_chain_slices(chain);
  const auto sums = [&](const Gradients& of) { return zeros_like(x, {slices, of.total}, ScalarType::Float); };
  Tensor down_sums = sums(ddown), up_sums = sums(dup), scale_sums = sums(dscale), shift_sums = sums(dshift);
  const auto floats = [](Tensor& t) { return t.numel() ? t.mutable_data_ptr<float>() : nullptr; };
  ResidualBackward io{};
  io.dy = data_or_null(dy), io.dy_stride = dy ? dy->stride(0) : 0;
  io.dfeatures = data_or_null(dfeatures);
  io.x = x.const_data_ptr(), io.x_stride = x.stride(0);
  io.stream = stream.const_data_ptr<float>();
  io.hidden = hidden.const_data_ptr();
  io.dx = dx.mutable_data_ptr(), io.dz = dz.mutable_data_ptr();
  io.slices = slices;
  io.ddown = floats(down_sums), io.dup = floats(up_sums), io.dscale = floats(scale_sums),
  io.dshift = floats(shift_sums);
  check_launch(residual_chain_backward(chain, io, gpu.stream));

  const std::pair<Gradients*, float*> summed[] = {
      {&ddown, io.ddown}, {&dup, io.dup}, {&dscale, io.dscale}, {&dshift, io.dshift}};
  for (const auto& [of, from] : summed) of->add(element, from, slices, of->total, gpu.stream);
  if (mid) {
    RowProducts products{};
    products.element = element, products.tf32 = chain.tf32, products.n = n, products.f = chain.activation;
    products.a = io.dz, products.b = io.hidden, products.a_stride = products.b_stride = l * 2 * k;
    write_products(
        dmid, products, x, l,
        [&](size_t i) -> RowProduct {
          const auto first = static_cast<int64_t>(i) * 2 * k;
          return {first + k, first, 0, nullptr, nullptr, chain.k, chain.k};
        },
        gpu.stream);
  }
  // dz of a block: of the first linear map, then of the last one.
  for (Gradients* of : {&ddown_bias, &dmid_bias})
    for (size_t i = 0; i < of->targets.size(); ++i)
      of->targets[i].begin = (static_cast<int64_t>(i) * layers + (of == &dmid_bias)) * k;
  write_sums({&ddown_bias, &dmid_bias}, element, dz, gpu.stream);
  return result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, FASTNEST_GPU, m) {
  m.impl("residual_chain_backward", TORCH_BOX(&backward));
  m.impl("residual_chain_forward", TORCH_BOX(&forward));
}

}  // namespace fastnest::cuda
