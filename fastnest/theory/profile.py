"""What every block adds: the best heads up to it, and how much of it is new."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..models import DenseNEst
from ..models.densenet import DenseNet
from .batches import Batches
from .convex import Minimum, Risk, column_span, minimise
from .features import features as features_of
from .features import linear_maps, record, stream
from .loss import NAMED, loss_of
from .model_samples import model_samples
from .moments import Moments, moments
from .samples import Samples

SLACK = 1e-9  # relative: risks that are equal but for rounding


def additions(features: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each v_i [r, k]: what no linear map of those before it yields [r, k], and an orthonormal basis of it.

    Block Gram-Schmidt; projecting twice is enough for orthogonality to rounding (Giraud et al. 2005).
    """
    span = features[0].new_zeros(len(features[0]), 0)
    for v in features:
        rest = v - span @ (span.T @ v)
        rest = rest - span @ (span.T @ rest)
        left, values, _ = torch.linalg.svd(rest, full_matrices=False)
        rounding = max(len(span), span.shape[1] + v.shape[1]) * torch.finfo(v.dtype).eps * float(v.norm())
        new = left[:, values > rounding]
        new = torch.linalg.qr(new - span @ (span.T @ new)).Q
        yield rest, new
        span = torch.cat([span, new], 1)


def _unpredictability(features: Sequence[Tensor]) -> list[float]:
    """For [1, v_0, ..., v_L]; 0 for features that do not vary."""
    (_, one), *others = additions(features)
    shares = []
    for v, (rest, new) in zip(features[1:], others, strict=True):
        varying = (v - one @ (one.T @ v)).square().sum()
        shares.append(float(rest.square().sum() / varying) if new.shape[1] else 0.0)
    return shares


def linear_unpredictability(features: Sequence[Tensor] | Iterable[Any], *, progress: bool | None = None) -> Tensor:
    """The share of the variance of each v_i that no affine map of v_0, ..., v_{i-1} predicts.

    Features that earlier ones predict linearly add nothing to a ResNEst's output, which is linear in all of them: the
    "diminishing feature reuse" of arXiv 2111.05496, section 1.4, question 1. 1: nothing can be predicted; 0: all of it,
    or v_i does not vary.

    Args:
        features: [v_0, ..., v_L], each [n, size_i]; or an iterable of batches of such lists, read once.
        progress: a bar on stderr; None: where that is a terminal.

    Returns shares [L + 1] in [0, 1], float64; the first is 1.
    """
    name = "linear_unpredictability"
    if _are_features(features):
        batches = Batches(name, features, _no_targets(features), progress)
    elif isinstance(features, Iterable):
        batches = Batches(name, map(_with_no_targets, features), None, progress)
    else:
        raise TypeError(f"{name}: features must be a list of tensors or batches of them, got {type(features).__name__}")
    sums = moments(Samples(batches, list, NAMED["squared"], 0, intercept=True))
    return torch.tensor(_unpredictability(sums.features), dtype=torch.float64)


def _are_features(v: Any) -> TypeGuard[Sequence[Tensor]]:
    return isinstance(v, Sequence) and len(v) > 0 and all(isinstance(one, Tensor) and one.dim() > 0 for one in v)


def _no_targets(v: Sequence[Tensor]) -> Tensor:
    return v[0].new_zeros(len(v[0]), 0, dtype=torch.float64)


def _with_no_targets(v: Any) -> tuple[Sequence[Tensor], Tensor]:
    if not _are_features(v):
        raise TypeError(f"linear_unpredictability: every batch must be a list of tensors, got {type(v).__name__}")
    return v, _no_targets(v)


@dataclass(frozen=True)
class BlockProfile:
    """Risks up to each block i = 0, ..., L; entry 0 is before the first block.

    Attributes:
        loss: its name.
        sizes: of the features v_i.
        head_risk: of the best linear predictor from v_0, ..., v_i: never rises with i.
        stream_risk: of the best linear predictor from x_i (Remark 2); an A-ResNEst has one entry less, for its last
            block does not add to the stream.
        unpredictability: see `linear_unpredictability`.
    """

    loss: str
    sizes: list[int]
    head_risk: list[float]
    stream_risk: list[float]
    unpredictability: list[float]

    @staticmethod
    def _falls(risks: list[float]) -> bool:
        return all(after <= before + SLACK * risks[0] for before, after in pairwise(risks))

    @property
    def head_is_monotone(self) -> bool:
        return self._falls(self.head_risk)

    @property
    def stream_is_monotone(self) -> bool:
        return self._falls(self.stream_risk)

    def __str__(self) -> str:
        lines = [f"{'block':>5} {'features':>8} {'risk of head':>13} {'from x_i':>13} {'not linear':>10}"]
        for i, (size, head, new) in enumerate(zip(self.sizes, self.head_risk, self.unpredictability, strict=True)):
            from_x = f"{self.stream_risk[i]:13.6g}" if i < len(self.stream_risk) else f"{'-':>13}"
            lines.append(f"{i:5} {size:8} {head:13.6g} {from_x} {new:10.2%}")
        return "\n".join(lines)


