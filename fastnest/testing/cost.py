"""What an op costs: flops of its linear maps, bytes that have to move."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .case import Case


def flops(case: Case, training: bool = False) -> int:
    """Multiplications and additions of the linear maps: residual_chain trains in 12 n m k l (mid: + 6 n k k l).

    A pixel counts as a row. Not counted: activations, sums, and what a backward computes again.
    """
    maps = ("down", "mid", "up", "weight", "hidden_weight", "conv1", "conv2", "conv", "projection")
    n, _, *image = case.x_shape
    before = n * math.prod(image)
    behind = n * math.prod(case.y_shape[2:])  # the first convolution that may have a stride
    weights = [shape for name, shape in _flat_shapes(case) if name in maps]
    larger = {"bottleneck2d": 1, "basic_block2d": 0}.get(case.op, len(weights))
    return flops_of_maps(before, weights[:larger], training) + flops_of_maps(behind, weights[larger:], training)


def flops_of_maps(n: int, shapes: Iterable[tuple[int, ...]], training: bool) -> int:
    """Of n rows through linear maps: 2 a weight and row forward, 6 in a training step (dx and dw cost as much each)."""
    return (6 if training else 2) * n * sum(map(math.prod, shapes))


def bytes_moved(case: Case, dtype: torch.dtype) -> int:
    """Bytes of the arguments read once and the result written once, all that a fused forward has to move."""
    elements: int = math.prod(case.y_shape) + sum(math.prod(shape) for _, shape in _flat_shapes(case))
    return dtype.itemsize * elements


def _flat_shapes(case: Case) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for name, shape in case.shapes().items():
        for one in shape if isinstance(shape, list) else [shape]:
            yield name, one
