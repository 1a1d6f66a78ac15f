"""relu(batch norm(x)) and the convolution behind it, backward (what moves: norm_conv.py)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .image import pixel_stride, pixels_of
from .launch import cdiv, launch, precision, present, wide
from .norm_conv import Convolution, Settled, activated, normalised, place, read_at, settled, written_at
from .norm_conv_tiles import convolution_tiles, gradient_tiles
from .slices import added, empty_slices


@triton.jit
def _input_kernel(
    d, image, factor, settle_mean, offset, slope, weight, x, mean, var, gamma, beta, more, base, dx,
    part_sum, part_product,
    pixels, height, width, out_height, out_width, c, o, d_stride, image_stride, factor_stride, x_stride, more_stride,
    base_stride, dx_stride, weight_o, weight_c, weight_tap, eps,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, SETTLE: tl.constexpr, FACTOR: tl.constexpr, NORM: tl.constexpr,
    RELU: tl.constexpr, MORE: tl.constexpr, BASE: tl.constexpr, PIXELS: tl.constexpr, OUT: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile [PIXELS, OUT] of x's gradient: OUT of x's channels, from CHUNK of the convolution's outputs a step."""
    tiles = tl.cdiv(c, OUT)
    tile = tl.program_id(0) // tiles
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(0) % tiles * OUT + tl.arange(0, OUT)
    inside = pixel < pixels
    at_image, line, column = place(pixel, height, width)
    TAPS: tl.constexpr = KERNEL * KERNEL
    da = tl.zeros([PIXELS, OUT], tl.float32)
    for step in range(tl.cdiv(o, CHUNK) * TAPS):
        out = step // TAPS * CHUNK + tl.arange(0, CHUNK)
        tap = step % TAPS
        row, there = written_at(at_image, line, column, tap, out_height, out_width, KERNEL, STRIDE)
        dz = settled(
            d, image, factor, settle_mean, offset, slope, row, inside & there, out, o, d_stride, image_stride,
            factor_stride, SETTLE, FACTOR,
        )  # fmt: skip
        at = out[:, None] * weight_o + channel[None, :] * weight_c + tap * weight_tap
        w = tl.load(weight + at, (out < o)[:, None] & (channel < c)[None, :], other=0)
        da = tl.dot(dz.to(w.dtype), w, da, input_precision=PRECISION)
    of = inside[:, None] & (channel < c)[None, :]
    row = pixel.to(tl.int64)
    if MORE:
        da += tl.load(more + row[:, None] * more_stride + channel[None, :], of, other=0).to(tl.float32)
    if RELU:
        value = tl.load(x + row[:, None] * x_stride + channel[None, :], of, other=0).to(tl.float32)
        scale, deviation, u = normalised(value, mean, var, gamma, beta, channel, c, eps, NORM)
        da = tl.where(of & ~(u <= 0), da, 0.0)
        if NORM:
            at = tile * c + channel
            tl.store(part_sum + at, tl.sum(da, 0), channel < c)
            tl.store(part_product + at, tl.sum(tl.where(of, da * deviation, 0.0), 0), channel < c)
        da *= scale
    if BASE:
        da += tl.load(base + row[:, None] * base_stride + channel[None, :], of, other=0).to(tl.float32)
    tl.store(dx + row[:, None] * dx_stride + channel[None, :], da, of)


