// dense_chain for NVIDIA GPUs: the host side on tensors | registration.
#include <algorithm>
#include <vector>

#include "cuda/dense_chain.h"
#include "cuda/precision.h"
#include "cuda/tensor.h"

namespace fastnest::cuda {
namespace {

using List = std::vector<Tensor>;

// Blocks of a chain that one launch takes, in order.
struct Group {
  DenseChain chain;
  size_t first;  // of its blocks
};

std::vector<Group> describe(const Tensor& x, int64_t m, const List& weight, const List& bias, const List& hidden_weight,
                            const List& hidden_bias, const List& scale, const List& shift,
                            const std::string& activation, bool pre_activation) {
  DenseChain chain{};
  chain.element = element_of(x);
  chain.tf32 = chain.element == Element::kFloat32 && tf32_is_asked_for();
  chain.n = x.size(0);
  chain.in = chain.width = static_cast<int>(m);
  chain.activation = activation_named(activation);
  chain.pre_activation = pre_activation;
  chain.affine = !scale.empty();
  std::vector<Group> groups;
  int64_t columns = 0;
  const auto data = [](const List& list, size_t i) { return list.empty() ? nullptr : list[i].const_data_ptr(); };
  for (size_t i = 0; i < weight.size(); ++i) {
    if (i % kBlocksInLaunch == 0) groups.push_back({chain, i});
    DenseBlock block{};
    block.m = chain.width, block.d = static_cast<int>(weight[i].size(0));
    block.h = hidden_weight.empty() ? 0 : static_cast<int>(hidden_weight[i].size(0));
    block.weight = data(weight, i), block.bias = data(bias, i);
    block.hidden_weight = data(hidden_weight, i), block.hidden_bias = data(hidden_bias, i);
    block.scale = data(scale, i), block.shift = data(shift, i);
    block.hidden_before = chain.hidden, block.columns_before = columns;
    chain.width += block.d, chain.hidden += block.h, columns += block.m;
    DenseChain& last = groups.back().chain;
    last.block[last.blocks++] = block;
  }
  for (Group& group : groups) group.chain.width = chain.width, group.chain.hidden = chain.hidden;
  return groups;
}

std::tuple<Tensor, Tensor> forward(Tensor x, List weight, List bias, List hidden_weight, List hidden_bias, List scale,
                                   List shift, std::string activation, bool pre_activation, bool save) {
  const auto groups =
      describe(x, x.size(1), weight, bias, hidden_weight, hidden_bias, scale, shift, activation, pre_activation);
  const DenseChain& chain = groups[0].chain;
  Tensor y = empty_like(x, {chain.n, chain.width}, x.scalar_type());
  Tensor hidden = save ? empty_like(x, {chain.n, chain.kept()}, x.scalar_type()) : empty_like(x, {0}, x.scalar_type());
  DenseForward io{x.const_data_ptr(), x.stride(0), y.mutable_data_ptr(),
                  hidden.numel() ? hidden.mutable_data_ptr() : nullptr};
  for (const Group& group : groups) {
    check_launch(dense_chain_forward(group.chain, io, current_stream(x.get_device_index())));
    io.x = io.y, io.x_stride = chain.width;
  }
  return {y, hidden};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, FASTNEST_GPU, m) { m.impl("dense_chain_forward", TORCH_BOX(&forward)); }

}  // namespace fastnest::cuda
