"""L bottleneck residual blocks on rows: forward, in one launch (what moves: residual_chain.py)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import IDEMPOTENT, activate
from .launch import cdiv, is_half, launch, narrower, precision, present, wide
from .residual_chain_tiles import into_down, options, step_up, through_mid


@triton.jit
def _down(x, z, down, scale, shift, column, feature, M, K, ACT, PRE, AFFINE, PRECISION: tl.constexpr):
    """z + f(scale x + shift) down^T for a chunk of columns: [rows, chunk] to [rows, features]."""
    _, _, a = into_down(x, scale, shift, column, M, ACT, PRE, AFFINE)
    # Columns behind the last meet weights of 0.
    weight = tl.load(
        down + feature[None, :] * M + column[:, None], (feature < K)[None, :] & (column < M)[:, None], other=0
    )
    return tl.dot(a.to(weight.dtype), weight, z, input_precision=PRECISION)


@triton.jit
def _rounded(z, like):
    """z as the tensor `like` would keep it."""
    return z.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _forward_kernel(
    x, down, down_bias, mid, mid_bias, up, scale, shift, y, features, hidden, stream,
    n, l, ups, x_stride,
    M: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr,
    ACT: tl.constexpr, PRE: tl.constexpr, BIAS: tl.constexpr, MID: tl.constexpr, MID_BIAS: tl.constexpr,
    AFFINE: tl.constexpr, RETURN: tl.constexpr, SAVE: tl.constexpr, SAVE_OUTPUT: tl.constexpr,
    SAVE_STREAM: tl.constexpr, HELD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, CHUNK)
    feature = tl.arange(0, FEATURES)
    inside = (row < n)[:, None]
    kept = inside & (feature < K)[None, :]
    LAYERS: tl.constexpr = 2 if MID else 1
    hidden += row[:, None] * l * LAYERS * K + feature[None, :]
    features += row[:, None] * l * K + feature[None, :]
    held = tl.zeros([ROWS, CHUNK], tl.float32)
    if HELD:
        there = inside & (column < M)[None, :]
        held = tl.load(x + row[:, None] * x_stride + column[None, :], there, other=0).to(tl.float32)
    else:
        for begin in range(0, M, CHUNK):
            c = begin + column
            there = inside & (c < M)[None, :]
            part = tl.load(x + row[:, None] * x_stride + c[None, :], there, other=0).to(tl.float32)
            tl.store(stream + row[:, None] * M + c[None, :], part, there)
        tl.debug_barrier()
    for i in range(l):
        z = tl.zeros([ROWS, FEATURES], tl.float32)
        if HELD:
            z = _down(held, z, down, scale, shift, column, feature, M, K, ACT, PRE, AFFINE, PRECISION)
        else:
            for begin in range(0, M, CHUNK):
                c = begin + column
                there = inside & (c < M)[None, :]
                part = tl.load(stream + row[:, None] * M + c[None, :], there, other=0)
                z = _down(part, z, down, scale, shift, c, feature, M, K, ACT, PRE, AFFINE, PRECISION)
        if BIAS:
            z += tl.load(down_bias + feature, feature < K, other=0).to(tl.float32)[None, :]
        z = _rounded(z, y)  # as the backward will read it, or the stream would not step back
        v = activate(z, ACT)
        if SAVE:
            tl.store(hidden, v if SAVE_OUTPUT else z, kept)
        if MID:
            z = through_mid(v, mid, feature, K, False, PRECISION)
            if MID_BIAS:
                z += tl.load(mid_bias + feature, feature < K, other=0).to(tl.float32)[None, :]
            z = _rounded(z, y)
            v = activate(z, ACT)
            if SAVE:
                tl.store(hidden + K, v if SAVE_OUTPUT else z, kept)
        if RETURN:
            tl.store(features, v, kept)
        # A last block without `up` adds nothing.
        given = wide(i) < ups
        of_up = feature < tl.where(given, K, 0)
        v = tl.where(given, v, 0.0)
        if HELD:
            held = step_up(v, held, up, column, feature, of_up, M, K, PRECISION)
        else:
            for begin in range(0, M, CHUNK):
                c = begin + column
                there = inside & (c < M)[None, :]
                at = stream + row[:, None] * M + c[None, :]
                tl.store(at, step_up(v, tl.load(at, there, other=0), up, c, feature, of_up, M, K, PRECISION), there)
            tl.debug_barrier()
        hidden += LAYERS * K
        features += K
        down += K * M
        up += K * M
        mid += K * K
        down_bias += K
        mid_bias += K
        scale += M
        shift += M
    for begin in range(0, M, CHUNK):
        c = begin + column
        there = inside & (c < M)[None, :]
        at = row[:, None] * M + c[None, :]
        if HELD:
            tl.store(y + at, held, there)
            if SAVE_STREAM:
                tl.store(stream + at, held, there)
        else:
            tl.store(y + at, tl.load(stream + at, there, other=0), there)


def residual_chain_forward(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    mid: Tensor | None,
    mid_bias: Tensor | None,
    up: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    pre_activation: bool,
    features: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, features, hidden, stream): see `fastnest.reference.residual_chain`, whose fake says their shapes."""
    (n, m), (l, k, _) = x.shape, down.shape
    idempotent = activation in IDEMPOTENT
    layers = 1 if mid is None else 2
    y = x.new_empty(n, m)
    hidden = x.new_empty(n, l, layers, k) if save else x.new_empty(0)
    found = x.new_empty(n, l, k) if features and not (save and idempotent and mid is None) else x.new_empty(0)
    half = is_half(x.dtype)
    stream = x.new_empty(n, m, dtype=torch.float32) if save and half else x.new_empty(0, dtype=torch.float32)
    if n == 0:
        return y, found, hidden, stream
    tiles = options(n, m, k, x.dtype, False)
    # Where a wide stream lives: at the end that is y, or what is kept for the backward, or nothing anyone keeps.
    carried = stream
    if not tiles["HELD"] and not stream.numel():
        carried = x.new_empty(n, m, dtype=torch.float32) if half else y
    flags = {"ACT": activation, "PRE": pre_activation, "BIAS": down_bias is not None, "MID": mid is not None,
             "MID_BIAS": mid_bias is not None, "AFFINE": scale is not None, "RETURN": found.numel() > 0, "SAVE": save,
             "SAVE_OUTPUT": idempotent, "SAVE_STREAM": stream.numel() > 0, "PRECISION": precision(x.dtype)}  # fmt: skip

    def forward(tiles: dict) -> None:
        _forward_kernel[(cdiv(n, tiles["ROWS"]),)](
            x, down, *present(x, down_bias, mid, mid_bias), up, *present(x, scale, shift), y, found, hidden, carried,
            n, l, up.shape[0], x.stride(0), m, k, **flags, **tiles,
        )  # fmt: skip

    key = (n, l, m, k, x.dtype, *flags.values())
    launch(forward, [tiles, *narrower(tiles)], "residual_chain_forward", x.device, *key)
    return y, found, hidden, stream
