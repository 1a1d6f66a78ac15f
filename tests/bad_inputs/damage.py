"""What may come instead of a tensor that fits: other layouts, shapes, types, values, and things that are no tensor."""

import numpy
import torch
from hypothesis import strategies as st
from torch import Tensor

HUGE = 2**46  # elements of no memory that there is; a failing request for them costs nothing


def _in_other_memory(values: Tensor, way: int) -> Tensor:
    """The same numbers, strided in one of seven ways."""
    if values.dim() == 0 or values.numel() == 0:
        return values
    if way == 0:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if way == 1:
        return values.movedim(1, -1).contiguous().movedim(-1, 1) if values.dim() > 1 else values
    if way == 2:
        return torch.nn.functional.pad(values, (1, 2))[..., 1:-2]
    if way == 3:
        return values.repeat_interleave(2, -1)[..., ::2]
    if way == 4:
        return values.repeat_interleave(3, 0)[::3]
    if way == 5:
        return torch.cat([values.flatten()[:1], values.flatten()])[1:].view(values.shape)  # off by one element
    return values.flatten().as_strided(values.shape, values.contiguous().stride(), 0)


def layouts(values: Tensor) -> st.SearchStrategy:
    """The same numbers in other memory: what comes out must be the same."""
    return st.integers(0, 6).map(lambda way: _in_other_memory(values, way))


@st.composite
def other_numbers(draw, values: Tensor) -> Tensor:
    """NaN, infinities, large and tiny numbers somewhere, or one row for all.

    None so near the largest of its type that plain torch's sums overflow where a kernel's, in another order, do not.
    """
    values = values.clone(memory_format=torch.contiguous_format)
    if values.numel() == 0:
        return values
    if draw(st.booleans()):
        return values[:1].expand(values.shape)
    at = draw(st.integers(0, values.numel() - 1))
    values.view(-1)[at] = draw(st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 1e-40, -0.0, 100.0]))
    return values


@st.composite
def other_shapes(draw, values: Tensor) -> Tensor:
    shape = list(values.shape)
    at = draw(st.integers(0, max(len(shape) - 1, 0)))
    way = draw(st.integers(0, 7))
    if not shape or way == 0:
        return values.new_zeros([*shape, draw(st.integers(0, 3))])
    if way == 1:
        return values.select(at, 0) if shape[at] else values.new_zeros(shape[:at] + shape[at + 1 :])
    if way == 2:
        return values.unsqueeze(at)
    if way == 3:
        return values.new_zeros(())
    if way == 4:  # as many as no memory holds, of one number
        shape[at] = HUGE
        return values.new_ones(()).expand(shape)
    if way == 5:
        shape[at] = 0
    else:
        shape[at] += -1 if way == 6 and shape[at] else 1
    return values.new_ones(shape)


def other_tensors(values: Tensor) -> st.SearchStrategy:
    types = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64]
    ways = [lambda dtype=dtype: values.to(dtype) for dtype in types]
    ways += [
        lambda: values.to("meta"),
        values.to_sparse,
        lambda: torch.quantize_per_tensor(values.float(), 0.1, 0, torch.qint8),
    ]
    return st.sampled_from(ways).map(lambda make: make())


def no_tensors(values: Tensor) -> st.SearchStrategy:
    return st.one_of(
        st.sampled_from([None, "x", "", 0, 1, -1, 2**70, 1.5, True, (), [], {}, b"x", object(), torch.float32, [None]]),
        st.just(values.float().numpy()),
        st.just(values.tolist()),
        st.just([values]),
        st.just(numpy.float64(1.0)),
    )


def damaged(values: Tensor) -> st.SearchStrategy:
    """Anything of the above, half of it numbers that fit."""
    wrong = st.one_of(other_shapes(values), other_tensors(values), no_tensors(values))
    return st.one_of(layouts(values), other_numbers(values), wrong, wrong)


options = st.one_of(
    st.sampled_from(["relu", "gelu", "silu", "tanh", "identity", "leaky_relu", "gelu_tanh", "batch"]),
    st.sampled_from([None, "", "swish", 0, 1, 2, -1, 3, 2**70, 1e-5, 0.0, -1.0, float("nan"), True, False, [], "1"]),
)
sizes = st.one_of(
    st.integers(-2, 6), st.sampled_from([None, "3", 2.0, True, [2, 3], (2, 3), [], [2, "3"], HUGE, 2**70])
)