def block_profile(
    model: torch.nn.Module,
    x: Tensor | Iterable[Any],
    y: Tensor | None = None,
    *,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "squared",
    intercept: bool | None = None,
    progress: bool | None = None,
) -> BlockProfile:
    """The risk of the best head on v_0, ..., v_i and of the best linear predictor from x_i, for every i.

    The first never rises with i: a head can leave the new features out (Proposition 2 and Corollary 1 of arXiv
    2111.05496). By Remark 2 neither does the second where the assumptions hold; a narrow ResNEst can lose what it had.

    Args:
        model: whatever `features` takes; run in evaluation. Images count by their averages over space, also in x_i.
        x, y: inputs and targets [n, o], [n] or classes [n]; or an iterable of batches (x, y), which other losses than
            squared read several times.
        loss: as in `linear_head`. Where no minimiser exists (separable classes) the risks are infima.
        intercept: whether the predictors have one; None: as the head of the model.
        progress: a bar on stderr; None: where that is a terminal.
    """
    chosen = loss_of("block_profile", loss)
    maps = linear_maps(model)
    grows = isinstance(model, (DenseNEst, DenseNet))  # x_i is [v_0, ..., v_i] itself
    recorded = maps is None and not grows
    counts = set()  # of features, before the stream behind them: an A-ResNEst's is shorter

    def features_and_stream(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
        found = record(model, x)
        counts.add(len(found.features))
        return [*found.features, *found.stream]

    features = features_and_stream if recorded else features_of
    samples = model_samples(
        "block_profile", model, x, y, chosen, intercept=intercept, progress=progress, features=features
    )
    wanted, samples.intercept = samples.intercept, True  # the first feature, 1, centres those behind it
    predictor = _Squared(samples) if chosen.is_squared else _Convex(samples)
    one, *v = predictor.sums.features
    count = max(counts) if recorded else len(v)
    v = v[:count]
    begin = 0 if wanted else 1

    def prefix(i: int) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
        return lambda parts: parts[begin : i + 2]

    def from_x(i: int) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
        def pick(parts: Sequence[Tensor]) -> Sequence[Tensor]:
            if maps is None:
                return [*parts[begin:1], parts[1 + count + i]]
            return [*parts[begin:1], stream([W.double() for W in maps[: i + 1]], parts[1:])[-1]]

        return pick

    head_risk = predictor.nested([prefix(i) for i in range(count)])
    points = len(predictor.sums.features) - 1 - count if recorded else len(maps or [])
    stream_risk = head_risk if grows else [predictor.risk(from_x(i)) for i in range(points)]
    return BlockProfile(
        chosen.name, [part.shape[1] for part in v], head_risk, stream_risk, _unpredictability([one, *v])
    )


Pick = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # from [1, v_0, ..., v_L] what a predictor gets


class _Squared:
    """Least squared risks of linear predictors from parts of the features."""

    def __init__(self, samples: Samples):
        self.sums = moments(samples)

    def risk(self, pick: Pick) -> float:
        span = column_span(torch.cat(list(pick(self.sums.features)), 1))
        return self.sums.risk(span @ (span.T @ self.sums.targets))

    def nested(self, picks: Sequence[Pick]) -> list[float]:
        """Of predictors that each get what the one before got, and more: by projections that only ever add up."""
        risks, parts, rest, begin = [], [], self.sums.targets, 0
        for pick in picks:
            picked = pick(self.sums.features)
            parts.append(torch.cat(list(picked[begin:]), 1))
            begin = len(picked)
        for _, new in additions(parts):
            rest = rest - new @ (new.T @ rest)
            risks.append(float(rest.square().sum()) / self.sums.count)
        return risks


class _Convex:
    """The same for other losses, by the solver."""

    def __init__(self, samples: Samples):
        self.loss = samples.loss
        self.kept = samples.kept()
        self.sums = moments(samples.like(NAMED["squared"]))

    def _solve(self, pick: Pick, start: Tensor | None = None) -> Minimum:
        sizes = [part.shape[1] for part in self.sums.features]
        picked = Moments(self.sums.count, list(pick(self.sums.features)), self.sums.targets)
        return minimise(Risk(_Picked(self.kept, sizes, pick), picked, self.loss, 0.0), start)

    def risk(self, pick: Pick) -> float:
        return self._solve(pick).infimum

    def nested(self, picks: Sequence[Pick]) -> list[float]:
        """Each solution is where the next begins, which can only go down from there."""
        risks, start = [], None
        for pick in picks:
            if start is not None:
                more = sum(part.shape[1] for part in pick(self.sums.features)) - start.shape[1]
                start = torch.cat([start, start.new_zeros(len(start), more)], 1)
            found = self._solve(pick, start)
            start = found.weight
            risks.append(found.infimum)
        return risks


class _Picked:
    """Samples whose features are parts of those of other samples."""

    def __init__(self, samples: Iterable[tuple[Tensor, Tensor]], sizes: list[int], pick: Pick):
        self.samples, self.sizes, self.pick = samples, sizes, pick

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((torch.cat(list(self.pick(v.split(self.sizes, 1))), 1), y) for v, y in self.samples)
