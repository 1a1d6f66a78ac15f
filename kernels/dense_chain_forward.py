"""L concatenating dense growths on rows: forward, in one launch where all blocks are alike (dense_chain.py)."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .activation import IDEMPOTENT, activate
from .dense_chain_runs import columns_before, into_product, options, packed, runs
from .launch import cdiv, launch, narrower, wide


@triton.jit
def _linear(
    source, width, weight, bias, scale, shift, inside, feature, of_feature,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr, ACT: tl.constexpr, BIAS: tl.constexpr,
    AFFINE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """f(scale s + shift) weight^T + bias for rows s [rows, width] at `source`, rounded as memory keeps it."""
    z = tl.zeros([ROWS, FEATURES], tl.float32)
    for begin in range(0, width, CHUNK):
        column = begin + tl.arange(0, CHUNK)
        of_column = column < width
        part = tl.load(source + column[None, :], inside & of_column[None, :], other=0).to(tl.float32)
        a = into_product(part, scale, shift, column, of_column, ACT, AFFINE)
        # Columns behind the last meet weights of 0.
        at = feature[None, :] * width + column[:, None]
        w = tl.load(weight + at, of_feature[None, :] & of_column[:, None], other=0)
        z = tl.dot(a.to(w.dtype), w, z, input_precision=PRECISION)
    if BIAS:
        z += tl.load(bias + feature, of_feature, other=0).to(tl.float32)[None, :]
    return z.to(weight.dtype.element_ty)


@triton.jit
def _forward_kernel(
    x, weight, bias, hidden_weight, hidden_bias, scale, shift, y, hidden,
    n, l, m, d, h, x_stride, y_stride, hidden_stride, hidden_step,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr, ACT: tl.constexpr, PRE: tl.constexpr,
    BIAS: tl.constexpr, HIDDEN: tl.constexpr, HIDDEN_BIAS: tl.constexpr, AFFINE: tl.constexpr, COPY: tl.constexpr,
    SAVE_GROWTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = (row < n)[:, None]
    of_y = y + row[:, None] * y_stride
    of_hidden = hidden + row[:, None] * hidden_stride
    FIRST: tl.constexpr = ACT if PRE else "identity"
    if COPY:
        for begin in range(0, m, CHUNK):
            column = begin + tl.arange(0, CHUNK)
            there = inside & (column < m)[None, :]
            part = tl.load(x + row[:, None] * x_stride + column[None, :], there, other=0)
            tl.store(of_y + column[None, :], part, there)
        tl.debug_barrier()
    for i in range(l):
        width = m + i * d
        before = columns_before(i, m, d)
        if HIDDEN:
            for begin in range(0, h, FEATURES):
                feature = begin + tl.arange(0, FEATURES)
                of_feature = feature < h
                z = _linear(
                    of_y, width, hidden_weight + before * h, hidden_bias + wide(i) * h, scale + before, shift + before,
                    inside, feature, of_feature, ROWS, CHUNK, FEATURES, FIRST, HIDDEN_BIAS, AFFINE, PRECISION,
                )  # fmt: skip
                tl.store(of_hidden + feature[None, :], z, inside & of_feature[None, :])
            tl.debug_barrier()
        for begin in range(0, d, FEATURES):
            feature = begin + tl.arange(0, FEATURES)
            of_feature = feature < d
            if HIDDEN:
                z = _linear(
                    of_hidden, h, weight + wide(i) * h * d, bias + wide(i) * d, scale, shift,
                    inside, feature, of_feature, ROWS, CHUNK, FEATURES, ACT, BIAS, False, PRECISION,
                )  # fmt: skip
            else:
                z = _linear(
                    of_y, width, weight + before * d, bias + wide(i) * d, scale + before, shift + before,
                    inside, feature, of_feature, ROWS, CHUNK, FEATURES, FIRST, BIAS, AFFINE, PRECISION,
                )  # fmt: skip
            kept = inside & of_feature[None, :]
            if SAVE_GROWTH:
                tl.store(of_hidden + h + feature[None, :], z, kept)
            if not PRE:
                z = activate(z.to(tl.float32), ACT)
            tl.store(of_y + width + feature[None, :], z, kept)
        tl.debug_barrier()
        of_hidden += hidden_step


def dense_chain_forward(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    hidden_weight: Sequence[Tensor],
    hidden_bias: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    activation: str,
    pre_activation: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """(y, hidden): see `fastnest.reference.dense_chain`, whose fake says their shapes.

    hidden, per row and block: what the hidden layer's activation is taken of, then the growth's where y does not tell.
    """
    n, m = x.shape
    blocks = runs(m, weight, hidden_weight)
    save_growth = save and not pre_activation and activation not in IDEMPOTENT
    kept = [run.h + save_growth * run.d for run in blocks]
    width = sum(run.l * each for run, each in zip(blocks, kept, strict=True)) if save else max(run.h for run in blocks)
    y = x.new_empty(n, m + sum(run.l * run.d for run in blocks))
    hidden = x.new_empty(n, width) if save or width else x.new_empty(0)
    at = 0
    for run, each in zip(blocks, kept, strict=True) if n else ():
        lists = packed(x, run, weight, bias, hidden_weight, hidden_bias, scale, shift)
        flags = {"ACT": activation, "PRE": pre_activation, "BIAS": bool(bias), "HIDDEN": run.h > 0,
                 "HIDDEN_BIAS": bool(hidden_bias), "AFFINE": bool(scale), "COPY": run.m == m,
                 "SAVE_GROWTH": save_growth}  # fmt: skip

        def forward(tiles: dict, run=run, each=each, of_run=hidden[..., at:], lists=lists, flags=flags) -> None:
            _forward_kernel[(cdiv(n, tiles["ROWS"]),)](
                x, *lists, y, of_run, n, run.l, run.m, run.d, run.h, x.stride(0), y.stride(0), width,
                each if save else 0, **flags, **tiles,
            )  # fmt: skip

        tiles = options(n, run, x.dtype)
        key = (n, run.l, run.m, run.d, run.h, x.dtype, *flags.values())
        launch(forward, [tiles, *narrower(tiles)], "dense_chain_forward", x.device, *key)
        at += run.l * each if save else 0
    return y, hidden if save else x.new_empty(0)
