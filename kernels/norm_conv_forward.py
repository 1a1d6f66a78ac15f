"""relu(batch norm(x)) and the convolution behind it, forward (what moves: norm_conv.py)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch_stats import band_moments, join
from .image import pixel_stride, pixels_of
from .launch import cdiv, launch, precision, present, wide
from .norm_conv import Convolution, Norm, activated, place, read_at
from .norm_conv_tiles import convolution_tiles


@triton.jit
def _forward_kernel(
    x, weight, bias, mean, var, gamma, beta, shortcut, factor, z, part_mean, part_square,
    pixels, height, width, out_height, out_width, c, o, x_stride, z_stride, shortcut_stride, factor_stride,
    weight_o, weight_c, weight_tap, eps,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, SHORTCUT: tl.constexpr,
    FACTOR: tl.constexpr, MOMENTS: tl.constexpr, PIXELS: tl.constexpr, OUT: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    # Programs side by side read the same pixels.
    tiles = tl.cdiv(o, OUT)
    tile = tl.program_id(0) // tiles
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    out = tl.program_id(0) % tiles * OUT + tl.arange(0, OUT)
    inside = pixel < pixels
    image, line, column = place(pixel, out_height, out_width)
    TAPS: tl.constexpr = KERNEL * KERNEL
    value = tl.zeros([PIXELS, OUT], tl.float32)
    for step in range(tl.cdiv(c, CHUNK) * TAPS):
        # A chunk's taps follow each other: they read the same pixels, and weights that lie together.
        channel = step // TAPS * CHUNK + tl.arange(0, CHUNK)
        tap = step % TAPS
        row, there = read_at(image, line, column, tap, height, width, KERNEL, STRIDE)
        a = activated(x, row, inside & there, x_stride, mean, var, gamma, beta, channel, c, eps, NORM)
        at = out[None, :] * weight_o + channel[:, None] * weight_c + tap * weight_tap
        w = tl.load(weight + at, (out < o)[None, :] & (channel < c)[:, None], other=0)
        value = tl.dot(a.to(w.dtype), w, value, input_precision=PRECISION)
    of = inside[:, None] & (out < o)[None, :]
    row = pixel.to(tl.int64)
    if BIAS:
        value += tl.load(bias + out, out < o, other=0.0)[None, :]
    if SHORTCUT:
        value += tl.load(shortcut + row[:, None] * shortcut_stride + out[None, :], of, other=0).to(tl.float32)
    if FACTOR:
        value *= tl.load(factor + row[:, None] * factor_stride + out[None, :], of, other=0).to(tl.float32)
    rounded = value.to(z.dtype.element_ty)
    tl.store(z + row[:, None] * z_stride + out[None, :], rounded, of)
    if MOMENTS:
        count = tl.minimum(pixels - tile * PIXELS, PIXELS).to(tl.float32)
        mean_of_tile, square_of_tile = band_moments(rounded.to(tl.float32), inside, count)
        tl.store(part_mean + tile * o + out, mean_of_tile, out < o)
        tl.store(part_square + tile * o + out, square_of_tile, out < o)


def convolve(
    x: Tensor,
    convolution: Convolution,
    eps: float,
    z: Tensor,
    *,
    bias: Tensor | None = None,
    shortcut: Tensor | None = None,
    factor: Tensor | None = None,
    moments: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Writes z [n, o, h', w'] = (conv(relu(norm(x))) + bias + shortcut) * factor, and its (mean, var) into moments."""
    weight, norm, stride = convolution
    pixels, o, kernel = pixels_of(z), z.shape[1], convolution.kernel
    if pixels == 0:
        for vector in moments or ():
            vector.zero_()
        return
    shortcut_stride, factor_stride = (0 if t is None else pixel_stride(t) for t in (shortcut, factor))
    flags = {"KERNEL": kernel, "STRIDE": stride, "NORM": norm is not None, "BIAS": bias is not None,
             "SHORTCUT": shortcut is not None, "FACTOR": factor is not None, "MOMENTS": moments is not None,
             "PRECISION": precision(x.dtype)}  # fmt: skip

    def run(tiles: dict) -> None:
        bands = cdiv(pixels, tiles["PIXELS"])
        parts = x.new_empty(2, bands if moments else 0, o, dtype=torch.float32)
        _forward_kernel[(bands * cdiv(o, tiles["OUT"]),)](
            x, weight, *present(x, bias, *(norm or (None,) * 4), shortcut, factor), z, *parts,
            pixels, *x.shape[2:], *z.shape[2:], x.shape[1], o, pixel_stride(x), pixel_stride(z), shortcut_stride,
            factor_stride, *convolution.weight_strides(), eps, **flags, **tiles,
        )  # fmt: skip
        if moments:
            join(parts, pixels, tiles["PIXELS"], *moments)

    candidates = convolution_tiles(pixels, o, x.shape[1], x)
    key = (pixels, o, x.shape[1], pixel_stride(x), x.dtype, *flags.values())
    launch(run, candidates, "norm_conv_forward", x.device, *key)


@triton.jit
def _activate_kernel(
    x, mean, var, gamma, beta, a, pixels, c, x_stride, a_stride, eps,
    NORM: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    pixel = wide(tl.program_id(0)) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = pixel < pixels
    value = activated(x, pixel, inside, x_stride, mean, var, gamma, beta, channel, c, eps, NORM)
    tl.store(a + pixel[:, None] * a_stride + channel[None, :], value, inside[:, None] & (channel < c)[None, :])


def activate(x: Tensor, norm: Norm | None, eps: float, a: Tensor) -> None:
    """Writes a = relu(norm(x)), for a caller who wants to see what convolutions keep to themselves."""
    pixels, c = pixels_of(x), x.shape[1]
    if pixels == 0:
        return
    _activate_kernel[cdiv(pixels, 64), cdiv(c, 64)](
        x, *present(x, *(norm or (None,) * 4)), a, pixels, c, pixel_stride(x), pixel_stride(a), eps,
        NORM=norm is not None, PIXELS=64, CHANNELS=64, num_warps=4,
    )  # fmt: skip
