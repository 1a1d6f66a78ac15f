"""dense_chain: L concatenating dense growths on rows as one op, in one buffer."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend
from ..reference import dense_chain as reference
from ..reference.dense_chain import Weights
from .arguments import autocast_dtype, cast, check_activation, check_rows, check_tensor, contiguous, need_grad, rows

OP = "dense_chain"

if _backend.cpp_is_built():
    torch.library.register_fake("fastnest::dense_chain_forward")(reference.dense_chain_forward_fake)
    torch.library.register_fake("fastnest::dense_chain_backward")(reference.dense_chain_backward_fake)
    _forward = torch.ops.fastnest.dense_chain_forward.default
    _backward = torch.ops.fastnest.dense_chain_backward.default


class Sizes(NamedTuple):
    """n rows, m = m_0 features in, and per block the hidden size h_i (0: no hidden layer) and the growth d_i."""

    n: int
    m: int
    h: list[int]
    d: list[int]


def check(x: Tensor, weights: Weights) -> Sizes:
    """The sizes of a call whose arguments fit together; ValueError or TypeError names the one that does not."""
    blocks = len(weights.weight)
    if blocks == 0:
        raise ValueError(f"{OP}: weight must have at least one block, got an empty list")
    for name, tensors in zip(Weights._fields, weights, strict=True):
        if len(tensors) not in (0, blocks):
            raise ValueError(f"{OP}: {name} must have {blocks} tensors to match weight, got {len(tensors)}")
    if weights.hidden_bias and not weights.hidden_weight:
        raise ValueError(f"{OP}: hidden_bias needs hidden_weight, got no hidden_weight")
    if bool(weights.scale) != bool(weights.shift):
        raise ValueError(f"{OP}: scale and shift go together, got {'scale' if weights.scale else 'shift'} alone")
    n, m = x.shape
    sizes = Sizes(n, m, [], [])
    for i in range(blocks):
        reads = f"block {i}, which reads {m} features"
        weight, bias, hidden_weight, hidden_bias, scale, shift = weights.block(i)
        width = m
        if hidden_weight is not None:
            width = _check_matrix("hidden_weight", i, hidden_weight, m, reads, x)
            sizes.h.append(width)
            reads = f"block {i}, whose hidden layer has {width} features"
        growth = _check_matrix("weight", i, weight, width, reads, x)
        sizes.d.append(growth)
        vectors = ("bias", bias, growth), ("hidden_bias", hidden_bias, width), ("scale", scale, m), ("shift", shift, m)
        for name, vector, length in vectors:
            if vector is not None:
                check_tensor(OP, f"{name}[{i}]", vector, (length,), f"block {i}", x)
        m += growth
    return sizes


def _check_matrix(name: str, i: int, weight: Tensor, inputs: int, reads: str, x: Tensor) -> int:
    """weight is [outputs, inputs] with at least one output; their number."""
    outputs = weight.shape[0] if isinstance(weight, Tensor) and weight.dim() == 2 else 1
    if outputs < 1:
        raise ValueError(f"{OP}: {name}[{i}] must have at least one row, got {list(weight.shape)}")
    check_tensor(OP, f"{name}[{i}]", weight, (outputs, inputs), reads, x)
    return outputs


class _DenseChain(torch.autograd.Function):
    """The kernels' forward and backward. Keeps y (x is its first columns), the weights and `hidden`."""

    @staticmethod
    def forward(ctx, activation, pre_activation, lengths, x, *flat):
        y, hidden = _forward(x, *_lists(flat, lengths), activation, pre_activation, True)
        ctx.save_for_backward(y, hidden, *flat)
        ctx.activation, ctx.pre_activation, ctx.lengths, ctx.m = activation, pre_activation, lengths, x.shape[1]
        return y

    @staticmethod
    def backward(ctx, dy):
        y, hidden, *flat = ctx.saved_tensors
        weights = _lists(flat, ctx.lengths)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The graph of this backward is asked for: by the definition, which is made of differentiable operations.
            with torch.autocast(y.device.type, enabled=False):
                options = ctx.activation, ctx.pre_activation
                dx, gradients = reference.dense_chain_backward(dy, y[:, : ctx.m], weights, *options)
        else:
            dx, *gradients = _backward(rows("dy", dy), y, hidden, *weights, ctx.activation, ctx.pre_activation)
        return None, None, None, dx, *(g for per_list in gradients for g in per_list)


