"""Features side by side with their targets, batch by batch in float64, and sums over all processes."""

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .batches import Batches
from .loss import Loss, is_classes, outputs_for, targets


class Samples:
    """Pairs (v, y), v [n, size_0 + ... + size_L] in float64, y as the loss takes it; can be read again and again.

    Args:
        batches: where x and y come from.
        features: makes [v_0, ..., v_L] of x.
        loss: says how y has to look.
        outputs: of a predictor of y: a number, or a function of x that finds it; None: y itself says it.
        intercept: whether a first feature is 1.
    """

    def __init__(
        self,
        batches: Batches,
        features: Callable[[Any], Sequence[Tensor]],
        loss: Loss,
        outputs: int | Callable[[Any], int] | None = None,
        intercept: bool = False,
    ):
        self.batches, self.features, self.loss, self.intercept = batches, features, loss, intercept
        self.outputs = outputs
        self.sizes: list[int] | None = None
        if outputs is None and batches.rows is not None:
            y = batches.source[1]
            self.outputs = outputs_for(y)
            if is_classes(y):
                self.outputs = int(largest(torch.tensor(self.outputs, device=y.device)))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.batches:
            v, function = self.features(x), self.batches.function
            if callable(self.outputs):
                self.outputs = self.outputs(x)
            elif self.outputs is None:
                if is_classes(y):
                    raise ValueError(f"{function}: classes must be given where y comes in batches of classes, got None")
                self.outputs = outputs_for(y)
            got = [list(part.shape) for part in v]
            if any(len(shape) != 2 or shape[0] != len(y) for shape in got):
                raise ValueError(f"{function}: features must be [{len(y)}, size] to match y, got {_said(got)}")
            sizes = [1] * self.intercept + [size for _, size in got]
            self.sizes = self.sizes or sizes
            if sizes != self.sizes:
                raise ValueError(f"{function}: features must have the sizes {self.sizes} in every batch, got {sizes}")
            wide = [part.detach().double() for part in v]
            ones = [wide[0].new_ones(len(y), 1)] if self.intercept else []
            yield torch.cat([*ones, *wide], 1), targets(function, y.to(wide[0].device), self.loss, self.outputs)

    def like(self, loss: Loss) -> "Samples":
        """The same samples for another loss."""
        return Samples(self.batches, self.features, loss, self.outputs, self.intercept)

    def mapped(self, function: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> "Samples":
        """The same samples with other features, made of these."""
        features = self.features
        return Samples(self.batches, lambda x: function(features(x)), self.loss, self.outputs, self.intercept)

    def kept(self) -> "Samples | list[tuple[Tensor, Tensor]]":
        """For many passes: where the data are in memory, so may be their features; batches are computed each time."""
        return self if self.batches.rows is None else list(self)


def _said(shapes: list[list[int]]) -> str:
    return ", ".join(map(str, shapes[:3])) + (", ..." if len(shapes) > 3 else "")


def _distributed() -> ModuleType | None:
    import torch.distributed as distributed

    return distributed if distributed.is_available() and distributed.is_initialized() else None


def summed(*values: Tensor) -> tuple[Tensor, ...]:
    """The sums of each tensor over all processes."""
    if distributed := _distributed():
        for value in values:
            distributed.all_reduce(value)
    return values


def largest(value: Tensor) -> Tensor:
    """The largest of all processes' values."""
    if distributed := _distributed():
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return value


def from_all_processes(rows: Tensor) -> Iterator[Tensor]:
    """`rows` [r, c] of every process, one after the other, with its own r."""
    distributed = _distributed()
    if distributed is None:
        yield rows
        return
    for source in range(distributed.get_world_size()):
        count = torch.tensor(len(rows), device=rows.device)
        distributed.broadcast(count, source)
        mine = source == distributed.get_rank()
        there = rows.contiguous() if mine else rows.new_empty(int(count), rows.shape[1])
        distributed.broadcast(there, source)
        yield there
