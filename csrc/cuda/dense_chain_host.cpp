// dense_chain for NVIDIA GPUs: the host side on tensors | registration.
#include "cuda/dense_chain.h"
#include "cuda/gradients_host.h"
#include "cuda/precision.h"

namespace fastnest::cuda {
namespace {

// Blocks of a chain that one launch takes, in order.
struct Group {
  DenseChain chain;
  size_t first;  // of its blocks
};

std::vector<Group> describe(const Tensor& x, int64_t m, const List& weight, const OptionalList& bias,
                            const OptionalList& hidden_weight, const OptionalList& hidden_bias,
                            const OptionalList& scale, const OptionalList& shift, const std::string& activation,
                            bool pre_activation) {
  DenseChain chain{};
  chain.element = element_of(x);
  chain.tf32 = chain.element == Element::kFloat32 && tf32_is_asked_for();
  chain.n = x.size(0);
  chain.in = chain.width = static_cast<int>(m);
  chain.activation = activation_named(activation);
  chain.pre_activation = pre_activation;
  chain.affine = scale.has_value();
  std::vector<Group> groups;
  int64_t columns = 0;
  const auto data = [](const OptionalList& list, size_t i) { return list ? (*list)[i].const_data_ptr() : nullptr; };
  for (size_t i = 0; i < weight.size(); ++i) {
    if (i % kBlocksInLaunch == 0) groups.push_back({chain, i});
    DenseBlock block{};
    block.m = chain.width, block.d = static_cast<int>(weight[i].size(0));
    block.h = hidden_weight ? static_cast<int>((*hidden_weight)[i].size(0)) : 0;
    block.weight = weight[i].const_data_ptr(), block.bias = data(bias, i);
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

std::tuple<Tensor, Tensor> forward(Tensor x, List weight, OptionalList bias, OptionalList hidden_weight,
                                   OptionalList hidden_bias, OptionalList scale, OptionalList shift,
                                   std::string activation, bool pre_activation, bool save) {
  const OnGpu gpu(x.get_device_index());
  const auto groups =
      describe(x, x.size(1), weight, bias, hidden_weight, hidden_bias, scale, shift, activation, pre_activation);
  const DenseChain& chain = groups[0].chain;
  Tensor y = empty_like(x, {chain.n, chain.width}, x.scalar_type());
  Tensor hidden = save ? empty_like(x, {chain.n, chain.kept()}, x.scalar_type()) : empty_like(x, {0}, x.scalar_type());
  DenseForward io{x.const_data_ptr(), x.stride(0), y.mutable_data_ptr(),
                  hidden.numel() ? hidden.mutable_data_ptr() : nullptr};
  for (const Group& group : groups) {
    check_launch(dense_chain_forward(group.chain, io, gpu.stream));
    io.x = io.y, io.x_stride = chain.width;
  }
  return {y, hidden};
}

std::tuple<Tensor, List, List, List, List, List, List> backward(Tensor dy, Tensor y, Tensor hidden, List weight,
                                                                OptionalList bias, OptionalList hidden_weight,
                                                                OptionalList hidden_bias, OptionalList scale,
                                                                OptionalList shift, std::string activation,
                                                                bool pre_activation) {
  const int64_t m = (hidden_weight ? *hidden_weight : weight)[0].size(1);
  const auto groups =
      describe(y, m, weight, bias, hidden_weight, hidden_bias, scale, shift, activation, pre_activation);
  const DenseChain& chain = groups[0].chain;
  const Element element = chain.element;
  const auto type = y.scalar_type();
  Gradients dweight(weight), dbias(tensors_of(bias)), dhidden_weight(tensors_of(hidden_weight)),
      dhidden_bias(tensors_of(hidden_bias)), dscale(tensors_of(scale)), dshift(tensors_of(shift));
  Tensor dx = empty_like(y, {chain.n, m}, type);
  if (chain.n == 0) {
    for (Gradients* of : {&dweight, &dbias, &dhidden_weight, &dhidden_bias, &dscale, &dshift}) of->zero();
    return {dx,
            dweight.tensors,
            dbias.tensors,
            dhidden_weight.tensors,
            dhidden_bias.tensors,
            dscale.tensors,
            dshift.tensors};
  }
  const OnGpu gpu(y.get_device_index());
  void* const stream = gpu.stream;
  Tensor dz = empty_like(y, {chain.n, chain.width - chain.in}, type);
  Tensor dz_hidden = empty_like(y, {chain.n, chain.hidden}, type);
  const int slices = chain.affine ? dense_chain_affine_slices(chain.n) : 0;
  Tensor daffine = zeros_like(y, {slices, 2, dscale.total}, ScalarType::Float);

  DenseBackward io{};
  io.dy = dy.const_data_ptr(), io.dy_stride = dy.stride(0);
  io.y = y.const_data_ptr(), io.hidden = hidden.const_data_ptr();
  io.dz = dz.mutable_data_ptr(), io.dz_hidden = dz_hidden.mutable_data_ptr();
  io.daffine = static_cast<float*>(daffine.mutable_data_ptr());
  io.affine_columns = dscale.total, io.slices = slices;
  List between;  // the gradient of what one launch's blocks read, for those of the next
  for (auto group = groups.rbegin(); group != groups.rend(); ++group) {
    io.dx_is_float = group + 1 != groups.rend();
    between.push_back(io.dx_is_float ? empty_like(y, {chain.n, group->chain.begin()}, ScalarType::Float) : dx);
    io.dx = between.back().mutable_data_ptr();
    check_launch(dense_chain_backward(group->chain, io, stream));
    io.dy = io.dx, io.dy_stride = group->chain.begin(), io.dy_is_float = true;
  }

  const auto block = [&](size_t i) -> const DenseBlock& {
    return groups[i / kBlocksInLaunch].chain.block[i % kBlocksInLaunch];
  };
  RowProducts products{};
  products.element = element, products.tf32 = chain.tf32, products.n = chain.n;
  const auto of_prefix = [&](Gradients& gradients, const Tensor& of, bool is_hidden) {
    products.f = chain.before();
    products.a = of.const_data_ptr(), products.a_stride = of.size(1);
    products.b = y.const_data_ptr(), products.b_stride = chain.width;
    write_products(
        gradients, products, y, weight.size(),
        [&](size_t i) -> RowProduct {
          const DenseBlock& one = block(i);
          return {is_hidden ? one.hidden_before : one.m - chain.in, 0, 0, one.scale, one.shift, one.wide(), one.m};
        },
        stream);
  };
  if (!hidden_weight) {
    of_prefix(dweight, dz, false);
  } else {
    of_prefix(dhidden_weight, dz_hidden, true);
    products.f = chain.activation;
    products.a = dz.const_data_ptr(), products.a_stride = dz.size(1);
    products.b = hidden.const_data_ptr(), products.b_stride = chain.kept();
    write_products(
        dweight, products, y, weight.size(),
        [&](size_t i) -> RowProduct {
          const DenseBlock& one = block(i);
          return {one.m - chain.in, chain.kept_before(one), 0, nullptr, nullptr, one.d, one.h};
        },
        stream);
  }
  write_sums({&dbias}, element, dz, stream);
  write_sums({&dhidden_bias}, element, dz_hidden, stream);
  if (chain.affine) {
    for (Target& target : dshift.targets) target.begin += dscale.total;
    dscale.add(element, io.daffine, slices, 2 * dscale.total, stream);
    dshift.add(element, io.daffine, slices, 2 * dscale.total, stream);
  }
  return {
      dx, dweight.tensors, dbias.tensors, dhidden_weight.tensors, dhidden_bias.tensors, dscale.tensors, dshift.tensors};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, FASTNEST_GPU, m) {
  m.impl("dense_chain_forward", TORCH_BOX(&forward));
  m.impl("dense_chain_backward", TORCH_BOX(&backward));
}

}  // namespace fastnest::cuda
