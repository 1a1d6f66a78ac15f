// Pre-activation residual blocks on images, forward and backward, out of links (norm_conv.h).
//
// Written once a forward: the image behind each convolution, with its batch statistics, and y with the shortcut added.
// The activated images are never in memory, but for the features where these are asked for. A backward reads the same
// images, applies batch norm and relu to them again, and hands each link's gradient to the one before without what its
// batch norm owes, which is added when it is read.
#include "cpu/residual_block2d.h"

#include <cstring>

#include "cpu/scratch.h"

namespace fastnest {
namespace {

struct Links {
  const Tensor& x;
  const ResidualBlock2d& block;
  const List& hidden;  // images between convolutions, those that are there yet

  size_t last() const { return block.conv.size() - 1; }
  const Tensor& source(size_t i) const { return i ? hidden[i - 1] : x; }

  Fold fold(size_t i, const List& mean, const List& var) const {
    if (block.norm_weight.empty()) return {};
    return {floats(block.norm_weight[i]),  floats(block.norm_bias[i]),  floats(mean[i]), floats(var[i]),
            static_cast<float>(block.eps), block.norm_weight[i].size(0)};
  }

  // Convolution i, or the projection of x, which reads the fold as long as it lives; the target is for the caller.
  NormConv link(const Tensor& from, const Tensor& weight, const Fold& fold, int64_t stride) const {
    NormConv conv{};
    conv.element = element_of(x);
    conv.images = from.size(0), conv.height = from.size(2), conv.width = from.size(3);
    conv.c = weight.size(1), conv.o = weight.size(0), conv.kernel = weight.size(2), conv.stride = stride;
    conv.source = pixels_of(from), conv.weight = weight.const_data_ptr();
    if (!fold.scale.empty()) conv.scale = fold.scale.data(), conv.shift = fold.shift.data();
    return conv;
  }
  NormConv link(size_t i, const Fold& fold) const {
    return link(source(i), block.conv[i], fold, i == block.strided ? block.stride : 1);
  }
  NormConv projection(const Fold& fold) const { return link(x, *block.projection, fold, block.stride); }
};

Tensor empty_target(const NormConv& conv, ScalarType type) {
  return empty_image(conv.images, conv.o, conv.out_height(), conv.out_width(), type);
}

int64_t pixels_in(const Tensor& x) { return x.size(0) * x.size(2) * x.size(3); }

}  // namespace

ResidualBlock2dOutputs residual_block2d_forward(const Tensor& x, const ResidualBlock2d& block, bool features,
                                                bool save) {
  const ScalarType type = x.scalar_type();
  const bool batch = !block.norm_weight.empty() && block.norm_mean.empty();
  List hidden, mean, var;
  const Links links{x, block, hidden};
  const auto statistics = [&](int64_t c) {
    if (batch) mean.push_back(empty({c}, ScalarType::Float)), var.push_back(empty({c}, ScalarType::Float));
  };
  const auto fold_of = [&](size_t i) {
    return links.fold(i, batch ? mean : block.norm_mean, batch ? var : block.norm_var);
  };
  statistics(x.size(1));
  if (batch) run_batch_stats(element_of(x), pixels_of(x), {}, pixels_in(x), x.size(1), floats(mean[0]), floats(var[0]));

  for (size_t i = 0; i < links.last(); ++i) {
    const Fold fold = fold_of(i);
    NormConv conv = links.link(i, fold);
    Tensor target = empty_target(conv, type);
    conv.target = pixels_of(target);
    if (!block.conv_bias.empty()) conv.bias = floats(block.conv_bias[i]);
    statistics(conv.o);
    run_forward(conv, {}, batch ? floats(mean.back()) : nullptr, batch ? floats(var.back()) : nullptr);
    hidden.push_back(std::move(target));
  }

  const Fold last = fold_of(links.last());
  NormConv conv = links.link(links.last(), last);
  Tensor y = empty_target(conv, type);
  conv.target = pixels_of(y);
  if (!block.conv_bias.empty()) conv.bias = floats(block.conv_bias.back());
  NormConvForward io{};
  io.residual = pixels_of(x);
  if (block.projection) {  // into y, where the last convolution is added to it
    const Fold first = fold_of(0);
    NormConv projection = links.projection(first);
    projection.target = io.residual = conv.target;
    if (block.projection_bias) projection.bias = floats(*block.projection_bias);
    run_forward(projection, {}, nullptr, nullptr);
  }
  run_forward(conv, io, nullptr, nullptr);

  Tensor v = empty({0}, type);
  if (features) {
    v = empty_image(conv.images, conv.c, conv.height, conv.width, type);
    run_activate(conv, pixels_of(v));
  }
  if (!save) hidden.clear();
  return {y, v, hidden, mean, var};
}

ResidualBlock2dGradients residual_block2d_backward(const std::optional<Tensor>& dy,
                                                   const std::optional<Tensor>& dfeatures, const Tensor& x,
                                                   const List& hidden, const ResidualBlock2d& block, bool training) {
  const Element element = element_of(x);
  const Links links{x, block, hidden};
  Tensor dx = empty_image(x.size(0), x.size(1), x.size(2), x.size(3), x.scalar_type());
  List dconv = empty_like(block.conv), dconv_bias = empty_like(block.conv_bias),
       dnorm_weight = empty_like(block.norm_weight), dnorm_bias = empty_like(block.norm_bias);
  Tensor dprojection = block.projection ? empty_as(*block.projection) : empty({0}, x.scalar_type());
  Tensor dprojection_bias = empty({block.projection_bias ? block.projection_bias->size(0) : 0}, ScalarType::Float);

  const Fold none;
  Tensor given = dy ? *dy : empty_target(links.link(links.last(), none), x.scalar_type());
  if (!dy) std::memset(given.mutable_data_ptr(), 0, pixels_in(given) * given.size(1) * bytes_of(element));
  const auto bias_gradient = [&](Tensor& to) {
    run_sums(element, pixels_of(given), pixels_in(given), given.size(1), floats(to));
  };
  if (!dconv_bias.empty()) bias_gradient(dconv_bias.back());
  if (block.projection_bias) bias_gradient(dprojection_bias);

  // Gradients of hidden images by turns in two halves; that of x where it is to be, if it can be.
  int64_t half = element == Element::kFloat32 ? 0 : pixels_in(x) * x.size(1), widest = x.size(1);
  for (const Tensor& image : hidden) {
    half = std::max(half, pixels_in(image) * image.size(1));
    widest = std::max(widest, image.size(1));
  }
  Scratch gradients(2 * half);
  std::vector<float> sum(widest), product(widest), slope(widest), offset(widest), next_slope(widest),
      next_offset(widest), more(2 * widest);
  Gradient target{pixels_of(given), element, nullptr, nullptr, nullptr};
  for (size_t i = block.conv.size(); i-- > 0;) {
    const Fold fold = links.fold(i, block.norm_mean, block.norm_var);
    NormConv conv = links.link(i, fold);
    if (i < links.last()) conv.target = pixels_of(hidden[i]);
    NormConvBackward io{};
    io.target = target;
    io.mean = fold.scale.empty() ? nullptr : floats(block.norm_mean[i]);
    if (i == links.last() && dfeatures) io.features = pixels_of(*dfeatures);
    if (i == 0 && !block.projection) io.shortcut = pixels_of(given);
    io.into = i == 0 && element == Element::kFloat32 ? pixels_of(dx) : Pixels{gradients.data() + i % 2 * half, conv.c};
    run_backward(conv, io, dconv[i].mutable_data_ptr(), sum.data(), product.data());
    if (i == 0 && block.projection) {
      NormConvBackward also{};
      also.target = {pixels_of(given), element, nullptr, nullptr, nullptr};
      also.into = io.into, also.add = true, also.mean = io.mean;
      run_backward(links.projection(fold), also, dprojection.mutable_data_ptr(), more.data(), more.data() + widest);
      for (int64_t c = 0; c < conv.c; ++c) sum[c] += more[c], product[c] += more[widest + c];
    }
    if (i > 0 && !dconv_bias.empty()) {
      // Of the convolution before; a batch norm in training takes its bias out again.
      float* const bias = floats(dconv_bias[i - 1]);
      for (int64_t c = 0; c < conv.c; ++c) {
        bias[c] = fold.scale.empty() ? sum[c] : fold.scale[c] * sum[c];
        if (training) bias[c] -= bias[c];  // NaN where the sum is not finite
      }
    }
    target = {io.into, Element::kFloat32, nullptr, nullptr, io.mean};
    if (fold.scale.empty()) continue;
    if (training) std::fill(next_slope.begin(), next_slope.end(), 0.0f), next_offset = next_slope;
    close_norm(fold, sum.data(), product.data(), pixels_in(links.source(i)), floats(dnorm_weight[i]),
               floats(dnorm_bias[i]), training ? next_slope.data() : nullptr, training ? next_offset.data() : nullptr);
    std::swap(slope, next_slope), std::swap(offset, next_offset);
    if (training) target.slope = slope.data(), target.offset = offset.data();
  }
  if (training || element != Element::kFloat32)
    run_finish(element, target, pixels_of(x), pixels_of(dx), false, x.size(1), pixels_in(x));
  return {dx, dconv, dconv_bias, dnorm_weight, dnorm_bias, dprojection, dprojection_bias};
}

}  // namespace fastnest
