// basic_block2d for the CPU: a residual block of convolutions 3x3 with the stride, 3x3 (residual_block2d.h) |
// registration.
#include "cpu/residual_block2d.h"

namespace fastnest {
namespace {

constexpr size_t kStrided = 0;

ResidualBlock2dOutputs basic_block2d_forward(Tensor x, List conv, List conv_bias, List norm_weight, List norm_bias,
                                             List norm_mean, List norm_var, std::optional<Tensor> projection,
                                             std::optional<Tensor> projection_bias, int64_t stride, double eps,
                                             bool features, bool save) {
  return residual_block2d_forward(x,
                                  {conv, conv_bias, norm_weight, norm_bias, norm_mean, norm_var, projection,
                                   projection_bias, kStrided, stride, eps},
                                  features, save);
}

ResidualBlock2dGradients basic_block2d_backward(std::optional<Tensor> dy, std::optional<Tensor> dfeatures, Tensor x,
                                                List hidden, List conv, List conv_bias, List norm_weight,
                                                List norm_bias, List norm_mean, List norm_var,
                                                std::optional<Tensor> projection, std::optional<Tensor> projection_bias,
                                                int64_t stride, double eps, bool training) {
  return residual_block2d_backward(dy, dfeatures, x, hidden,
                                   {conv, conv_bias, norm_weight, norm_bias, norm_mean, norm_var, projection,
                                    projection_bias, kStrided, stride, eps},
                                   training);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, CPU, m) {
  m.impl("basic_block2d_forward", TORCH_BOX(&basic_block2d_forward));
  m.impl("basic_block2d_backward", TORCH_BOX(&basic_block2d_backward));
}

}  // namespace fastnest
