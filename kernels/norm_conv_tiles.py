"""How much of an image one program takes: enough programs to fill a GPU first, then as much as registers hold.

Each function returns what is worth measuring (launch.py), the sound choice first.
"""

import torch
from torch import Tensor

from .image import pixel_stride
from .launch import cdiv, is_half, rows_for, tile, warps
from .slices import slices_for


def convolution_tiles(pixels: int, out: int, channels: int, image: Tensor, most_pixels: int = 128) -> list[dict]:
    """Of a product [pixels, channels] x [channels, out], the right side from memory, the left one from an image.

    Where no vector divides the channels, every element has an address of its own in registers.
    """
    dtype, addresses = image.dtype, 1 if channels % 16 == pixel_stride(image) % 16 == 0 else 2
    side = tile(out, 128 if is_half(dtype) else 64)
    pixels = rows_for(pixels * cdiv(out, side), most_pixels // (1 if is_half(dtype) else 2) // addresses)
    count = 8 if pixels * side >= 64 * 128 else 4
    chunk = tile(channels, 64 if is_half(dtype) else 32)
    tiles = {"PIXELS": pixels, "OUT": side, "CHUNK": chunk, "num_warps": count, "num_stages": 2}
    fewer = {"PIXELS": pixels // 2, "num_warps": 4}
    return [tiles, tiles | {"num_stages": 3}, *([tiles | fewer] if pixels > 16 else [])]


def gradient_tiles(pixels: int, out: int, channels: int, taps: int, dtype: torch.dtype) -> list[dict]:
    """Of a weight's gradient, a sum over pixels of [out, channels] for each tap, in `splits` programs side by side."""
    side = 64 if is_half(dtype) else 32
    tiles = {"OUT": tile(out, side), "CHANNELS": tile(channels, side), "PIXELS": 64 if is_half(dtype) else 32}
    programs = cdiv(out, tiles["OUT"]) * cdiv(channels, tiles["CHANNELS"]) * taps
    splits = slices_for(programs, cdiv(pixels, 4 * tiles["PIXELS"]), out * channels * taps)
    tiles |= {**warps(4), "num_stages": 2, "splits": splits}
    return [tiles, *([tiles | {"splits": splits // 2}] if splits > 1 else [])]
