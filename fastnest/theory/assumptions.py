"""Whether the conditions under which arXiv 2111.05496 guarantees something hold, with numbers."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import AResNEst
from .features import linear_maps
from .loss import NAMED
from .model_samples import model_samples
from .moments import moments

NOTHING = 1e-12  # a cross-moment this small, in units of the largest it could be, is rounding


@dataclass(frozen=True)
class Condition:
    """One assumption: whether it holds (None: it does not apply to the model), its margin (0: just not), and why."""

    holds: bool | None
    margin: float
    numbers: dict[str, float]
    says: str

    def __bool__(self) -> bool:
        return bool(self.holds)


@dataclass(frozen=True)
class Assumptions:
    """Assumptions 1, 3 and 4 of arXiv 2111.05496 (2, a loss convex in the outputs, is about the loss alone).

    Attributes:
        first: sum_n v_L y^T is not 0, and sum_n v_L v_L^T has full rank. Margin: the lesser of the cross-moment's norm
            in units of |v_L| |y|, and the least singular value of v_L over its largest.
        third: M >= N_o, width at least outputs. Margin: M - N_o.
        fourth: x_{L-1} = sum_i W_i v_i determines the v_i: [W_0, ..., W_{L-1}] has full column rank. Margin: its least
            singular value over its largest, 1 / its condition number.
    """

    first: Condition
    third: Condition
    fourth: Condition

    @property
    def guaranteed(self) -> bool:
        """Whether Theorem 1 holds for squared and other convex losses: 3 and 4."""
        return bool(self.third) and bool(self.fourth)

    def __str__(self) -> str:
        words = {True: "holds", False: "does not hold", None: "does not apply"}
        parts = (("1", self.first), ("3", self.third), ("4", self.fourth))
        return "\n".join(f"assumption {name} {words[one.holds]}: {one.says}" for name, one in parts)


def _singular(A: Tensor) -> tuple[int, float, float]:
    """Rank of A [r, c], its c-th singular value over its first, and condition number (inf: not of full column rank)."""
    values = torch.linalg.svdvals(A)
    if not len(values) or not values[0] > 0:
        return 0, 0.0, float("inf")
    rank = int((values > max(A.shape) * torch.finfo(A.dtype).eps * values[0]).sum())
    least = float(values[-1] / values[0]) if rank == A.shape[1] else 0.0
    return rank, least, 1 / least if least else float("inf")


def check_assumptions(
    model: torch.nn.Module, x: Tensor | Iterable[Any], y: Tensor | None = None, *, progress: bool | None = None
) -> Assumptions:
    """Whether assumptions 1, 3 and 4 hold for a model and data: see `Assumptions`.

    Args:
        model: whatever `features` takes; run in evaluation. 3 is about models with a stream that ends in a linear map,
            4 about those whose stream is linear in the features: ResNEst, AResNEst, DenseNEst (where it always holds,
            with condition number 1: Proposition 4).
        x, y: inputs and targets [n, o], [n] or classes [n]; or an iterable of batches (x, y), read once.
        progress: a bar on stderr; None: where that is a terminal.
    """
    samples = model_samples("check_assumptions", model, x, y, NAMED["squared"], intercept=False, progress=progress)
    sums = moments(samples)
    maps = linear_maps(model)
    before_last = None if maps is None else maps[: len(sums.features) - 1]
    return Assumptions(
        _first(sums.features[-1], sums.targets), _third(model, sums.targets.shape[1]), _fourth(before_last)
    )


def _first(v: Tensor, y: Tensor) -> Condition:
    rank, least, condition = _singular(v)
    sizes = float(v.norm() * y.norm())
    cross = float((v.T @ y).norm()) / sizes if sizes else 0.0
    holds = cross > NOTHING and rank == v.shape[1]
    numbers = {"cross_moment": cross, "rank": rank, "features": v.shape[1], "condition": condition}
    says = f"v_L and y have a cross-moment of {cross:.2g} of the largest possible"
    says += f", and v_L has rank {rank} of {v.shape[1]} (condition number {condition:.2g})"
    return Condition(holds, min(cross, least), numbers, says)


def _third(model: torch.nn.Module, outputs: int) -> Condition:
    head = None
    if not isinstance(model, AResNEst):  # its heads act on the features
        head = next((getattr(model, name) for name in ("head", "linear", "classifier") if hasattr(model, name)), None)
    if not isinstance(head, torch.nn.Linear):
        return Condition(None, 0.0, {}, "the model has no linear map behind a stream")
    width = head.in_features
    says = f"width {width}, outputs {outputs}"
    return Condition(width >= outputs, width - outputs, {"width": width, "outputs": outputs}, says)


def _fourth(maps: list[Tensor] | None) -> Condition:
    if maps is None:
        return Condition(None, 0.0, {}, "the stream is not linear in the features that are known of this model")
    W = torch.cat([one.double() for one in maps], 1)
    rank, least, condition = _singular(W)
    columns = W.shape[1]
    says = f"[W_0, ..., W_(L-1)] has rank {rank} of {columns} columns, of {W.shape[0]} each"
    says += f" (condition number {condition:.3g})" if least else ""
    numbers = {"rank": rank, "columns": columns, "width": W.shape[0], "condition": condition}
    return Condition(rank == columns, least, numbers, says)
