"""Mean and variance of every channel.

What moves: x once, in bands of rows whose programs hold a tile at a time and merge its mean and centred squares into
the band's (Chan, Golub, LeVeque 1983); 8 bytes a band and channel go to a second launch that joins them in float64. Two
launches. Kernels that write an image take its bands' moments on the way, and need the second launch only.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .image import pixel_stride, pixels_of
from .launch import cdiv, tile, wide

PROGRAMS = 512  # about four for each of a large part's multiprocessors


@triton.jit
def band_moments(value, inside, count):
    """Mean and centred squares [channels] of the rows inside of a tile [rows, channels], of which there are `count`."""
    mean = tl.sum(tl.where(inside[:, None], value, 0.0), 0) / count
    centred = tl.where(inside[:, None], value - mean[None, :], 0.0)
    return mean, tl.sum(centred * centred, 0)


@triton.jit
def _bands_kernel(
    x, copy, part_mean, part_square, rows, c, x_stride, copy_stride, band,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    of_channel = (channel < c)[None, :]
    begin = wide(tl.program_id(0)) * band
    end = tl.minimum(begin + band, rows)
    mean = tl.zeros([CHANNELS], tl.float32)
    square = tl.zeros([CHANNELS], tl.float32)
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = row < end
        there = inside[:, None] & of_channel
        value = tl.load(x + row[:, None] * x_stride + channel[None, :], there, other=0)
        if COPY:
            tl.store(copy + row[:, None] * copy_stride + channel[None, :], value, there)
        before = (first - begin).to(tl.float32)
        count = tl.minimum(end - first, ROWS).to(tl.float32)
        tile_mean, tile_square = band_moments(value.to(tl.float32), inside, count)
        share = count / (before + count)
        apart = tile_mean - mean
        # The first tile's as it is: a difference of infinities would be NaN.
        mean = tl.where(before == 0, tile_mean, mean + apart * share)
        square += tile_square + tl.where(before == 0, 0.0, apart * apart * share * before)
    at = tl.program_id(0) * c + channel
    tl.store(part_mean + at, mean, channel < c)
    tl.store(part_square + at, square, channel < c)


@triton.jit
def _band(first, rows, bands, band, of_channel, BANDS: tl.constexpr):
    """BANDS bands from the first on: which, how many rows each has [bands, 1], and where there are any."""
    i = first + tl.arange(0, BANDS)
    count = tl.minimum(rows - wide(i) * band, band).to(tl.float64)[:, None]
    return i, count, (i < bands)[:, None] & of_channel


@triton.jit
def _join_kernel(part_mean, part_square, mean, var, rows, c, band, BANDS: tl.constexpr, CHANNELS: tl.constexpr):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    of_channel = (channel < c)[None, :]
    bands = tl.cdiv(rows, band)
    total = tl.zeros([CHANNELS], tl.float64)
    for first in range(0, bands, BANDS):
        i, count, there = _band(first, rows, bands, band, of_channel, BANDS)
        part = tl.load(part_mean + i[:, None] * c + channel[None, :], there, other=0).to(tl.float64)
        total += tl.sum(tl.where(there, part * count, 0.0), 0)
    centre = total / rows
    total = tl.zeros([CHANNELS], tl.float64)
    for first in range(0, bands, BANDS):
        i, count, there = _band(first, rows, bands, band, of_channel, BANDS)
        part = tl.load(part_mean + i[:, None] * c + channel[None, :], there, other=0).to(tl.float64)
        square = tl.load(part_square + i[:, None] * c + channel[None, :], there, other=0).to(tl.float64)
        apart = part - centre[None, :]
        total += tl.sum(tl.where(there, square + apart * apart * count, 0.0), 0)
    tl.store(mean + channel, centre.to(tl.float32), channel < c)
    tl.store(var + channel, (total / rows).to(tl.float32), channel < c)


def join(parts: Tensor, rows: int, band: int, mean: Tensor, var: Tensor) -> None:
    """Mean and variance [c] of all rows from the moments of bands, parts [2, bands, c] float32: means, then squares."""
    c, channels = mean.shape[0], 16
    grid = (cdiv(c, channels),)
    _join_kernel[grid](*parts, mean, var, rows, c, band, BANDS=64, CHANNELS=channels, num_warps=4)


def moments(x: Tensor, mean: Tensor, var: Tensor, copy: Tensor | None = None) -> None:
    """Writes mean and variance [c] of x (an image, or rows), and x itself into `copy` in the same pass."""
    n, c = pixels_of(x), x.shape[1]
    if n == 0:
        mean.zero_()
        var.zero_()
        return
    rows, channels = 64, tile(c, 64)
    bands = max(1, PROGRAMS // cdiv(c, channels))
    band = cdiv(cdiv(n, bands), rows) * rows
    bands = cdiv(n, band)
    parts = x.new_empty(2, bands, c, dtype=torch.float32)
    to = x if copy is None else copy
    _bands_kernel[(bands, cdiv(c, channels))](
        x, to, *parts, n, c, pixel_stride(x), pixel_stride(to), band,
        ROWS=rows, CHANNELS=channels, COPY=copy is not None, num_warps=4,
    )  # fmt: skip
    join(parts, n, band, mean, var)


def batch_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, var) [c] of images [n, c, h, w] or rows [n, c], whose channels are consecutive."""
    mean, var = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
    moments(x, mean, var)
    return mean, var
