"""L bottleneck residual blocks on rows: what the forward and the backward share."""

import torch
import triton
import triton.language as tl

from .activation import activate, affine
from .launch import is_half, precision, rows_for, tile, warps

# Elements of the stream that a program may hold, forward and backward (beside as many of its gradient): 8192 are 32
# registers of each of 256 threads. Three TF32 products for one leave few.
HELD = {"half": (8192, 4096), "tf32": (4096, 2048), "tf32x3": (2048, 0), "ieee": (0, 0)}


def options(n: int, m: int, k: int, dtype: torch.dtype, backward: bool) -> dict:
    """Tiles, warps and stages for a size, chosen so that no register is spilled."""
    width, features, half = tile(m), tile(k), is_half(dtype)
    rows = HELD["half" if half else precision(dtype)][backward] // max(width, 2 * features, 128)
    # A block's weights and the activated tile, in shared memory: 80 KiB, of 99 on the smallest part. AMD's have 64, and
    # a held stream spills there.
    amd = torch.version.hip is not None
    held = rows >= 16 and width * features * dtype.itemsize <= 64 * 1024 and not amd
    if not held:
        rows = 32 if half and not amd else 16
        width = 64 if (half and not amd) or features <= 64 else 16
    stages = 1 if held or backward else 2
    return {
        "ROWS": rows_for(n, rows),
        "CHUNK": width,
        "FEATURES": features,
        "HELD": held,
        "num_stages": stages,
        **warps(8),
    }


@triton.jit
def into_down(x, scale, shift, column, M, ACT, PRE, AFFINE: tl.constexpr):
    """What a chunk of columns [rows, chunk] is multiplied with, u = scale x + shift, and what goes into down."""
    u, factor = affine(x, scale, shift, column, column < M, AFFINE)
    a = u
    if PRE:
        a = activate(u, ACT)
    return factor, u, a


@triton.jit
def step_up(v, x, up, column, feature, of_up, M, K, PRECISION: tl.constexpr):
    """x + v up^T for a chunk of columns, [rows, features] to [rows, chunk]; of_up: which features there are."""
    weight = tl.load(up + column[None, :] * K + feature[:, None], of_up[:, None] & (column < M)[None, :], other=0)
    return tl.dot(v.to(weight.dtype), weight, x, input_precision=PRECISION)


@triton.jit
def through_mid(h, mid, feature, K, BACKWARD: tl.constexpr, PRECISION: tl.constexpr):
    """h mid^T for mid [k, k], or h mid where BACKWARD: [rows, features] to [rows, features]."""
    here, other = feature[:, None], feature[None, :]
    at = here * K + other if BACKWARD else other * K + here
    weight = tl.load(mid + at, (feature < K)[:, None] & (feature < K)[None, :], other=0)
    return tl.dot(h.to(weight.dtype), weight, input_precision=PRECISION)