def _lists(flat: Sequence[Tensor], lengths: tuple[int, ...]) -> Weights:
    flat = iter(flat)
    return Weights(*([next(flat) for _ in range(length)] for length in lengths))


def dense_chain(
    x: Tensor,
    weight: Sequence[Tensor],
    *,
    bias: Sequence[Tensor] | None = None,
    hidden_weight: Sequence[Tensor] | None = None,
    hidden_bias: Sequence[Tensor] | None = None,
    scale: Sequence[Tensor] | None = None,
    shift: Sequence[Tensor] | None = None,
    activation: str = "relu",
    pre_activation: bool = True,
) -> Tensor:
    """L dense growths, x_i = [x_{i-1}, q_i] with q_i = weight_i f(x_{i-1}) + bias_i, i = 1..L, in one buffer.

    The DenseNEst of arXiv 2111.05496, equation 9. With `hidden_weight`, q_i = weight_i f(hidden_weight_i f(x_{i-1}) +
    hidden_bias_i) + bias_i. `scale` and `shift` apply to x_{i-1} first (a folded batch norm). The activation comes before
    every linear map, or after every one with pre_activation=False: q_i = f(weight_i x_{i-1} + bias_i).

    Args:
        x: the rows [n, m_0], float32, bfloat16 or float16 for the kernels (float64 runs the reference). Rows may be
            strided; where the stride along features is not 1 the kernel reads a copy.
        weight: one matrix per block, [d_i, m_{i-1}], or [d_i, h_i] with a hidden layer; m_i = m_{i-1} + d_i. Every tensor
            has x's dtype and device.
        bias: one vector [d_i] per block, default none.
        hidden_weight: one matrix [h_i, m_{i-1}] per block, default none.
        hidden_bias: one vector [h_i] per block, default none; needs hidden_weight.
        scale, shift: one vector [m_{i-1}] each per block, default none; both or neither.
        activation: f, one of relu, gelu, gelu_tanh, silu, tanh, leaky_relu (slope 0.01), identity.
        pre_activation: whether f comes before (default) or after every linear map.

    Returns:
        x_L [n, m_L], whose columns are x, q_1, ..., q_L.

    Raises:
        ValueError, TypeError: naming the argument that does not fit, what was expected and what came.
        RuntimeError: where a forced backend (`fastnest.backend`) cannot take the call.
    """
    check_rows(OP, x)
    check_activation(OP, activation)
    weights = Weights(*(_as_list(name, tensors) for name, tensors in zip(Weights._fields, (
        weight, bias, hidden_weight, hidden_bias, scale, shift), strict=True)))  # fmt: skip
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = cast(x, dtype)
        weights = Weights(*([cast(tensor, dtype) for tensor in tensors] for tensors in weights))
    check(x, weights)
    if _backend.choose(OP, x) == "reference":
        return reference.dense_chain_forward(x, weights, activation, pre_activation)
    x = rows("x", x)
    lengths = tuple(map(len, weights))
    flat = [contiguous("a weight", tensor) for tensors in weights for tensor in tensors]
    if not need_grad((x, *flat)):
        y, _ = _forward(x, *_lists(flat, lengths), activation, pre_activation, False)
        return y
    return _DenseChain.apply(activation, pre_activation, lengths, x, *flat)


def _as_list(name: str, tensors: Sequence[Tensor] | None) -> list[Tensor]:
    if tensors is None:
        return []
    if isinstance(tensors, Tensor):
        raise TypeError(f"{OP}: {name} must be a sequence with one tensor per block, got one tensor")
    return list(tensors)
