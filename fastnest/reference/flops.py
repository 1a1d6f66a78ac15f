"""What the linear maps of an op cost, from shapes."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from . import basic_block2d, bottleneck2d

MAPS = ("down", "mid", "up", "weight", "hidden_weight", "conv1", "conv2", "conv", "projection")
# Convolutions that read and write images before the stride; the others write smaller ones. All where there is none.
BEFORE_STRIDE = {"bottleneck2d": bottleneck2d.KIND.strided, "basic_block2d": basic_block2d.KIND.strided}


def forward_flops(op: str, arguments: Mapping[str, Any]) -> int:
    """Multiplications and additions: 2 a weight and row. A pixel counts as a row, also where a 3x3 reads beside it.

    Not counted: activations, norms and sums. A backward, with dx and dw, has twice as many, and what it computes again.

    Args:
        op: whose maps they are.
        arguments: of the op, or of one of its operators: shapes by name, a list of them for a list of tensors.
    """
    n, _, *image = arguments["x" if "x" in arguments else "y"]
    stride = arguments.get("stride", 1)
    smaller = [(size - 1) // stride + 1 for size in image]
    weights = [shape for name in MAPS for shape in _as_list(arguments.get(name))]
    larger = BEFORE_STRIDE.get(op, len(weights))
    before = flops_of_rows(n * math.prod(image), weights[:larger])
    return before + flops_of_rows(n * math.prod(smaller), weights[larger:])


def flops_of_rows(n: int, shapes: Iterable[tuple[int, ...]]) -> int:
    """Of n rows through linear maps."""
    return 2 * n * sum(map(math.prod, shapes))


def _as_list(shapes: Any) -> list[tuple[int, ...]]:
    if shapes is None:
        return []
    return shapes if isinstance(shapes, list) else [shapes]
