"""Pre-activation residual blocks on images: what bottleneck2d and basic_block2d share.

Each convolution applies the batch norm and the relu in front of it where it reads, adds its bias, and leaves its
result's moments (norm_conv.py says what moves); the last one adds the shortcut as it writes y. With a projection the
shortcut is a convolution of the same kind. x is read once more where batch statistics are its own.

Launches with l convolutions: forward l, with a projection 1 more, with batch statistics l + 1 more; backward 2 l to
4 l, with a projection 2 or 3 more, with batch statistics 1 more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .batch_stats import moments
from .image import empty_image
from .norm_conv import Convolution, Norm, Settled
from .norm_conv_backward import input_gradient, settle, weight_gradient
from .norm_conv_forward import activate, convolve

Images = Sequence[Tensor]


def _convolutions(
    strided: int, conv: Images, norms: Sequence[Norm | None], projection: Tensor | None, stride: int
) -> tuple[list[Convolution], Convolution | None]:
    steps = [stride if i == strided else 1 for i in range(len(conv))]
    shortcut = None if projection is None else Convolution(projection, norms[0], stride)
    return [Convolution(*each) for each in zip(conv, norms, steps, strict=True)], shortcut


def _norms(conv: Images, *vectors: Images) -> list[Norm | None]:
    return [Norm(*of_one) for of_one in zip(*vectors, strict=True)] if vectors[0] else [None] * len(conv)


def forward(
    strided: int,
    x: Tensor,
    conv: Images,
    conv_bias: Images,
    norm_weight: Images,
    norm_bias: Images,
    norm_mean: Images,
    norm_var: Images,
    projection: Tensor | None,
    projection_bias: Tensor | None,
    stride: int,
    eps: float,
    features: bool,
    save: bool,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """(y, features, hidden, mean, var): see `fastnest.reference.residual_block2d`; strided: which convolution is."""
    batch = bool(norm_weight) and not norm_mean
    mean, var = ([torch.empty_like(t) for t in norm_weight if batch] for _ in range(2))
    statistics = (mean, var) if batch else (norm_mean, norm_var)
    norms = _norms(conv, *statistics, norm_weight, norm_bias)
    convolutions, of_shortcut = _convolutions(strided, conv, norms, projection, stride)
    if batch:
        moments(x, mean[0], var[0])
    height, width = ((size - 1) // stride + 1 for size in x.shape[2:])
    shortcut = x
    if of_shortcut is not None:
        shortcut = empty_image(x, projection.shape[0], height, width)
        convolve(x, of_shortcut, eps, shortcut, bias=projection_bias)
    images = [x]
    for i, convolution in enumerate(convolutions):
        size = x.shape[2:] if i < strided else (height, width)
        images.append(empty_image(x, convolution.weight.shape[0], *size))
        last = i + 1 == len(conv)
        convolve(
            images[i], convolution, eps, images[i + 1], bias=conv_bias[i] if conv_bias else None,
            shortcut=shortcut if last else None, moments=(mean[i + 1], var[i + 1]) if batch and not last else None,
        )  # fmt: skip
    _, *hidden, y = images
    v = torch.empty_like(hidden[-1]) if features else x.new_empty(0)
    if features:
        activate(hidden[-1], norms[-1], eps, v)
    return y, v, hidden if save else [], mean, var


def backward(
    strided: int,
    dy: Tensor | None,
    dfeatures: Tensor | None,
    x: Tensor,
    hidden: Images,
    conv: Images,
    conv_bias: Images,
    norm_weight: Images,
    norm_bias: Images,
    norm_mean: Images,
    norm_var: Images,
    projection: Tensor | None,
    projection_bias: Tensor | None,
    stride: int,
    eps: float,
    training: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor]:
    """Gradients of x, conv, conv_bias, norm_weight, norm_bias, projection and its bias; [0] where one is absent."""
    dx = empty_image(x, *x.shape[1:])
    dprojection, dprojection_bias = (x.new_empty(0, dtype=dtype) for dtype in (x.dtype, torch.float32))
    if x.numel() == 0:
        lists = (conv, conv_bias, norm_weight, norm_bias, [projection], [projection_bias])
        *lists, (dp,), (dp_bias,) = ([None if t is None else t.new_zeros(t.shape) for t in each] for each in lists)
        return dx, *lists, dprojection if dp is None else dp, dprojection_bias if dp_bias is None else dp_bias
    if dy is None:
        dy = empty_image(x, conv[-1].shape[0], *hidden[-1].shape[2:]).zero_()
    norms = _norms(conv, norm_mean, norm_var, norm_weight, norm_bias)
    convolutions, of_shortcut = _convolutions(strided, conv, norms, projection, stride)
    through_projection = None
    if of_shortcut is not None:
        dprojection, dbias = weight_gradient(Settled(dy), of_shortcut, x, eps, projection_bias)
        dprojection_bias = dprojection_bias if dbias is None else dbias
        through_projection = torch.empty_like(dx)
        input_gradient(Settled(dy), of_shortcut, x, eps, through_projection, relu=False)
    dconv, dconv_bias, dnorm_weight, dnorm_bias = ([None] * len(t) for t in (conv, conv_bias, norm_weight, norm_bias))
    d, images = Settled(dy), [x, *hidden]
    for i in reversed(range(len(conv))):
        image, norm = images[i], norms[i]
        dconv[i], dbias = weight_gradient(d, convolutions[i], image, eps, conv_bias[i] if conv_bias else None)
        if conv_bias:
            dconv_bias[i] = dbias
        out = torch.empty_like(image) if i else dx
        of_out = [torch.empty_like(norm.mean) for _ in range(2)] if training else None
        found = input_gradient(
            d, convolutions[i], image, eps, out, more=through_projection if i == 0 else _last(i, conv, dfeatures),
            base=dy if i == 0 and projection is None else None, settle=of_out,
        )  # fmt: skip
        if norm is not None:
            dnorm_weight[i], dnorm_bias[i] = found
        d = Settled(out, image, norm.mean, *of_out) if training else Settled(out)
    if training:
        settle(d, dx)
    return dx, dconv, dconv_bias, dnorm_weight, dnorm_bias, dprojection, dprojection_bias


def _last(i: int, conv: Images, dfeatures: Tensor | None) -> Tensor | None:
    """The features are what the last convolution reads."""
    return dfeatures if i + 1 == len(conv) else None
