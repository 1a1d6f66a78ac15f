"""basic_block2d: a pre-activation basic residual block on images as one op."""

from collections.abc import Sequence

from torch import Tensor

from ..reference.residual_block2d import Statistics
from .image import check_image
from .residual_block2d import residual_block2d, weights_of

OP = "basic_block2d"


def basic_block2d(
    x: Tensor,
    conv: Sequence[Tensor],
    norm_weight: Sequence[Tensor] | None = None,
    norm_bias: Sequence[Tensor] | None = None,
    *,
    conv_bias: Sequence[Tensor] | None = None,
    norm_mean: Sequence[Tensor] | None = None,
    norm_var: Sequence[Tensor] | None = None,
    projection: Tensor | None = None,
    projection_bias: Tensor | None = None,
    stride: int = 1,
    eps: float = 1e-5,
    return_features: bool = False,
    return_statistics: bool = False,
) -> Tensor | tuple[Tensor | Statistics | None, ...]:
    """y = conv_1(v) + x with v = relu(norm_1(conv_0(a))) and a = relu(norm_0(x)).

    The block of arXiv 2111.05496, equation 1, with one 3x3 convolution in G (He et al. 2016, "Identity mappings in deep
    residual networks"). With a projection the shortcut is projection(a), with the stride, as in timm's resnetv2 and the
    ResNEst authors' code. A batch norm and its relu are applied where the convolution behind them reads, and computed
    again in the backward; the batch's statistics are taken where an image is written.

    Args:
        x: the images [n, c, h, w], float32, bfloat16 or float16 for the kernels (float64 runs the reference), in
            channels-last memory; any other layout is copied to it, and the result back.
        conv: 2 weights [k, c, 3, 3] with the stride and [m, k, 3, 3], both with padding 1. Of x's dtype, as are the
            biases and the projection.
        norm_weight, norm_bias: 2 vectors each, of the channels that norm_0 to norm_1 read; default none: no batch norm.
            Batch norms are of x's dtype, or float32 beside a bfloat16 or float16 x.
        conv_bias: 2 vectors, default none.
        norm_mean, norm_var: statistics to normalise with (evaluation), 2 vectors each, both or neither; default none:
            mean and biased variance of this batch. They get no gradient.
        projection: [m, c, 1, 1]; default none, where neither the stride nor the channels change the shape.
        projection_bias: [m], default none.
        stride: 1 or 2, of conv_0 and the projection.
        eps: added to every variance.
        return_features: whether to return v too.
        return_statistics: whether to return the batch's statistics too.

    Returns:
        y [n, m, h', w'] in x's memory format, with h' = (h - 1) // stride + 1; or a tuple of it and what was asked for:
        the features v [n, k, h', w'], and (means, variances) of what each norm reads, lists of 2 vectors, float32
        without gradients, or None where no statistics of the batch are used.

    Raises:
        ValueError, TypeError: naming the argument that does not fit, what was expected and what came.
        RuntimeError: where a forced backend (`fastnest.backend`) cannot take the call.
    """
    check_image(OP, x)
    norms = norm_weight, norm_bias, norm_mean, norm_var
    weights = weights_of(OP, conv, conv_bias, norms, projection, projection_bias)
    return residual_block2d(OP, x, weights, stride, eps, return_features, return_statistics)
