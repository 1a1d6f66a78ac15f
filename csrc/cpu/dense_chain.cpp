// dense_chain for the CPU: kernels per instruction set | the host side on tensors | registration.
#include "cpu/dense_chain.h"

#define FASTNEST_KERNEL "cpu/dense_chain_kernels.h"
#include "common/each_target.h"
#include "cpu/parallel.h"

namespace fastnest {
namespace {

DenseChain describe(int64_t n, int64_t m, Element element, const List& weight, const OptionalList& bias,
                    const OptionalList& hidden_weight, const OptionalList& hidden_bias, const OptionalList& scale,
                    const OptionalList& shift, const std::string& activation, bool pre_activation) {
  DenseChain chain{};
  chain.element = element;
  chain.n = n, chain.m = chain.width = m;
  chain.activation = activation_named(activation);
  chain.pre_activation = pre_activation;
  const auto data = [](const OptionalList& list, size_t i) { return list ? (*list)[i].const_data_ptr() : nullptr; };
  for (size_t i = 0; i < weight.size(); ++i) {
    DenseBlock block{};
    block.m = chain.width, block.d = weight[i].size(0);
    block.h = hidden_weight ? (*hidden_weight)[i].size(0) : 0;
    block.weight = weight[i].const_data_ptr(), block.bias = data(bias, i);
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

std::tuple<Tensor, Tensor> dense_chain_forward(Tensor x, List weight, OptionalList bias, OptionalList hidden_weight,
                                               OptionalList hidden_bias, OptionalList scale, OptionalList shift,
                                               std::string activation, bool pre_activation, bool save) {
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

std::tuple<Tensor, List, List, List, List, List, List> dense_chain_backward(
    Tensor dy, Tensor y, Tensor hidden, List weight, OptionalList bias, OptionalList hidden_weight,
    OptionalList hidden_bias, OptionalList scale, OptionalList shift, std::string activation, bool pre_activation) {
  const int64_t m = (hidden_weight ? *hidden_weight : weight)[0].size(1);
  const DenseChain chain = describe(y.size(0), m, element_of(y), weight, bias, hidden_weight, hidden_bias, scale, shift,
                                    activation, pre_activation);
  Tensor dx = empty({chain.n, chain.m}, y.scalar_type());
  List dweight = empty_like(weight), dbias = empty_like(bias), dhidden_weight = empty_like(hidden_weight),
       dhidden_bias = empty_like(hidden_bias), dscale = empty_like(scale), dshift = empty_like(shift);
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
