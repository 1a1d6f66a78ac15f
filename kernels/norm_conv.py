"""relu(batch norm(x)) and the convolution behind it: what the forward and the backward of one such step share.

What moves through memory (p pixels, c channels in, o out, e bytes an element): the forward reads x where the product's
left side is loaded, normalises and cuts it there, and writes z once, p (c + o) e; the normalised image exists in
registers only. Moments of z's channels are taken from its tiles before they leave, 8 bytes a tile and channel, so that
no pass over memory is spent on statistics; a bias, a shortcut and a dropout mask are applied there too. A 3x3 reads x
at nine places, which its caches serve.

The backward reads the gradient d of z and x and writes the gradient of x where it accumulates, p (o + 2 c) e with c
once more where it adds to what is there; sums over pixels, which a norm's own gradients and the batch's statistics
need, come out of the same tiles. What the batch's statistics add to a gradient is linear in the image, a - b (x - mean)
by channel, and is subtracted where that gradient is read next (`Settled`): it never costs a pass of its own, except
for the gradient that leaves the op. The weights' gradients are sums over pixels: programs take them side by side, each
into a slice of its own (slices.py).

Launches: forward 1, with statistics 2; backward 1 for x, with a norm 2, and 1 or 2 for the weights.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .launch import wide


class Norm(NamedTuple):
    """A batch norm's four vectors [c], float32: statistics, then weight and bias."""

    mean: Tensor
    var: Tensor
    weight: Tensor
    bias: Tensor


class Convolution(NamedTuple):
    """A convolution, weight [o, c, 1, 1] or [o, c, 3, 3] with padding 1, and the batch norm in front of its relu."""

    weight: Tensor
    norm: Norm | None
    stride: int = 1

    @property
    def kernel(self) -> int:
        return self.weight.shape[2]

    def weight_strides(self) -> tuple[int, int, int]:
        """Between outputs, channels and taps, whichever lies innermost."""
        o, c, _, tap = self.weight.stride()
        return o, c, tap


class Settled(NamedTuple):
    """A gradient [n, c, h, w] as kernels read it: minus offset + slope (image - mean), times factor; all may be absent.

    offset, slope and mean [c] are what batch statistics of `image` add to its gradient; factor is a dropout mask.
    """

    gradient: Tensor
    image: Tensor | None = None
    mean: Tensor | None = None
    offset: Tensor | None = None
    slope: Tensor | None = None
    factor: Tensor | None = None


@triton.jit
def place(pixel, height, width):
    """(image, line, column) of pixels counted through all images."""
    return pixel // (width * height), pixel // width % height, pixel % width


@triton.jit
def read_at(image, line, column, tap, height, width, KERNEL: tl.constexpr, STRIDE: tl.constexpr):
    """Which pixel of the input an output's tap reads, and whether there is one."""
    y = line * STRIDE + (tap // KERNEL - KERNEL // 2)
    x = column * STRIDE + (tap % KERNEL - KERNEL // 2)
    there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return (wide(image) * height + y) * width + x, there


@triton.jit
def written_at(image, line, column, tap, height, width, KERNEL: tl.constexpr, STRIDE: tl.constexpr):
    """Which output reads an input by a tap, and whether there is one; height and width are the output's."""
    y = line - (tap // KERNEL - KERNEL // 2)
    x = column - (tap % KERNEL - KERNEL // 2)
    there = (y >= 0) & (x >= 0)
    if STRIDE > 1:
        there &= (y % STRIDE == 0) & (x % STRIDE == 0)
        y = y // STRIDE
        x = x // STRIDE
    there &= (y < height) & (x < width)
    return (wide(image) * height + y) * width + x, there


@triton.jit
def normalised(x, mean, var, weight, bias, channel, c, eps, NORM: tl.constexpr):
    """What stands before relu: (factor of x, x in deviations, u), for a tile [pixels, channels]; float32."""
    factor = tl.full([1, 1], 1.0, tl.float32)
    deviation = tl.full([1, 1], 1.0, tl.float32)
    if NORM:
        of = channel < c
        inverse = tl.rsqrt(tl.load(var + channel, of, other=1.0) + eps)
        centred = x - tl.load(mean + channel, of, other=0.0)[None, :]
        gamma = tl.load(weight + channel, of, other=0.0)
        factor = (gamma * inverse)[None, :]
        deviation = centred * inverse[None, :]
        return factor, deviation, centred * factor + tl.load(bias + channel, of, other=0.0)[None, :]
    else:
        return factor, deviation, x


@triton.jit
def activated(x, row, there, x_stride, mean, var, weight, bias, channel, c, eps, NORM: tl.constexpr):
    """relu(norm(x)) at rows of x, [rows, channels]; 0 where there is no pixel or channel."""
    of = there[:, None] & (channel < c)[None, :]
    value = tl.load(x + row[:, None] * x_stride + channel[None, :], of, other=0).to(tl.float32)
    _, _, u = normalised(value, mean, var, weight, bias, channel, c, eps, NORM)
    return tl.where(of & ~(u < 0), u, 0.0)  # NaN stays


@triton.jit
def settled(
    d, image, factor, mean, offset, slope, row, there, channel, c, d_stride, image_stride, factor_stride,
    SETTLE: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """`Settled` at rows, [rows, channels], float32; 0 where there is no pixel or channel."""
    of_channel = channel < c
    of = there[:, None] & of_channel[None, :]
    value = tl.load(d + row[:, None] * d_stride + channel[None, :], of, other=0).to(tl.float32)
    if SETTLE:
        x = tl.load(image + row[:, None] * image_stride + channel[None, :], of, other=0).to(tl.float32)
        centred = x - tl.load(mean + channel, of_channel, other=0.0)[None, :]
        value -= tl.load(offset + channel, of_channel, other=0.0)[None, :]
        value = tl.where(of, value - centred * tl.load(slope + channel, of_channel, other=0.0)[None, :], 0.0)
    if FACTOR:
        value *= tl.load(factor + row[:, None] * factor_stride + channel[None, :], of, other=0).to(tl.float32)
    return value
