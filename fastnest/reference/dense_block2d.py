"""L densely connected layers on images, by definition.

For i = 1..L, with x_0 = x [n, c_0, h, w] and N1_i, N2_i batch norms:

    q_i = K_i * relu(N2_i(B_i * relu(N1_i(x_{i-1}))))     or     q_i = K_i * relu(N1_i(x_{i-1}))
    x_i = [x_{i-1}, q_i]  [n, c_i, h, w],  c_i = c_{i-1} + d_i

(Huang et al. 2017, DenseNet-BC and DenseNet; arXiv 2111.05496, equation 9 on images.) B_i is conv1[i] [b_i, c_{i-1}, 1,
1], K_i is conv2[i] [d_i, b_i or c_{i-1}, 3, 3] with padding 1. A dropout mask multiplies q_i before it is appended.
Every list has one tensor per layer, or none at all.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .batch_stats import batch_stats_forward
from .norm_relu import AllReduce, Norm, norm_relu, shared_stats


class Weights(NamedTuple):
    """The lists of one call, one tensor per layer; an empty list is absent. No means: the batch's own statistics."""

    conv1: Sequence[Tensor]
    conv2: Sequence[Tensor]
    norm1_weight: Sequence[Tensor]
    norm1_bias: Sequence[Tensor]
    norm1_mean: Sequence[Tensor]
    norm1_var: Sequence[Tensor]
    norm2_weight: Sequence[Tensor]
    norm2_bias: Sequence[Tensor]
    norm2_mean: Sequence[Tensor]
    norm2_var: Sequence[Tensor]
    dropout: Sequence[Tensor]

    def norms(self, i: int) -> tuple[Norm, Norm | None]:
        first = Norm(self.norm1_weight[i], self.norm1_bias[i], *(one[i] for one in self[4:6] if one))
        if not self.conv1:
            return first, None
        return first, Norm(self.norm2_weight[i], self.norm2_bias[i], *(one[i] for one in self[8:10] if one))


# What a backward has gradients for, in this order after x's own.
LEARNED = ("conv1", "conv2", "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")


class Statistics(NamedTuple):
    """Batch mean and biased variance: of y's channels [c_L], and of every hidden image's [b_i]."""

    mean: Tensor
    var: Tensor
    hidden_mean: list[Tensor]
    hidden_var: list[Tensor]


def dense_block2d_forward(
    x: Tensor, weights: Weights, eps: float, all_reduce: AllReduce | None = None
) -> tuple[Tensor, Statistics | None]:
    """y = x_L [n, c_L, h, w], and the batch statistics where they are used."""
    hidden: list[tuple[Tensor, Tensor]] = []
    for i, conv2 in enumerate(weights.conv2):
        norm1, norm2 = weights.norms(i)
        a, _ = norm_relu(x, norm1, eps, all_reduce)
        if norm2 is not None:
            a, batch = norm_relu(F.conv2d(a, weights.conv1[i]), norm2, eps, all_reduce)
            if batch is not None:
                hidden.append(batch)
        q = F.conv2d(a, conv2, padding=1)
        if weights.dropout:
            q = q * weights.dropout[i]
        x = torch.cat([x, q], 1)
    if weights.norm1_mean:
        return x, None
    stats = batch_stats_forward(x.detach()) if all_reduce is None else shared_stats(x.detach(), all_reduce)
    return x, Statistics(*stats, [mean for mean, _ in hidden], [var for _, var in hidden])


def dense_block2d_backward(
    dy: Tensor, x: Tensor, weights: Weights, eps: float
) -> tuple[Tensor, dict[str, Sequence[Tensor]]]:
    """The gradients of x and of the lists that `LEARNED` names, as torch derives them; they have derivatives too."""
    lists = {name: list(getattr(weights, name)) for name in LEARNED}
    with torch.enable_grad():
        # Views, so that no weight is reached through x too, where x is a part of this function's own result.
        given = (x, *chain(*lists.values()))
        leaves = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in given]
        x, rest = leaves[0], iter(leaves[1:])
        lists = {name: [next(rest) for _ in tensors] for name, tensors in lists.items()}
        y, _ = dense_block2d_forward(x, weights._replace(**lists), eps)
        gradients = iter(torch.autograd.grad(y, leaves, dy, create_graph=True, materialize_grads=True))
    return next(gradients), {name: [next(gradients) for _ in tensors] for name, tensors in lists.items()}


def empty_image(x: Tensor, channels: int) -> Tensor:
    """As x [n, _, h, w] with other channels, in channels-last memory."""
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def dense_block2d_forward_fake(
    x: Tensor,
    conv1: Sequence[Tensor] | None,
    conv2: Sequence[Tensor],
    norm1_weight: Sequence[Tensor],
    norm1_bias: Sequence[Tensor],
    norm1_mean: Sequence[Tensor] | None,
    norm1_var: Sequence[Tensor] | None,
    norm2_weight: Sequence[Tensor] | None,
    norm2_bias: Sequence[Tensor] | None,
    norm2_mean: Sequence[Tensor] | None,
    norm2_var: Sequence[Tensor] | None,
    dropout: Sequence[Tensor] | None,
    eps: float,
    save: bool,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Shapes and dtypes of the kernels' (y, z, mean, var, z_mean, z_var), for torch.compile."""
    batch, channels = not norm1_mean, x.shape[1] + sum(w.shape[0] for w in conv2)

    def vectors(sizes: Iterable[int]) -> list[Tensor]:
        return [x.new_empty(size, dtype=torch.float32) for size in sizes]

    hidden = [w.shape[0] for w in conv1 or ()]
    mean, var = vectors([channels if batch else 0] * 2)
    z = [empty_image(x, size) for size in hidden] if save else []
    kept = hidden if batch else []
    return empty_image(x, channels), z, mean, var, vectors(kept), vectors(kept)


def dense_block2d_backward_fake(
    dy: Tensor,
    y: Tensor,
    z: Sequence[Tensor],
    conv1: Sequence[Tensor] | None,
    conv2: Sequence[Tensor],
    norm1_weight: Sequence[Tensor],
    norm1_bias: Sequence[Tensor],
    norm1_mean: Sequence[Tensor] | None,
    norm1_var: Sequence[Tensor] | None,
    norm2_weight: Sequence[Tensor] | None,
    norm2_bias: Sequence[Tensor] | None,
    norm2_mean: Sequence[Tensor] | None,
    norm2_var: Sequence[Tensor] | None,
    dropout: Sequence[Tensor] | None,
    eps: float,
    training: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Shapes and dtypes of the kernels' gradients, for torch.compile."""
    dx = empty_image(y, y.shape[1] - sum(w.shape[0] for w in conv2))

    def like(tensors: Sequence[Tensor] | None) -> list[Tensor]:
        return [t.new_empty(t.shape) for t in tensors or ()]

    norms = like(norm1_weight), like(norm1_bias), like(norm2_weight), like(norm2_bias)
    return dx, like(conv1), like(conv2), *norms
