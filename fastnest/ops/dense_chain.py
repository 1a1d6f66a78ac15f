"""dense_chain: L concatenating dense growths on rows as one op, in one buffer."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from .. import _backend
from ..reference import dense_chain as reference
from ..reference.dense_chain import Weights
from . import dense_chain_autograd as autograd
from .arguments import (
    Wanted,
    as_list,
    autocast_dtype,
    cast,
    check_activation,
    check_flags,
    check_rows,
    contiguous,
    misfit,
    need_grad,
    raise_misfit,
    rows,
)

OP = "dense_chain"


def check(x: Tensor, weights: Weights, activation: str) -> None:
    """All arguments fit together; ValueError or TypeError names the first that does not."""
    check_activation(OP, activation)
    blocks = len(weights.weight)
    if blocks == 0:
        raise ValueError(f"{OP}: weight must have at least one block, got an empty list")
    for name, tensors in zip(Weights._fields, weights, strict=True):
        if len(tensors) not in (0, blocks):
            raise ValueError(f"{OP}: {name} must have {blocks} tensors to match weight, got {len(tensors)}")
    if weights.hidden_bias and not weights.hidden_weight:
        raise ValueError(f"{OP}: hidden_bias needs hidden_weight, got no hidden_weight")
    # `not`, as torch 2.11 compiles no bool() of a list.
    if (not weights.scale) != (not weights.shift):
        raise ValueError(f"{OP}: scale and shift go together, got {'scale' if weights.scale else 'shift'} alone")
    expected: list[Wanted[tuple[str, int]]] = []
    width, reads, hides = x.shape[1], [], []  # per block: m_{i-1}, and h_i (0: no hidden layer)
    for i, weight in enumerate(weights.weight):
        d, h = _rows("weight", i, weight), 0
        if weights.hidden_weight:
            hidden_weight = weights.hidden_weight[i]
            h = _rows("hidden_weight", i, hidden_weight)
            expected.append((("hidden_weight", i), hidden_weight, (h, width)))
            if weights.hidden_bias:
                expected.append((("hidden_bias", i), weights.hidden_bias[i], (h,)))
        expected.append((("weight", i), weight, (d, h or width)))
        if weights.bias:
            expected.append((("bias", i), weights.bias[i], (d,)))
        if weights.scale:
            expected += [(("scale", i), weights.scale[i], (width,)), (("shift", i), weights.shift[i], (width,))]
        reads.append(width)
        hides.append(h)
        width = width + d  # not in place: under torch.jit.trace a size is a tensor, which `expected` holds too
    wrong = misfit(x, expected)
    if wrong is not None:
        (name, i), tensor, shape = wrong
        match = f"block {i}, which reads {reads[i]} features"
        if hides[i]:
            match += f" and hides {hides[i]}"
        raise_misfit(OP, x, (f"{name}[{i}]", tensor, shape), match)


def cuda_limit(x: Tensor, weights: Weights, room: _backend.Room) -> str | None:
    """Why the kernels in CUDA C++ cannot take these sizes on a GPU: a block keeps 16 rows in shared memory."""
    element = x.element_size()
    rows_of_block, tile = 16, 32 * 136  # of columns by features
    others = (2 * tile + 2 * rows_of_block * 136) * element + 4 * rows_of_block * 32 * 4
    most = (room.shared_bytes - others) // (rows_of_block * element) - 2 * (8 + 31)
    width = x.shape[1] + sum(weight.shape[0] for weight in weights.weight)
    hidden = max((weight.shape[0] for weight in weights.hidden_weight), default=0)
    if width + hidden <= most:
        return None
    got = f"{width} + {hidden}" if hidden else width
    return f"on this GPU, the kernels take up to {most} columns of the result and of a hidden layer, got {got}"


def _rows(name: str, i: int, weight: Tensor) -> int:
    """How many features a weight yields: at least one."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{OP}: {name}[{i}] must be a torch.Tensor, got {type(weight).__name__}")
    if weight.dim() != 2 or weight.shape[0] < 1:
        raise ValueError(f"{OP}: {name}[{i}] must be [features out, features in], got {list(weight.shape)}")
    return weight.shape[0]


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
    hidden_bias_i) + bias_i. `scale` and `shift` apply to x_{i-1} first (a folded batch norm). The activation comes
    before every linear map, or after every one with pre_activation=False: q_i = f(weight_i x_{i-1} + bias_i). The
    kernels' backward reads the result, which must not be changed in place before.

    Args:
        x: the rows [n, m_0], float32, bfloat16 or float16 for the kernels (float64 runs the reference). Rows may be
            strided; where the stride along features is not 1 the kernel reads a copy.
        weight: one matrix per block, [d_i, m_{i-1}], or [d_i, h_i] with a hidden layer; m_i = m_{i-1} + d_i. Every
            tensor has x's dtype and device.
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
        RuntimeError: where a forced backend (`fastnest.backend`) cannot take the call; in the backward, where the
            result was changed in place.
    """
    check_rows(OP, x)
    check_flags(OP, pre_activation=pre_activation)
    given = zip(Weights._fields, (weight, bias, hidden_weight, hidden_bias, scale, shift), strict=True)
    weights = Weights(*(as_list(OP, *one, "with one tensor per block") for one in given))
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = cast(x, dtype)
        weights = Weights(*([cast(tensor, dtype) for tensor in tensors] for tensors in weights))
    check(x, weights, activation)
    n, m = x.shape
    limit = partial(cuda_limit, x, weights)
    backend = _backend.choose(OP, x, None, limit, n=n, m=m, d=len(weights.weight[0]), l=len(weights.weight))
    if backend == "reference":
        return reference.dense_chain_forward(x, weights, activation, pre_activation)
    y: Tensor
    x = rows("x", x)
    weights = Weights(*([contiguous("a weight", t) for t in tensors] for tensors in weights))
    flat = [t for tensors in weights for t in tensors]
    if not need_grad((x, *flat)):
        y, _ = autograd.kernel_forward(backend, x, weights, activation, pre_activation, False)
    else:
        options = backend, activation, pre_activation, tuple(map(len, weights))
        y = autograd.DenseChainFunction.apply(*options, x, *flat)
    return y
