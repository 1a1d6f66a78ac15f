// dense_chain for the CPU: kernels per instruction set | the host side on tensors | registration.
#include "cpu/dense_chain.h"

#define FASTNEST_KERNEL "cpu/dense_chain_kernels.h"
#include "common/each_target.h"
#include "cpu/parallel.h"

namespace fastnest {
namespace {

using List = std::vector<Tensor>;

DenseChain describe(int64_t n, int64_t m, Element element, const List& weight, const List& bias,
                    const List& hidden_weight, const List& hidden_bias, const List& scale, const List& shift,
                    const std::string& activation, bool pre_activation) {
  DenseChain chain{};
  chain.element = element;
  chain.n = n, chain.m = chain.width = m;
  chain.activation = activation_named(activation);
  chain.pre_activation = pre_activation;
  const auto data = [](const List& list, size_t i) { return list.empty() ? nullptr : list[i].const_data_ptr(); };
  for (size_t i = 0; i < weight.size(); ++i) {
    DenseBlock block{};
    block.m = chain.width, block.d = weight[i].size(0);
    block.h = hidden_weight.empty() ? 0 : hidden_weight[i].size(0);
    block.weight = data(weight, i), block.bias = data(bias, i);
    block.hidden_weight = data(hidden_weight, i), block.hidden_bias = data(hidden_bias, i);
    block.scale = data(scale, i), block.shift = data(shift, i);
    block.kept = chain.kept;
    chain.kept += block.h + (chain.keeps_growth() ? block.d : 0);
    chain.width += block.d;
    chain.blocks.push_back(block);
  }
  return chain;
}

// A few tiles' prefix and operands, at the width where half of it has grown.
int64_t typical_width(const DenseChain& chain) { return (chain.m + chain.width) / 2; }

std::tuple<Tensor, Tensor> dense_chain_forward(Tensor x, List weight, List bias, List hidden_weight, List hidden_bias,
                                               List scale, List shift, std::string activation, bool pre_activation,
                                               bool save) {
  const DenseChain chain = describe(x.size(0), x.size(1), element_of(x), weight, bias, hidden_weight, hidden_bias,
                                    scale, shift, activation, pre_activation);
  Tensor y = empty({chain.n, chain.width}, x.scalar_type());
  Tensor hidden = save ? empty({chain.n, chain.kept}, x.scalar_type()) : empty({0}, x.scalar_type());
  DenseForward io{x.const_data_ptr(), x.stride(0), y.mutable_data_ptr(),
                  hidden.numel() ? hidden.mutable_data_ptr() : nullptr};
  run_shares(
      shares_of(chain.n, typical_width(chain), 2 * kVectorRows, chain.flops()),
      [&](const Share& share) { return FASTNEST_RUN(dense_forward_scratch, chain, share); },
      [&](const Share& share, float* scratch, Lockstep& team, int member) {
        FASTNEST_RUN(dense_forward, chain, io, share, scratch, team, member);
      });
  return {y, hidden};
}

std::tuple<Tensor, List, List, List, List, List, List> dense_chain_backward(Tensor dy, Tensor y, Tensor hidden,
                                                                            List weight, List bias, List hidden_weight,
                                                                            List hidden_bias, List scale, List shift,
                                                                            std::string activation,
                                                                            bool pre_activation) {
  const int64_t m = hidden_weight.empty() ? weight[0].size(1) : hidden_weight[0].size(1);
  const DenseChain chain = describe(y.size(0), m, element_of(y), weight, bias, hidden_weight, hidden_bias, scale, shift,
                                    activation, pre_activation);
  const auto like = [](const List& list) {
    List out;
    for (const Tensor& t : list) out.push_back(empty_as(t));
    return out;
  };
  Tensor dx = empty({chain.n, chain.m}, y.scalar_type());
  List dweight = like(weight), dbias = like(bias), dhidden_weight = like(hidden_weight),
       dhidden_bias = like(hidden_bias), dscale = like(scale), dshift = like(shift);
  const DenseBackward io{dy.const_data_ptr(), dy.stride(0), y.const_data_ptr(), hidden.const_data_ptr(),
                         dx.mutable_data_ptr()};
  const SumsLayout sums{FASTNEST_RUN(dense_sums_floats, chain)};
  run_with_sums(
      one_share_a_thread(chain.n, 2 * typical_width(chain), sums.floats, 2 * chain.flops()), sums,
      [&](const Share& share) { return FASTNEST_RUN(dense_backward_scratch, chain, share); },
      [&](const Share& share, float* scratch, const SumsPlace& place, Lockstep& team, int member) {
        FASTNEST_RUN(dense_backward, chain, io, share, scratch, place.rest, team, member);
      },
      chain.blocks.size(),
      [&](const SumsPlace& total, int64_t i) {
        const auto data = [&](List& list) -> void* { return list.empty() ? nullptr : list[i].mutable_data_ptr(); };
        const DenseGradients out{data(dweight),      data(dbias),  data(dhidden_weight),
                                 data(dhidden_bias), data(dscale), data(dshift)};
        FASTNEST_RUN(dense_gradients, chain, total.rest, i, out);
      });
  return {dx, dweight, dbias, dhidden_weight, dhidden_bias, dscale, dshift};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, CPU, m) {
  m.impl("dense_chain_forward", TORCH_BOX(&dense_chain_forward));
  m.impl("dense_chain_backward", TORCH_BOX(&dense_chain_backward));
}

}  // namespace fastnest