@triton.jit
def _norm_kernel(
    part_sum, part_product, var, gamma, dgamma, dbeta, offset, slope, pixels, tiles, c, eps,
    SETTLE: tl.constexpr, ADD: tl.constexpr, TILES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A norm's own gradients from the tiles' sums, and what its batch's statistics add to x's gradient (`Settled`)."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    of = channel < c
    total = tl.zeros([CHANNELS], tl.float64)
    product = tl.zeros([CHANNELS], tl.float64)
    for first in range(0, tiles, TILES):
        i = first + tl.arange(0, TILES)
        there = (i < tiles)[:, None] & of[None, :]
        at = i[:, None] * c + channel[None, :]
        total += tl.sum(tl.load(part_sum + at, there, other=0).to(tl.float64), 0)
        product += tl.sum(tl.load(part_product + at, there, other=0).to(tl.float64), 0)
    tl.store(dbeta + channel, total.to(tl.float32), of)
    tl.store(dgamma + channel, product.to(tl.float32), of)
    if SETTLE:
        inverse = tl.rsqrt(tl.load(var + channel, of, other=1.0) + eps)
        scale = tl.load(gamma + channel, of, other=0.0) * inverse
        a = scale * (total / pixels).to(tl.float32)
        b = scale * inverse * (product / pixels).to(tl.float32)
        if ADD:
            a += tl.load(offset + channel, of, other=0.0)
            b += tl.load(slope + channel, of, other=0.0)
        tl.store(offset + channel, a, of)
        tl.store(slope + channel, b, of)


@triton.jit
def _settle_kernel(
    d, image, mean, offset, slope, settled_d, pixels, c, d_stride, image_stride, to_stride,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    pixel = wide(tl.program_id(0)) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = pixel < pixels
    value = settled(
        d, image, d, mean, offset, slope, pixel, inside, channel, c, d_stride, image_stride, 0, True, False
    )  # fmt: skip
    tl.store(settled_d + pixel[:, None] * to_stride + channel[None, :], value, inside[:, None] & (channel < c)[None, :])


@triton.jit
def _weight_kernel(
    d, image, factor, settle_mean, offset, slope, x, mean, var, gamma, beta, parts, bias_parts,
    pixels, height, width, out_height, out_width, c, o, d_stride, image_stride, factor_stride, x_stride, splits, eps,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, SETTLE: tl.constexpr, FACTOR: tl.constexpr, NORM: tl.constexpr,
    BIAS: tl.constexpr, PIXELS: tl.constexpr, OUT: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile [OUT, CHANNELS] of one tap of the weight's gradient, summed over every `splits`-th tile of pixels."""
    TAPS: tl.constexpr = KERNEL * KERNEL
    tap = tl.program_id(0) % TAPS
    tiles = tl.cdiv(c, CHANNELS)
    channel = tl.program_id(0) // TAPS % tiles * CHANNELS + tl.arange(0, CHANNELS)
    out = tl.program_id(0) // TAPS // tiles * OUT + tl.arange(0, OUT)
    split = tl.program_id(1)
    total = tl.zeros([OUT, CHANNELS], tl.float32)
    bias_total = tl.zeros([OUT], tl.float32)
    for i in range(split, tl.cdiv(pixels, PIXELS), splits):
        pixel = i * PIXELS + tl.arange(0, PIXELS)
        inside = pixel < pixels
        at_image, line, column = place(pixel, out_height, out_width)
        row, there = read_at(at_image, line, column, tap, height, width, KERNEL, STRIDE)
        dz = settled(
            d, image, factor, settle_mean, offset, slope, pixel.to(tl.int64), inside, out, o, d_stride, image_stride,
            factor_stride, SETTLE, FACTOR,
        )  # fmt: skip
        a = activated(x, row, inside & there, x_stride, mean, var, gamma, beta, channel, c, eps, NORM)
        w = x.dtype.element_ty
        total = tl.dot(tl.trans(dz.to(w)), a.to(w), total, input_precision=PRECISION)
        if BIAS:
            bias_total += tl.sum(dz, 0)
    at = (wide(split) * o + out[:, None]) * c + channel[None, :]
    tl.store(parts + at * TAPS + tap, total, (out < o)[:, None] & (channel < c)[None, :])
    if BIAS:
        first = tl.where(tl.program_id(0) % (TAPS * tiles) == 0, o, 0)
        tl.store(bias_parts + wide(split) * o + out, bias_total, out < first)


def _settled_arguments(d: Settled) -> tuple[list[Tensor], list[int], dict]:
    pointers = present(d.gradient, d.image, d.factor, d.mean, d.offset, d.slope)
    strides = [0 if t is None else pixel_stride(t) for t in (d.gradient, d.image, d.factor)]
    return [d.gradient, *pointers], strides, {"SETTLE": d.image is not None, "FACTOR": d.factor is not None}


def input_gradient(
    d: Settled,
    convolution: Convolution,
    x: Tensor,
    eps: float,
    dx: Tensor,
    *,
    relu: bool = True,
    more: Tensor | None = None,
    base: Tensor | None = None,
    settle: tuple[Tensor, Tensor] | None = None,
    add: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """Writes dx = base + what reaches x from d, without what batch statistics add; the norm's (dweight, dbias).

    relu=False leaves out norm and relu: the gradient of relu(norm(x)). `more` is added to that before they are taken
    back. settle: the (offset, slope) [c] of dx that batch statistics of x add, written, or increased with add=True.
    """
    weight, norm, stride = convolution
    pixels, c = pixels_of(x), x.shape[1]
    norm = norm if relu else None
    dweight, dbias = (x.new_empty(c if norm else 0, dtype=torch.float32) for _ in range(2))
    pointers, strides, flags = _settled_arguments(d)
    more_stride, base_stride = (0 if t is None else pixel_stride(t) for t in (more, base))
    flags |= {"KERNEL": convolution.kernel, "STRIDE": stride, "NORM": norm is not None, "RELU": relu,
              "MORE": more is not None, "BASE": base is not None, "PRECISION": precision(x.dtype)}  # fmt: skip

    def run(tiles: dict) -> None:
        bands = cdiv(pixels, tiles["PIXELS"])
        parts = x.new_empty(2, bands if norm else 0, c, dtype=torch.float32)
        _input_kernel[(bands * cdiv(c, tiles["OUT"]),)](
            *pointers, weight, x, *present(x, *(norm or (None,) * 4), more, base), dx, *parts,
            pixels, *x.shape[2:], *d.gradient.shape[2:], c, weight.shape[0], *strides, pixel_stride(x), more_stride,
            base_stride, pixel_stride(dx), *convolution.weight_strides(), eps, **flags, **tiles,
        )  # fmt: skip
        if norm is not None:
            _norm_kernel[(cdiv(c, 16),)](
                *parts, norm.var, norm.weight, dweight, dbias, *(settle or (dweight, dbias)), pixels, bands, c, eps,
                SETTLE=settle is not None, ADD=add, TILES=64, CHANNELS=16, num_warps=4,
            )  # fmt: skip

    candidates = convolution_tiles(pixels, c, weight.shape[0], d.gradient, most_pixels=64)
    # What adds to what is there cannot be measured again and again.
    in_place = add or (base is not None and base.data_ptr() == dx.data_ptr())
    key = (pixels, c, weight.shape[0], pixel_stride(d.gradient), x.dtype, *flags.values(), in_place)
    launch(run, candidates[:1] if in_place else candidates, "norm_conv_input", x.device, *key)
    return (dweight, dbias) if norm else None


def settle(d: Settled, dx: Tensor) -> None:
    """Writes the gradient that leaves an op, with what batch statistics add to it; dx may be d.gradient."""
    c = dx.shape[1]
    grid = cdiv(pixels_of(dx), 64), cdiv(c, 64)
    _settle_kernel[grid](
        d.gradient, d.image, d.mean, d.offset, d.slope, dx, pixels_of(dx), c,
        *map(pixel_stride, (d.gradient, d.image, dx)), PIXELS=64, CHANNELS=64, num_warps=4,
    )  # fmt: skip


def weight_gradient(
    d: Settled, convolution: Convolution, x: Tensor, eps: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the convolution's weight, and of a bias [o] behind it."""
    weight, norm, stride = convolution
    (o, c), kernel = weight.shape[:2], convolution.kernel
    pixels = pixels_of(d.gradient)
    pointers, strides, flags = _settled_arguments(d)
    flags |= {"KERNEL": kernel, "STRIDE": stride, "NORM": norm is not None, "BIAS": bias is not None,
              "PRECISION": precision(x.dtype)}  # fmt: skip
    found = {}

    def run(tiles: dict) -> None:
        splits = tiles["splits"]
        parts = empty_slices(splits, x.new_empty(weight.shape))
        bias_parts = parts if bias is None else empty_slices(splits, bias)
        programs = cdiv(o, tiles["OUT"]) * cdiv(c, tiles["CHANNELS"]) * kernel * kernel
        _weight_kernel[(programs, splits)](
            *pointers, x, *present(x, *(norm or (None,) * 4)), parts, bias_parts,
            pixels, *x.shape[2:], *d.gradient.shape[2:], c, o, *strides, pixel_stride(x), eps=eps, **flags, **tiles,
        )  # fmt: skip
        found["weight"] = added(parts, weight.dtype)
        found["bias"] = None if bias is None else added(bias_parts, bias.dtype)

    candidates = gradient_tiles(pixels, o, c, kernel * kernel, x.dtype)
    key = (pixels, o, c, x.dtype, *flags.values())
    launch(run, candidates, "norm_conv_weight", x.device, *key)
    return found["weight"], found["bias"]
