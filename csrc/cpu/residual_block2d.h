// Pre-activation residual blocks on images: what bottleneck2d and basic_block2d share.
#pragma once

#include <optional>
#include <tuple>

#include "cpu/image.h"

namespace fastnest {

// The arguments of one call. Lists have a tensor per convolution, or none; biases and norms are float32.
struct ResidualBlock2d {
  const List &conv, &conv_bias, &norm_weight, &norm_bias, &norm_mean, &norm_var;
  const std::optional<Tensor>&projection, &projection_bias;  // 1x1, of the activated input
  size_t strided;                                            // the convolution that has the stride
  int64_t stride;
  double eps;
};

using ResidualBlock2dOutputs = std::tuple<Tensor, Tensor, List, List, List>;
using ResidualBlock2dGradients = std::tuple<Tensor, List, List, List, List, Tensor, Tensor>;

// y, the features (empty unless asked for), the images between convolutions (none unless to be saved), and the batch
// statistics of x and of these, none where means are given or there are no norms.
ResidualBlock2dOutputs residual_block2d_forward(const Tensor& x, const ResidualBlock2d& block, bool features,
                                                bool save);

// The gradients of x, of conv, conv_bias, norm_weight, norm_bias, projection and projection_bias, empty for what is
// absent. `norm_mean` and `norm_var` are those that the forward used, its batch's where `training`.
ResidualBlock2dGradients residual_block2d_backward(const std::optional<Tensor>& dy,
                                                   const std::optional<Tensor>& dfeatures, const Tensor& x,
                                                   const List& hidden, const ResidualBlock2d& block, bool training);

// The same as the schemas list their arguments, of a kind of block whose convolution kStrided has the stride.
template <size_t kStrided>
ResidualBlock2dOutputs registered_forward(Tensor x, List conv, OptionalList conv_bias, OptionalList norm_weight,
                                          OptionalList norm_bias, OptionalList norm_mean, OptionalList norm_var,
                                          std::optional<Tensor> projection, std::optional<Tensor> projection_bias,
                                          int64_t stride, double eps, bool features, bool save) {
  const ResidualBlock2d block{conv,
                              tensors_of(conv_bias),
                              tensors_of(norm_weight),
                              tensors_of(norm_bias),
                              tensors_of(norm_mean),
                              tensors_of(norm_var),
                              projection,
                              projection_bias,
                              kStrided,
                              stride,
                              eps};
  return residual_block2d_forward(x, block, features, save);
}

template <size_t kStrided>
ResidualBlock2dGradients registered_backward(std::optional<Tensor> dy, std::optional<Tensor> dfeatures, Tensor x,
                                             List hidden, List conv, OptionalList conv_bias, OptionalList norm_weight,
                                             OptionalList norm_bias, OptionalList norm_mean, OptionalList norm_var,
                                             std::optional<Tensor> projection, std::optional<Tensor> projection_bias,
                                             int64_t stride, double eps, bool training) {
  const ResidualBlock2d block{conv,
                              tensors_of(conv_bias),
                              tensors_of(norm_weight),
                              tensors_of(norm_bias),
                              tensors_of(norm_mean),
                              tensors_of(norm_var),
                              projection,
                              projection_bias,
                              kStrided,
                              stride,
                              eps};
  return residual_block2d_backward(dy, dfeatures, x, hidden, block, training);
}

}  // namespace fastnest
