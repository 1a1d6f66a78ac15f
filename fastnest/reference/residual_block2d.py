"""Pre-activation residual blocks on images, by definition: what bottleneck2d and basic_block2d share.

    a = relu(N_0(x))       v_0 = a       v_i = relu(N_i(C_{i-1} * v_{i-1} + b_{i-1})),  i = 1..l-1
    y = C_{l-1} * v_{l-1} + b_{l-1} + shortcut        shortcut = P * a + p, or x

(He et al. 2016, "Identity mappings in deep residual networks"; arXiv 2111.05496, equation 1, with v = v_{l-1} as
features.) C_i is conv[i] [o, c, 1, 1] or [o, c, 3, 3] with padding 1, P is 1x1; one of the C_i and P have the stride.
N_i is batch norm i, or nothing. Every list has one tensor per convolution, or none at all.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .norm_relu import Norm, norm_relu


class Weights(NamedTuple):
    """The lists of one call; an empty list is absent. No means beside norms: the batch's own statistics."""

    conv: Sequence[Tensor]
    conv_bias: Sequence[Tensor]
    norm_weight: Sequence[Tensor]
    norm_bias: Sequence[Tensor]
    norm_mean: Sequence[Tensor]
    norm_var: Sequence[Tensor]
    projection: Sequence[Tensor]  # one, or none
    projection_bias: Sequence[Tensor]

    # No property: torch 2.10 compiles none of a named tuple.
    def uses_batch_statistics(self) -> bool:
        """Whether the norms normalise with the batch's own statistics."""
        return not (not self.norm_weight or self.norm_mean)


# What a backward has gradients for, in this order after x's own.
LEARNED = ("conv", "conv_bias", "norm_weight", "norm_bias", "projection", "projection_bias")

Statistics = tuple[list[Tensor], list[Tensor]]


class Kind(NamedTuple):
    """What tells one block from another: the kernel sizes of its convolutions, and which of them has the stride."""

    kernels: tuple[int, ...]
    strided: int

    def strides(self, stride: int) -> list[int]:
        return [stride if i == self.strided else 1 for i in range(len(self.kernels))]


def residual_block2d_forward(
    kind: Kind, x: Tensor, weights: Weights, stride: int, eps: float
) -> tuple[Tensor, Tensor, Statistics | None]:
    """y, the features v, and where they are used the batch's (means, variances) of what each norm reads."""
    found: list[tuple[Tensor, Tensor]] = []

    def activate(z: Tensor, i: int) -> Tensor:
        if not weights.norm_weight:
            return F.relu(z)
        given = (weights.norm_mean[i], weights.norm_var[i]) if weights.norm_mean else ()
        v, stats = norm_relu(z, Norm(weights.norm_weight[i], weights.norm_bias[i], *given), eps)
        if stats is not None:
            found.append(stats)
        return v

    def convolve(v: Tensor, i: int) -> Tensor:
        bias = weights.conv_bias[i] if weights.conv_bias else None
        return F.conv2d(v, weights.conv[i], bias, kind.strides(stride)[i], kind.kernels[i] // 2)

    a = v = activate(x, 0)
    for i in range(1, len(weights.conv)):
        v = activate(convolve(v, i - 1), i)
    shortcut = x
    if weights.projection:
        bias = weights.projection_bias[0] if weights.projection_bias else None
        shortcut = F.conv2d(a, weights.projection[0], bias, stride)
    y = convolve(v, len(weights.conv) - 1) + shortcut
    return y, v, ([mean for mean, _ in found], [var for _, var in found]) if weights.uses_batch_statistics() else None


def residual_block2d_backward(
    kind: Kind, dy: Tensor | None, dfeatures: Tensor | None, x: Tensor, weights: Weights, stride: int, eps: float
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The gradients of x and of the lists that `LEARNED` names, as torch derives them; they have derivatives too."""
    with torch.enable_grad():
        # Views, so that an argument that is made from another one, or given twice, does not count as that one.
        of_x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        lists = {
            name: [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in getattr(weights, name)]
            for name in LEARNED
        }
        y, v, _ = residual_block2d_forward(kind, of_x, weights._replace(**lists), stride, eps)
        outputs, given = zip(*((out, d) for out, d in ((y, dy), (v, dfeatures)) if d is not None), strict=True)
        leaves = [of_x, *(t for tensors in lists.values() for t in tensors)]
        found = iter(torch.autograd.grad(outputs, leaves, given, create_graph=True, materialize_grads=True))
    return next(found), {name: [next(found) for _ in tensors] for name, tensors in lists.items()}


def _empty_image(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """[n, channels, height, width] as x, in channels-last memory."""
    shape = (x.shape[0], channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def forward_fake(kind: Kind) -> Callable[..., Any]:
    """What says the shapes and dtypes of the kernels' (y, features, hidden, mean, var) to torch.compile."""

    def fake(
        x: Tensor,
        conv: Sequence[Tensor],
        conv_bias: Sequence[Tensor] | None,
        norm_weight: Sequence[Tensor] | None,
        norm_bias: Sequence[Tensor] | None,
        norm_mean: Sequence[Tensor] | None,
        norm_var: Sequence[Tensor] | None,
        projection: Tensor | None,
        projection_bias: Tensor | None,
        stride: int,
        eps: float,
        features: bool,
        save: bool,
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        height, width = x.shape[2:]
        images = []
        for weight, step in zip(conv, kind.strides(stride), strict=True):
            height, width = (height - 1) // step + 1, (width - 1) // step + 1
            images.append(_empty_image(x, weight.shape[0], height, width))
        *hidden, y = images
        v = torch.empty_like(hidden[-1]) if features else x.new_empty(0)
        stats = norm_weight if norm_weight and not norm_mean else []
        mean, var = ([x.new_empty(t.shape, dtype=torch.float32) for t in stats] for _ in range(2))
        return y, v, hidden if save else [], mean, var

    return fake


def backward_fake(
    dy: Tensor | None,
    dfeatures: Tensor | None,
    x: Tensor,
    hidden: Sequence[Tensor],
    conv: Sequence[Tensor],
    conv_bias: Sequence[Tensor] | None,
    norm_weight: Sequence[Tensor] | None,
    norm_bias: Sequence[Tensor] | None,
    norm_mean: Sequence[Tensor] | None,
    norm_var: Sequence[Tensor] | None,
    projection: Tensor | None,
    projection_bias: Tensor | None,
    stride: int,
    eps: float,
    training: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor]:
    """Shapes and dtypes of the kernels' gradients, for torch.compile."""

    def like(tensors: Sequence[Tensor] | None) -> list[Tensor]:
        return [t.new_empty(t.shape) for t in tensors or ()]

    dprojection = x.new_empty(0) if projection is None else x.new_empty(projection.shape)
    dprojection_bias = x.new_empty(0 if projection_bias is None else projection_bias.shape, dtype=torch.float32)
    lists = like(conv), like(conv_bias), like(norm_weight), like(norm_bias)
    return _empty_image(x, *x.shape[1:]), *lists, dprojection, dprojection_bias
