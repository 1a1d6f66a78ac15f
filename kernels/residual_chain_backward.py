"""L bottleneck residual blocks on rows: backward (what moves: residual_chain.py)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import IDEMPOTENT, activate, activate_backward
from .launch import cdiv, launch, narrower, precision, present, tile, warps, wide
from .residual_chain_tiles import into_down, options, step_up, through_mid
from .slices import added, slices_for


@triton.jit
def _load_features(hidden, layer, kept, K, ACT, SAVE_OUTPUT: tl.constexpr):
    """What is kept of a layer (z, or f(z) where that says f'(z) too), and f(z)."""
    s = tl.load(hidden + layer * K, kept, other=0).to(tl.float32)
    if SAVE_OUTPUT:
        return s, s
    else:
        return s, activate(s, ACT)


@triton.jit
def _through_up(g, d, up, column, feature, of_up, M, K, PRECISION: tl.constexpr):
    """d + g up for a chunk of columns, [rows, chunk] to [rows, features]; of_up: which features there are."""
    weight = tl.load(up + column[:, None] * K + feature[None, :], of_up[None, :] & (column < M)[:, None], other=0)
    return tl.dot(g.to(weight.dtype), weight, d, input_precision=PRECISION)


@triton.jit
def _through_down(dz, du, down, column, feature, M, K, PRECISION: tl.constexpr):
    """du + dz down for a chunk of columns: [rows, features] to [rows, chunk]."""
    weight = tl.load(
        down + feature[:, None] * M + column[None, :], (feature < K)[:, None] & (column < M)[None, :], other=0
    )
    return tl.dot(dz.to(weight.dtype), weight, du, input_precision=PRECISION)


@triton.jit
def _rows_kernel(
    dy, dfeatures, x, stream, hidden, down, mid, up, scale, shift, dx, dz, xs, gs,
    n, l, ups, x_stride, dy_stride,
    M: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr,
    ACT: tl.constexpr, PRE: tl.constexpr, MID: tl.constexpr, AFFINE: tl.constexpr,
    DY: tl.constexpr, DFEATURES: tl.constexpr, SAVE_OUTPUT: tl.constexpr, HELD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx and dz [n, l, layers, k], from the last block to the first. xs, gs: where a wide stream and gradient live."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, CHUNK)
    feature = tl.arange(0, FEATURES)
    inside = (row < n)[:, None]
    kept = inside & (feature < K)[None, :]
    LAYERS: tl.constexpr = 2 if MID else 1
    at_hidden = row[:, None] * l * LAYERS * K + feature[None, :]
    at_features = row[:, None] * l * K + feature[None, :]
    held_x = tl.zeros([ROWS, CHUNK], tl.float32)
    held_g = tl.zeros([ROWS, CHUNK], tl.float32)
    for begin in range(0, M, CHUNK):
        c = begin + column
        there = inside & (c < M)[None, :]
        at = row[:, None] * M + c[None, :]
        part = tl.load(stream + at, there, other=0)
        g = tl.zeros([ROWS, CHUNK], tl.float32)
        if DY:
            g = tl.load(dy + row[:, None] * dy_stride + c[None, :], there, other=0).to(tl.float32)
        if HELD:
            held_x = part
            held_g = g
        else:
            tl.store(xs + at, part, there)
            tl.store(gs + at, g, there)
    if not HELD:
        tl.debug_barrier()
    for back in range(l):
        i = wide(l - 1 - back)
        given = i < ups
        block = i * K * M
        saved, v = _load_features(hidden + at_hidden + i * LAYERS * K, LAYERS - 1, kept, K, ACT, SAVE_OUTPUT)
        d = tl.zeros([ROWS, FEATURES], tl.float32)
        if DFEATURES:
            d = tl.load(dfeatures + at_features + i * K, kept, other=0).to(tl.float32)
        of_up = feature < tl.where(given, K, 0)
        back_v = tl.where(given, -v, 0.0)
        through = d
        if HELD:
            held_x = step_up(back_v, held_x, up + block, column, feature, of_up, M, K, PRECISION)
            through = _through_up(held_g, d, up + block, column, feature, of_up, M, K, PRECISION)
        else:
            for begin in range(0, M, CHUNK):
                c = begin + column
                there = inside & (c < M)[None, :]
                at = row[:, None] * M + c[None, :]
                part = tl.load(xs + at, there, other=0)
                tl.store(xs + at, step_up(back_v, part, up + block, c, feature, of_up, M, K, PRECISION), there)
                g = tl.load(gs + at, there, other=0)
                through = _through_up(g, through, up + block, c, feature, of_up, M, K, PRECISION)
            tl.debug_barrier()
        d = tl.where(given, through, d)
        d = activate_backward(d, saved, ACT)
        tl.store(dz + at_hidden + i * LAYERS * K + (LAYERS - 1) * K, d, kept)
        if MID:
            d = through_mid(d, mid + i * K * K, feature, K, True, PRECISION)
            saved, _ = _load_features(hidden + at_hidden + i * LAYERS * K, 0, kept, K, ACT, SAVE_OUTPUT)
            d = activate_backward(d, saved, ACT)
            tl.store(dz + at_hidden + i * LAYERS * K, d, kept)
        for begin in range(0, M, CHUNK):
            c = begin + column
            there = inside & (c < M)[None, :]
            at = row[:, None] * M + c[None, :]
            if HELD:
                part = held_x
                g = held_g
            else:
                part = tl.load(xs + at, there, other=0)
                g = tl.load(gs + at, there, other=0)
            # The first block's as it came, so that its zeros are zeros.
            first_only = tl.where(i == 0, M, 0)
            came = tl.load(x + row[:, None] * x_stride + c[None, :], inside & (c < first_only)[None, :], other=0)
            part = tl.where(i == 0, came.to(tl.float32), part)
            factor, u, _a = into_down(part, scale + i * M, shift + i * M, c, M, ACT, PRE, AFFINE)
            du = _through_down(d, tl.zeros_like(part), down + block, c, feature, M, K, PRECISION)
            if PRE:
                du = activate_backward(du, u, ACT)
            g += du * factor
            if HELD:
                held_g = g
            else:
                tl.store(gs + at, g, there)
        if not HELD:
            tl.debug_barrier()
    for begin in range(0, M, CHUNK):
        c = begin + column
        there = inside & (c < M)[None, :]
        at = row[:, None] * M + c[None, :]
        if HELD:
            tl.store(dx + at, held_g, there)
        else:
            tl.store(dx + at, tl.load(gs + at, there, other=0), there)


@triton.jit
def _add(slices, value, there):
    """Adds to a slice that this program alone writes, hence in one order, and without waiting for what it holds."""
    tl.atomic_add(slices, value, there, sem="relaxed")


@triton.jit
def _weights_kernel(
    dy, x, stream, hidden, dz, down, up, scale, shift, ddown, dup, dscale, dshift,
    n, l, ups, x_stride, dy_stride, splits,
    M: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr,
    ACT: tl.constexpr, PRE: tl.constexpr, LAYERS: tl.constexpr, AFFINE: tl.constexpr, DY: tl.constexpr,
    SAVE_OUTPUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Slices of the gradients of down, up, scale and shift for a chunk of columns."""
    split = tl.program_id(1)
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    of_column = column < M
    ddown += split.to(tl.int64) * l * K * M
    dup += split.to(tl.int64) * ups * K * M
    dscale += split.to(tl.int64) * l * M
    dshift += split.to(tl.int64) * l * M
    w = down.dtype.element_ty
    for tile_of_rows in range(split, tl.cdiv(n, ROWS), splits):
        row = wide(tile_of_rows) * ROWS + tl.arange(0, ROWS)
        inside = (row < n)[:, None]
        there = inside & of_column[None, :]
        of_row = row[:, None] * l * LAYERS * K
        part = tl.load(stream + row[:, None] * M + column[None, :], there, other=0)
        g = tl.zeros([ROWS, CHUNK], tl.float32)
        if DY:
            g = tl.load(dy + row[:, None] * dy_stride + column[None, :], there, other=0).to(tl.float32)
        for back in range(l):
            i = wide(l - 1 - back)
            given = i < ups
            block = i * K * M
            g_rounded = g.to(w)
            for begin in range(0, K, FEATURES):
                feature = begin + tl.arange(0, FEATURES)
                of_up = feature < tl.where(given, K, 0)
                kept = inside & of_up[None, :]
                of_block = of_row + i * LAYERS * K + feature[None, :]
                _, v = _load_features(hidden + of_block, LAYERS - 1, kept, K, ACT, SAVE_OUTPUT)
                part = step_up(-v, part, up + block, column, feature, of_up, M, K, PRECISION)
                value = tl.dot(tl.trans(g_rounded), v.to(w), input_precision=PRECISION)
                at = block + column[:, None] * K + feature[None, :]
                _add(dup + at, value, of_column[:, None] & of_up[None, :])
            first_only = tl.where(i == 0, M, 0)
            came = tl.load(
                x + row[:, None] * x_stride + column[None, :], inside & (column < first_only)[None, :], other=0
            )
            part = tl.where(i == 0, came.to(tl.float32), part)
            factor, u, a = into_down(part, scale + i * M, shift + i * M, column, M, ACT, PRE, AFFINE)
            # Rows behind the last have a shift too, which may be infinite.
            a_rounded = tl.where(there, a, 0.0).to(w)
            du = tl.zeros([ROWS, CHUNK], tl.float32)
            for begin in range(0, K, FEATURES):
                feature = begin + tl.arange(0, FEATURES)
                of_block = of_row + i * LAYERS * K + feature[None, :]
                d = tl.load(dz + of_block, inside & (feature < K)[None, :], other=0)
                du = _through_down(d, du, down + block, column, feature, M, K, PRECISION)
                value = tl.dot(tl.trans(d), a_rounded, input_precision=PRECISION)
                at = block + feature[:, None] * M + column[None, :]
                _add(ddown + at, value, (feature < K)[:, None] & of_column[None, :])
            if PRE:
                du = activate_backward(du, u, ACT)
            if AFFINE:
                _add(dscale + i * M + column, tl.sum(du * part, 0), of_column)
                _add(dshift + i * M + column, tl.sum(du, 0), of_column)
            g += du * factor


@triton.jit
def _mid_kernel(
    hidden, dz, dmid, n, l, splits,
    K: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr, ACT: tl.constexpr, SAVE_OUTPUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Slices of mid's gradient, [features, features] of one block: the program's rows summed in registers."""
    split = tl.program_id(2)
    i = wide(tl.program_id(1))
    tiles = tl.cdiv(K, FEATURES)
    to = tl.program_id(0) // tiles * FEATURES + tl.arange(0, FEATURES)
    of = tl.program_id(0) % tiles * FEATURES + tl.arange(0, FEATURES)
    total = tl.zeros([FEATURES, FEATURES], tl.float32)
    for tile_of_rows in range(split, tl.cdiv(n, ROWS), splits):
        row = wide(tile_of_rows) * ROWS + tl.arange(0, ROWS)
        inside = (row < n)[:, None]
        at = (row[:, None] * l + i) * 2 * K
        _, h = _load_features(hidden + at + of[None, :], 0, inside & (of < K)[None, :], K, ACT, SAVE_OUTPUT)
        d = tl.load(dz + at + K + to[None, :], inside & (to < K)[None, :], other=0)
        total = tl.dot(tl.trans(d), h.to(d.dtype), total, input_precision=PRECISION)
    at = (split.to(tl.int64) * l + i) * K * K + to[:, None] * K + of[None, :]
    tl.store(dmid + at, total, (to < K)[:, None] & (of < K)[None, :])


def residual_chain_backward(
    dy: Tensor | None,
    dfeatures: Tensor | None,
    x: Tensor,
    stream: Tensor,
    hidden: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    mid: Tensor | None,
    mid_bias: Tensor | None,
    up: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    pre_activation: bool,
) -> tuple[Tensor, ...]:
    """Gradients of (x, down, down_bias, mid, mid_bias, up, scale, shift); [0] for an absent argument."""
    (n, m), (l, k, _) = x.shape, down.shape
    arguments = (x, down, down_bias, mid, mid_bias, up, scale, shift)
    if n == 0:
        return tuple(x.new_empty(0) if t is None else torch.zeros_like(t) for t in arguments)
    tiles = options(n, m, k, x.dtype, True)
    dx, dz = x.new_empty(n, m), torch.empty_like(hidden)
    shared = {"ACT": activation, "PRE": pre_activation, "AFFINE": scale is not None, "DY": dy is not None,
              "SAVE_OUTPUT": activation in IDEMPOTENT, "PRECISION": precision(x.dtype)}  # fmt: skip
    sizes = (n, l, up.shape[0], x.stride(0), 0 if dy is None else dy.stride(0))
    carried = [dx, dx] if tiles["HELD"] else [x.new_empty(n, m, dtype=torch.float32) for _ in range(2)]
    affine = present(x, scale, shift)
    (given,) = present(x, dy)

    def step_back(tiles: dict) -> None:
        _rows_kernel[(cdiv(n, tiles["ROWS"]),)](
            given, *present(x, dfeatures), x, stream, hidden, down, *present(x, mid), up, *affine, dx, dz, *carried,
            *sizes, m, k, MID=mid is not None, DFEATURES=dfeatures is not None, **shared, **tiles,
        )  # fmt: skip

    key = (n, l, m, k, x.dtype, mid is None, dfeatures is None, *shared.values())
    launch(step_back, [tiles, *narrower(tiles)], "residual_chain_backward", x.device, *key)
    carried.clear()  # their memory serves the slices
    # Of the features one tensor core's side at a time: longer sums would not fit in registers.
    rows, chunk = (32 if shared["PRECISION"] == "tf32x3" or torch.version.hip else 64), 32
    chunks = cdiv(m, chunk)
    splits = slices_for(chunks, cdiv(n, rows), 2 * l * m * k)

    def slices(like: Tensor | None) -> Tensor:
        return x.new_empty(0) if like is None else x.new_zeros(splits, *like.shape, dtype=torch.float32)

    ddown, dmid, dup, dscale, dshift = map(slices, (down, mid, up, scale, shift))
    _weights_kernel[(chunks, splits)](
        given, x, stream, hidden, dz, down, up, *affine, ddown, dup, dscale, dshift, *sizes, splits,
        m, k, ROWS=rows, CHUNK=chunk, FEATURES=16, LAYERS=hidden.shape[2], num_stages=2, **warps(8), **shared,
    )  # fmt: skip
    if mid is not None:
        side = tile(k, 32)
        _mid_kernel[(cdiv(k, side) ** 2, l, splits)](
            hidden, dz, dmid, n, l, splits, k, ROWS=rows, FEATURES=side, ACT=activation,
            SAVE_OUTPUT=shared["SAVE_OUTPUT"], PRECISION=shared["PRECISION"], num_warps=4, num_stages=2,
        )  # fmt: skip

    def summed(parts: Tensor) -> Tensor:
        return added(parts, x.dtype) if parts.dim() > 1 else parts

    def rows_summed(values: Tensor, like: Tensor | None) -> Tensor:
        return x.new_empty(0) if like is None else values.sum(0, dtype=torch.float32).to(x.dtype)

    return (
        dx,
        summed(ddown),
        rows_summed(dz[:, :, 0], down_bias),
        summed(dmid),
        rows_summed(dz[:, :, -1], mid_bias),
        summed(dup),
        summed(dscale),
        summed(dshift),
    )
