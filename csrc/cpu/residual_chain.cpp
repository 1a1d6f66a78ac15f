// residual_chain for the CPU: kernels per instruction set | the host side on tensors | registration.
#include "cpu/residual_chain.h"

#define FASTNEST_KERNEL "cpu/residual_chain_kernels.h"
#include "common/each_target.h"
#include "cpu/parallel.h"

namespace fastnest {
namespace {

ResidualChain describe(const Tensor& x, const Tensor& down, const std::optional<Tensor>& down_bias,
                       const std::optional<Tensor>& mid, const std::optional<Tensor>& mid_bias, const Tensor& up,
                       const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                       const std::string& activation, bool pre_activation) {
  ResidualChain chain{};
  chain.element = element_of(x);
  chain.n = x.size(0), chain.m = x.size(1), chain.l = down.size(0), chain.k = down.size(1), chain.ups = up.size(0);
  chain.activation = activation_named(activation);
  chain.pre_activation = pre_activation;
  chain.down = down.const_data_ptr(), chain.down_bias = data_or_null(down_bias);
  chain.mid = data_or_null(mid), chain.mid_bias = data_or_null(mid_bias);
  chain.up = up.const_data_ptr();
  chain.scale = data_or_null(scale), chain.shift = data_or_null(shift);
  return chain;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> residual_chain_forward(
    Tensor x, Tensor down, std::optional<Tensor> down_bias, std::optional<Tensor> mid, std::optional<Tensor> mid_bias,
    Tensor up, std::optional<Tensor> scale, std::optional<Tensor> shift, std::string activation, bool pre_activation,
    bool features, bool save) {
  const ResidualChain chain = describe(x, down, down_bias, mid, mid_bias, up, scale, shift, activation, pre_activation);
  const auto type = x.scalar_type();
  const bool features_are_hidden = save && idempotent(chain.activation) && !mid;
  Tensor y = empty({chain.n, chain.m}, type);
  Tensor v = features && !features_are_hidden ? empty({chain.n, chain.l, chain.k}, type) : empty({0}, type);
  Tensor hidden = save ? empty({chain.n, chain.l, chain.layers(), chain.k}, type) : empty({0}, type);
  Tensor stream = save && chain.element != Element::kFloat32 ? empty({chain.n, chain.m}, ScalarType::Float)
                                                             : empty({0}, ScalarType::Float);
  ResidualForward io{};
  io.x = x.const_data_ptr(), io.x_stride = x.stride(0);
  io.y = y.mutable_data_ptr();
  if (v.numel()) io.features = v.mutable_data_ptr();
  if (hidden.numel()) io.hidden = hidden.mutable_data_ptr();
  if (stream.numel()) io.stream = stream.mutable_data_ptr<float>();

  run_shares(
      shares_of(chain.n, chain.m, 2 * kVectorRows, chain.flops()),
      [&](const Share& share) { return FASTNEST_RUN(residual_forward_scratch, chain, share); },
      [&](const Share& share, float* scratch, Lockstep& team, int member) {
        FASTNEST_RUN(residual_forward, chain, io, share, scratch, team, member);
      });
  return {y, v, hidden, stream};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> residual_chain_backward(
    std::optional<Tensor> dy, std::optional<Tensor> dfeatures, Tensor x, Tensor stream, Tensor hidden, Tensor down,
    std::optional<Tensor> down_bias, std::optional<Tensor> mid, std::optional<Tensor> mid_bias, Tensor up,
    std::optional<Tensor> scale, std::optional<Tensor> shift, std::string activation, bool pre_activation) {
  const ResidualChain chain = describe(x, down, down_bias, mid, mid_bias, up, scale, shift, activation, pre_activation);
  const auto like = [&](const std::optional<Tensor>& parameter) {
    return parameter ? empty_as(*parameter) : empty({0}, x.scalar_type());
  };
  Tensor dx = empty({chain.n, chain.m}, x.scalar_type());
  Tensor ddown = like(down), ddown_bias = like(down_bias), dmid = like(mid), dmid_bias = like(mid_bias), dup = like(up),
         dscale = like(scale), dshift = like(shift);
  ResidualBackward io{};
  io.dy = data_or_null(dy), io.dy_stride = dy ? dy->stride(0) : 0;
  io.dfeatures = data_or_null(dfeatures);
  io.x = x.const_data_ptr(), io.x_stride = x.stride(0);
  io.stream = stream.const_data_ptr<float>();
  io.hidden = hidden.const_data_ptr();
  io.dx = dx.mutable_data_ptr();

  const auto data = [](Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; };
  const ResidualGradients out{data(ddown), data(ddown_bias), data(dmid),  data(dmid_bias),
                              data(dup),   data(dscale),     data(dshift)};
  SumsLayout sums{FASTNEST_RUN(residual_sums_floats, chain)};
  if (FASTNEST_RUN(residual_sums_fit, chain)) {
    sums.home[0] = ddown.mutable_data_ptr<float>(), sums.home_floats[0] = ddown.numel();
    if (chain.ups > 0) sums.home[1] = dup.mutable_data_ptr<float>(), sums.home_floats[1] = dup.numel();
  }
  run_with_sums(
      one_share_a_thread(chain.n, chain.m, sums.floats, 2 * chain.flops()), sums,
      [&](const Share& share) { return FASTNEST_RUN(residual_backward_scratch, chain, share); },
      [&](const Share& share, float* scratch, const SumsPlace& place, Lockstep& team, int member) {
        FASTNEST_RUN(residual_backward, chain, io, share, scratch, place, team, member);
      },
      chain.l,
      [&](const SumsPlace& total, int64_t block) {
        Scratch work(chain.m * chain.k);
        FASTNEST_RUN(residual_gradients, chain, total, out, block, work.data());
      });
  return {dx, ddown, ddown_bias, dmid, dmid_bias, dup, dscale, dshift};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, CPU, m) {
  m.impl("residual_chain_backward", TORCH_BOX(&residual_chain_backward));
  m.impl("residual_chain_forward", TORCH_BOX(&residual_chain_forward));
}

}  // namespace fastnest
