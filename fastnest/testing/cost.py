"""What an op costs: flops of its linear maps, bytes that have to move."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..reference.flops import flops_of_rows, forward_flops
from .case import Case


def flops(case: Case, training: bool = False) -> int:
    """Multiplications and additions of the linear maps: residual_chain trains in 12 n m k l (mid: + 6 n k k l).

    A pixel counts as a row. Not counted: activations, sums, and what a backward computes again.
    """
    return _passes(training) * forward_flops(case.op, case.shapes() | case.options)


def flops_of_maps(n: int, shapes: Iterable[tuple[int, ...]], training: bool) -> int:
    """Of n rows through linear maps: 2 a weight and row forward, 6 in a training step (dx and dw cost as much each)."""
    return _passes(training) * flops_of_rows(n, shapes)


def _passes(training: bool) -> int:
    return 3 if training else 1


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """Bytes of the arguments read once and the result written once, all that a fused forward has to move."""
    elements: int = math.prod(case.y_shape) + sum(math.prod(shape) for _, shape in _flat_shapes(case))
    return dtype.itemsize * elements


def _flat_shapes(case: Case) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for name, shape in case.shapes().items():
        for one in shape if isinstance(shape, list) else [shape]:
            yield name, one
