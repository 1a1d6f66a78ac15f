"""How much of an image one program takes: enough programs to fill a GPU first, then as much as registers hold.

Each function returns what is worth measuring (launch.py), the sound choice first.
"""

import torch
import triton

from .launch import WARPS, is_half, tile

PROGRAMS = 128  # a large part's multiprocessors


def _most(limit: int, size: int, others: int, least: int = 16) -> int:
    """The largest power of two up to limit that leaves PROGRAMS programs of `others` times size over it, or `least`."""
    most = limit
    while most > least and triton.cdiv(size, most) * others < PROGRAMS:
        most //= 2
    return most


def convolution_tiles(pixels: int, out: int, channels: int, dtype: torch.dtype, most_pixels: int = 128) -> list[dict]:
    """Of a product [pixels, channels] x [channels, out], the right side from memory."""
    side = tile(out, 128 if is_half(dtype) else 64)
    pixels = _most(most_pixels if is_half(dtype) else most_pixels // 2, pixels, triton.cdiv(out, side), 16)
    warps = 8 if pixels * side >= 64 * 128 else 4
    chunk = tile(channels, 64 if is_half(dtype) else 32)
    tiles = {"PIXELS": pixels, "OUT": side, "CHUNK": chunk, "num_warps": warps, "num_stages": 2}
    fewer = {"PIXELS": pixels // 2, "num_warps": 4}
    return [tiles, tiles | {"num_stages": 3}, *([tiles | fewer] if pixels > 16 else [])]


def gradient_tiles(pixels: int, out: int, channels: int, taps: int, dtype: torch.dtype) -> list[dict]:
    """Of a weight's gradient, a sum over pixels of [out, channels] for each tap, in `splits` programs side by side."""
    side = 64 if is_half(dtype) else 32
    tiles = {"OUT": tile(out, side), "CHANNELS": tile(channels, side), "PIXELS": 64 if is_half(dtype) else 32}
    programs = triton.cdiv(out, tiles["OUT"]) * triton.cdiv(channels, tiles["CHANNELS"]) * taps
    splits = max(1, min(triton.cdiv(2 * PROGRAMS, programs), triton.cdiv(pixels, 4 * tiles["PIXELS"])))
    tiles |= {**WARPS, "num_warps": 4, "num_stages": 2, "splits": splits}
    return [tiles, *([tiles | {"splits": splits // 2}] if splits > 1 else [])]
