// dense_block2d for the CPU: its links, forward and backward, on one buffer | registration.
//
// Layer i reads a prefix of the buffer's channels and writes the slice behind it; nothing is concatenated. A channel's
// batch statistics are computed where it is written and serve every later layer. Backward, the gradients of all layers
// are added up in one float32 buffer without what their batch norms owe to each channel: as these share mean and
// variance, what they owe is one affine function of the channel, applied when its gradient is read.
#include "cpu/image.h"

namespace fastnest {
namespace {

struct Norms {
  const List &weight, &bias, &mean, &var;
  Fold fold(size_t i, const float* batch_mean, const float* batch_var, float eps) const {
    const bool batch = mean.empty();
    return {floats(weight[i]),
            floats(bias[i]),
            batch ? batch_mean : floats(mean[i]),
            batch ? batch_var : floats(var[i]),
            eps,
            weight[i].size(0)};
  }
};

// The arguments of one call: lists with a tensor per layer, or none.
struct DenseBlock2d {
  const List &conv1, &conv2;
  Norms norm1, norm2;
  const List& dropout;
  double eps;
};

NormConv link(const Tensor& y, const Tensor& weight, const Pixels& source, const Fold& fold, const Pixels& target) {
  NormConv conv{};
  conv.element = element_of(y);
  conv.images = y.size(0), conv.height = y.size(2), conv.width = y.size(3);
  conv.c = weight.size(1), conv.o = weight.size(0), conv.kernel = weight.size(2), conv.stride = 1;
  conv.source = source, conv.target = target;
  conv.scale = fold.scale.data(), conv.shift = fold.shift.data();
  conv.weight = weight.const_data_ptr();
  return conv;
}

int64_t pixels_in(const Tensor& y) { return y.size(0) * y.size(2) * y.size(3); }

using BlockOutputs = std::tuple<Tensor, List, Tensor, Tensor, List, List>;
using BlockGradients = std::tuple<Tensor, List, List, List, List, List, List>;

BlockOutputs forward(const Tensor& x, const DenseBlock2d& block, bool save) {
  const auto& [conv1, conv2, norm1, norm2, dropout, eps] = block;
  const Element element = element_of(x);
  const int64_t n = x.size(0), h = x.size(2), w = x.size(3), first = x.size(1);
  const bool batch = norm1.mean.empty();
  int64_t channels = first;
  for (const Tensor& weight : conv2) channels += weight.size(0);
  Tensor y = empty_image(n, channels, h, w, x.scalar_type());
  const int64_t measured = batch ? channels : 0;
  Tensor mean = empty({measured}, ScalarType::Float), var = empty({measured}, ScalarType::Float);
  const Pixels buffer = pixels_of(y);
  run_batch_stats(element, pixels_of(x), buffer, pixels_in(x), first, batch ? floats(mean) : nullptr, floats(var));

  List z, z_mean, z_var;
  int64_t c = first;
  for (size_t i = 0; i < conv2.size(); ++i) {
    Fold fold = norm1.fold(i, floats(mean), floats(var), eps);
    Pixels source = buffer;
    if (!conv1.empty()) {
      const int64_t hidden = conv1[i].size(0);
      if (save || z.empty() || z.back().size(1) != hidden) z.push_back(empty_image(n, hidden, h, w, x.scalar_type()));
      const Pixels target = pixels_of(z.back());
      if (batch)
        z_mean.push_back(empty({hidden}, ScalarType::Float)), z_var.push_back(empty({hidden}, ScalarType::Float));
      run_forward(link(y, conv1[i], source, fold, target), {}, batch ? floats(z_mean[i]) : nullptr,
                  batch ? floats(z_var[i]) : nullptr);
      fold = norm2.fold(i, batch ? floats(z_mean[i]) : nullptr, batch ? floats(z_var[i]) : nullptr, eps);
      source = target;
    }
    NormConvForward io{};
    if (!dropout.empty()) io.dropout = pixels_of(dropout[i]);
    run_forward(link(y, conv2[i], source, fold, channels_from(buffer, c, element)), io,
                batch ? floats(mean) + c : nullptr, batch ? floats(var) + c : nullptr);
    c += conv2[i].size(0);
  }
  if (!save) z.clear();
  return {y, z, mean, var, z_mean, z_var};
}

BlockGradients backward(const Tensor& dy, const Tensor& y, const List& z, const DenseBlock2d& block, bool training) {
  const auto& [conv1, conv2, norm1, norm2, dropout, eps] = block;
  const Element element = element_of(y);
  const int64_t n = y.size(0), h = y.size(2), w = y.size(3), channels = y.size(1), pixels = pixels_in(y);
  List dconv1 = empty_like(conv1), dconv2 = empty_like(conv2), dnorm1_weight = empty_like(norm1.weight),
       dnorm1_bias = empty_like(norm1.bias), dnorm2_weight = empty_like(norm2.weight),
       dnorm2_bias = empty_like(norm2.bias);
  int64_t hidden = 0;
  for (const Tensor& weight : conv1) hidden = std::max(hidden, weight.size(0));

  const Pixels buffer = pixels_of(y);
  Tensor gradient = empty({pixels, channels}, ScalarType::Float);
  const Pixels g{gradient.mutable_data_ptr(), channels};
  run_finish(element, {pixels_of(dy), element, nullptr, nullptr, nullptr}, {}, g, true, channels, pixels);
  Tensor z_gradient = empty({pixels, hidden}, ScalarType::Float);
  std::vector<float> slope(channels, 0.0f), offset(channels, 0.0f), sum(std::max(channels, hidden)), product(sum);
  const float* const mean = norm1.mean.empty() ? nullptr : floats(norm1.mean.back());

  int64_t end = channels;
  for (size_t i = conv2.size(); i-- > 0;) {
    const int64_t growth = conv2[i].size(0), c = end - growth;
    const Fold fold1 = norm1.fold(i, nullptr, nullptr, eps);
    const Gradient grown{channels_from(g, c, Element::kFloat32), Element::kFloat32, training ? &slope[c] : nullptr,
                         training ? &offset[c] : nullptr, training && i + 1 < conv2.size() ? mean + c : nullptr};
    NormConvBackward io{};
    io.target = grown;
    if (i + 1 == conv2.size()) io.target.slope = io.target.offset = nullptr;  // no norm of the block has read it
    if (!dropout.empty()) io.dropout = pixels_of(dropout[i]);
    const Pixels slice = channels_from(buffer, c, element);
    if (!conv1.empty()) {
      const int64_t b = conv1[i].size(0);
      const Fold fold2 = norm2.fold(i, nullptr, nullptr, eps);
      const Pixels zi = pixels_of(z[i]), dz{z_gradient.mutable_data_ptr(), b};
      std::vector<float> z_slope(b, 0.0f), z_offset(b, 0.0f);
      io.into = dz, io.mean = floats(norm2.mean[i]);
      run_backward(link(y, conv2[i], zi, fold2, slice), io, dconv2[i].mutable_data_ptr(), sum.data(), product.data());
      close_norm(fold2, sum.data(), product.data(), pixels, floats(dnorm2_weight[i]), floats(dnorm2_bias[i]),
                 training ? z_slope.data() : nullptr, training ? z_offset.data() : nullptr);
      io = {};
      io.target = {dz, Element::kFloat32, training ? z_slope.data() : nullptr, training ? z_offset.data() : nullptr,
                   floats(norm2.mean[i])};
      io.into = g, io.add = true, io.mean = floats(norm1.mean[i]);
      run_backward(link(y, conv1[i], buffer, fold1, zi), io, dconv1[i].mutable_data_ptr(), sum.data(), product.data());
    } else {
      io.into = g, io.add = true, io.mean = floats(norm1.mean[i]);
      run_backward(link(y, conv2[i], buffer, fold1, slice), io, dconv2[i].mutable_data_ptr(), sum.data(),
                   product.data());
    }
    close_norm(fold1, sum.data(), product.data(), pixels, floats(dnorm1_weight[i]), floats(dnorm1_bias[i]),
               training ? slope.data() : nullptr, training ? offset.data() : nullptr);
    end = c;
  }
  Tensor dx = empty_image(n, end, h, w, y.scalar_type());
  run_finish(element, {g, Element::kFloat32, training ? slope.data() : nullptr, offset.data(), mean}, buffer,
             pixels_of(dx), false, end, pixels);
  return {dx, dconv1, dconv2, dnorm1_weight, dnorm1_bias, dnorm2_weight, dnorm2_bias};
}

// The same as the schemas list their arguments.
BlockOutputs dense_block2d_forward(Tensor x, OptionalList conv1, List conv2, List norm1_weight, List norm1_bias,
                                   OptionalList norm1_mean, OptionalList norm1_var, OptionalList norm2_weight,
                                   OptionalList norm2_bias, OptionalList norm2_mean, OptionalList norm2_var,
                                   OptionalList dropout, double eps, bool save) {
  const Norms norm1{norm1_weight, norm1_bias, tensors_of(norm1_mean), tensors_of(norm1_var)};
  const Norms norm2{tensors_of(norm2_weight), tensors_of(norm2_bias), tensors_of(norm2_mean), tensors_of(norm2_var)};
  return forward(x, {tensors_of(conv1), conv2, norm1, norm2, tensors_of(dropout), eps}, save);
}

BlockGradients dense_block2d_backward(Tensor dy, Tensor y, List z, OptionalList conv1, List conv2, List norm1_weight,
                                      List norm1_bias, OptionalList norm1_mean, OptionalList norm1_var,
                                      OptionalList norm2_weight, OptionalList norm2_bias, OptionalList norm2_mean,
                                      OptionalList norm2_var, OptionalList dropout, double eps, bool training) {
  const Norms norm1{norm1_weight, norm1_bias, tensors_of(norm1_mean), tensors_of(norm1_var)};
  const Norms norm2{tensors_of(norm2_weight), tensors_of(norm2_bias), tensors_of(norm2_mean), tensors_of(norm2_var)};
  return backward(dy, y, z, {tensors_of(conv1), conv2, norm1, norm2, tensors_of(dropout), eps}, training);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, CPU, m) {
  m.impl("dense_block2d_forward", TORCH_BOX(&dense_block2d_forward));
  m.impl("dense_block2d_backward", TORCH_BOX(&dense_block2d_backward));
}

}  // namespace fastnest
