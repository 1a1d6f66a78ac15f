"""All that squared losses need to know of any number of samples, in a few rows.

The second moments of features and targets side by side, G = sum_n a_n a_n^T with a_n = [v_n, y_n], decide every squared
risk. They are kept as the triangular factor R of the rows, R^T R = G, found batch by batch: R <- qr([R; batch]). R has
at most as many rows as columns, whatever the number of samples, and unlike G itself it does not square the condition
number: ranks are told from rounding at 1e-16 of the largest singular value, not at 1e-8.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .samples import Samples, from_all_processes, summed


@dataclass(frozen=True)
class Moments:
    """`count` samples, in rows with the same second moments.

    Attributes:
        count: samples.
        features: [v_0, ..., v_L], each [r, size_i] (behind a first one of size 1 for an intercept).
        targets: [r, outputs].
    """

    count: int
    features: list[Tensor]
    targets: Tensor

    @property
    def rows(self) -> Tensor:
        """Features side by side, [r, d]."""
        return torch.cat(self.features, 1)

    def risk(self, outputs: Tensor) -> float:
        """Mean square of outputs - targets, for outputs [r, o] that are linear in the features."""
        return float((outputs - self.targets).square().sum()) / self.count


def triangular(blocks: Iterable[Tensor], function: str) -> Tensor:
    """R [min(rows, columns), columns] with R^T R = sum of A^T A over the blocks A, each [n, columns]."""
    held: list[Tensor] = []
    for block in blocks:
        held.append(block)
        # A factorisation costs rows x columns^2, those of R itself too: wait until they are a small part.
        if sum(map(len, held)) >= 4 * block.shape[1] + len(held[0]):
            held = [torch.linalg.qr(torch.cat(held), mode="r").R]
    if not held:
        raise ValueError(f"{function}: x must hold at least one batch in every process, got none")
    R: Tensor = torch.linalg.qr(torch.cat(held), mode="r").R
    return R


def moments(samples: Samples) -> Moments:
    """Of all samples of all processes."""
    count = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal count
        for v, y in samples:
            count += len(y)
            yield torch.cat([v, y], 1)

    name = samples.batches.function
    mine = triangular(blocks(), name)
    (total,) = summed(torch.tensor(count, device=mine.device))
    if not total:
        raise ValueError(f"{name}: x must hold at least one sample, got none")
    outputs = mine.shape[1] - sum(samples.sizes or ())
    factor = triangular(from_all_processes(mine), name)
    if not factor.isfinite().all():
        raise ValueError(f"{name}: features and y must be finite, got NaN or Inf among them")
    columns = factor.split([*(samples.sizes or ()), outputs], 1)
    return Moments(int(total), list(columns[:-1]), columns[-1])
