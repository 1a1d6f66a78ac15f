"""L densely connected layers on images, in one buffer.

Every layer reads the channels before its own in y where they lie and writes its growth behind them: nothing is ever
concatenated. A channel's batch statistics are taken from the tiles that write it, x's own while it is copied into y,
and serve every later layer. The backward has one buffer of gradients too, to whose prefix each layer adds; what batch
statistics add to it, offset + slope (y - mean) by channel, is gathered in two vectors over all layers and subtracted
where a layer's own channels are read. What one layer moves: norm_conv.py, twice.

Launches a layer with conv1: forward 2, with batch statistics 4; backward 6 to 8. Around them 2 or 1, and 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .batch_stats import moments
from .image import empty_image
from .norm_conv import Convolution, Norm, Settled
from .norm_conv_backward import input_gradient, settle, weight_gradient
from .norm_conv_forward import convolve

Images = Sequence[Tensor]


def dense_block2d_forward(
    x: Tensor,
    conv1: Images,
    conv2: Images,
    norm1_weight: Images,
    norm1_bias: Images,
    norm1_mean: Images,
    norm1_var: Images,
    norm2_weight: Images,
    norm2_bias: Images,
    norm2_mean: Images,
    norm2_var: Images,
    dropout: Images,
    eps: float,
    save: bool,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, list[Tensor], list[Tensor]]:
    """(y, z, mean, var, z_mean, z_var): see `fastnest.reference.dense_block2d`, whose fake says their shapes."""
    c, batch = x.shape[1], not norm1_mean
    y = empty_image(x, c + sum(weight.shape[0] for weight in conv2), *x.shape[2:])
    mean, var = (x.new_empty(y.shape[1] if batch else 0, dtype=torch.float32) for _ in range(2))
    hidden = [weight.shape[0] for weight in conv1]
    z_mean, z_var = ([x.new_empty(b, dtype=torch.float32) for b in hidden if batch] for _ in range(2))
    if batch:
        moments(x, mean[:c], var[:c], copy=y[:, :c])
    else:
        y[:, :c].copy_(x)
    z = []
    for i, weight in enumerate(conv2):
        end = c + weight.shape[0]
        norm = Norm(*((mean[:c], var[:c]) if batch else (norm1_mean[i], norm1_var[i])), norm1_weight[i], norm1_bias[i])
        image = y[:, :c]
        if conv1:
            at = empty_image(x, hidden[i], *x.shape[2:])
            convolve(image, Convolution(conv1[i], norm), eps, at, moments=(z_mean[i], z_var[i]) if batch else None)
            statistics = (z_mean[i], z_var[i]) if batch else (norm2_mean[i], norm2_var[i])
            image, norm = at, Norm(*statistics, norm2_weight[i], norm2_bias[i])
            if save:
                z.append(at)
        convolve(
            image, Convolution(weight, norm), eps, y[:, c:end], factor=dropout[i] if dropout else None,
            moments=(mean[c:end], var[c:end]) if batch else None,
        )  # fmt: skip
        c = end
    return y, z, mean, var, z_mean, z_var


def dense_block2d_backward(
    dy: Tensor,
    y: Tensor,
    z: Images,
    conv1: Images,
    conv2: Images,
    norm1_weight: Images,
    norm1_bias: Images,
    norm1_mean: Images,
    norm1_var: Images,
    norm2_weight: Images,
    norm2_bias: Images,
    norm2_mean: Images,
    norm2_var: Images,
    dropout: Images,
    eps: float,
    training: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of x and of the lists conv1, conv2, norm1_weight, norm1_bias, norm2_weight, norm2_bias."""
    widths = [weight.shape[0] for weight in norm1_weight]
    dx = empty_image(y, widths[0], *y.shape[2:])
    learned = (conv1, conv2, norm1_weight, norm1_bias, norm2_weight, norm2_bias)
    if dy.numel() == 0:
        return dx, *([torch.zeros_like(t, memory_format=torch.contiguous_format) for t in ts] for ts in learned)
    found = tuple([None] * len(tensors) for tensors in learned)
    dconv1, dconv2, dnorm1_weight, dnorm1_bias, dnorm2_weight, dnorm2_bias = found
    g = empty_image(y, widths[-1], *y.shape[2:]) if len(widths) > 1 else dx
    mean = norm1_mean[-1]
    offset, slope = (torch.empty_like(mean) for _ in range(2))
    source, first_to_add = dy, True
    for i in reversed(range(len(widths))):
        c, end = widths[i], widths[i] + conv2[i].shape[0]
        factor = dropout[i] if dropout else None
        if training and not first_to_add:
            dq = Settled(source[:, c:end], y[:, c:end], mean[c:end], offset[c:end], slope[c:end], factor)
        else:
            dq = Settled(source[:, c:end], factor=factor)
        image, norm = y[:, :c], Norm(norm1_mean[i], norm1_var[i], norm1_weight[i], norm1_bias[i])
        if conv1:
            second = Convolution(conv2[i], Norm(norm2_mean[i], norm2_var[i], norm2_weight[i], norm2_bias[i]))
            dconv2[i], _ = weight_gradient(dq, second, z[i], eps)
            dz, of_z = torch.empty_like(z[i]), [torch.empty_like(norm2_mean[i]) for _ in range(2)]
            dnorm2_weight[i], dnorm2_bias[i] = input_gradient(
                dq, second, z[i], eps, dz, settle=of_z if training else None
            )
            dq = Settled(dz, z[i], norm2_mean[i], *of_z) if training else Settled(dz)
        first = Convolution(conv1[i] if conv1 else conv2[i], norm)
        (dconv1 if conv1 else dconv2)[i], _ = weight_gradient(dq, first, image, eps)
        dnorm1_weight[i], dnorm1_bias[i] = input_gradient(
            dq, first, image, eps, g[:, :c] if i else dx, base=source[:, :c],
            settle=(offset[:c], slope[:c]) if training else None, add=not first_to_add,
        )  # fmt: skip
        source, first_to_add = g, False
    if training:
        c = widths[0]
        settle(Settled(dx, y[:, :c], mean[:c], offset[:c], slope[:c]), dx)
    return dx, *found
