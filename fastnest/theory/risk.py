"""Empirical risk, the best a ResNEst's last two linear maps can do, and what their coupling costs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models import ResNEst
from ..nn.evaluation import evaluating
from .batches import Batches
from .convex import basis, least_squares
from .features import linear_maps, stream
from .head import solve
from .loss import NAMED, loss_of, targets
from .model_samples import check_prediction_problem, model_samples
from .moments import Moments, moments
from .samples import summed


def empirical_risk(
    model: torch.nn.Module,
    x: Tensor | Iterable[Any],
    y: Tensor | None = None,
    *,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "squared",
    progress: bool | None = None,
) -> float:
    """The mean loss of a model's outputs, (1/n) sum_n loss(model(x_n), y_n): equation 5 of arXiv 2111.05496.

    Args:
        model: any module from x to [n, outputs]; it is run in evaluation, without gradients.
        x: inputs [n, ...], or where y is None an iterable of batches (x, y), read once.
        y: targets [n, o] or [n]; whole numbers [n] are classes.
        loss: "squared" (mean over samples of the squared Euclidean norm; of classes: to vectors of zeros and a one),
            "cross_entropy", or a callable (outputs [n, o] float64, y) that returns a mean over its rows.
        progress: a bar on stderr; None: where that is a terminal.

    Under torch.distributed the mean is over the samples of all processes.
    """
    chosen = loss_of("empirical_risk", loss)
    total = torch.zeros(2, dtype=torch.float64)  # sum of losses, samples
    for rows, wanted in Batches("empirical_risk", x, y, progress):
        with evaluating(model):
            outputs = model(rows).double()
        wanted = targets("empirical_risk", wanted.to(outputs.device), chosen, outputs.shape[1])
        total = total.to(outputs.device)
        if len(outputs):  # the mean of none is no number
            total += torch.stack([chosen.mean(outputs, wanted) * len(outputs), total.new_tensor(len(outputs))])
    summed(total)
    if not total[1]:
        raise ValueError("empirical_risk: x must hold at least one sample, got none")
    return float(total[0] / total[1])


class _Weights(NamedTuple):
    W_L: Tensor
    W_Lp1: Tensor
    risk: float


class OptimalPrediction(_Weights):
    """(W_L [m, k_L], W_Lp1 [o, m], risk), float64.

    Attributes:
        how: "Theorem 1", the theorem's construction, or "reduced-rank regression", where its assumptions do not hold.
            Both are global minimisers up to rounding.
        infimum: of the risk over all W_L, W_{L+1}. It is below the risk by more than rounding only where no minimiser
            exists (the optimal W_{L+1} lacks rank, and reaching it would take W_L without bound).
        attained: whether there is a minimiser.
    """

    how: str
    infimum: float
    attained: bool


@dataclass(frozen=True)
class Prediction:
    """(P_phi) of a ResNEst on some samples: min over W_L, W_{L+1} of the mean |W_{L+1} (x_{L-1} + W_L v_L) - y|^2."""

    sums: Moments
    maps: list[Tensor]  # [W_0, ..., W_{L-1}]
    x: Tensor  # rows of x_{L-1} [r, m]
    v: Tensor  # rows of v_L [r, k]

    @staticmethod
    def of(sums: Moments, resnest: ResNEst) -> "Prediction":
        maps = [W.double() for W in linear_maps(resnest)[:-1]]
        return Prediction(sums, maps, stream(maps, sums.features)[-1], sums.features[len(maps)])

    def outputs(self, W_L: Tensor, W_Lp1: Tensor) -> Tensor:
        return (self.x + self.v @ W_L.T) @ W_Lp1.T

    def risk(self, W_L: Tensor, W_Lp1: Tensor) -> float:
        return self.sums.risk(self.outputs(W_L, W_Lp1))


def prediction(function: str, resnest: torch.nn.Module, x: Any, y: Tensor | None, progress: bool | None) -> Prediction:
    model = check_prediction_problem(function, resnest)
    samples = model_samples(function, resnest, x, y, NAMED["squared"], progress=progress)
    return Prediction.of(moments(samples), model)


def optimal_prediction(
    resnest: torch.nn.Module, x: Tensor | Iterable[Any], y: Tensor | None = None, *, progress: bool | None = None
) -> OptimalPrediction:
    """W_L and W_{L+1} of least squared risk, everything else of the ResNEst as it is: (P_phi) of arXiv 2111.05496.

    Where M >= N_o and [W_0, ..., W_{L-1}] has full column rank (assumptions 3 and 4), by Theorem 1's construction: the
    heads H_i of the augmented problem, `W_{L+1} = [H_0, ..., H_{L-1}] [W_0, ..., W_{L-1}]^+` brought to full row rank
    in the directions that no feature reaches, and W_L = W_{L+1}^+ H_L. Its risk is that of the A-ResNEst.

    Elsewhere too the non-convex problem has a closed form. A W_{L+1} of full row rank turns W_L into a free map of v_L,
    so that the minimum is that of a linear predictor on [x_{L-1}, v_L]; with M < N_o the predictor has rank M at most:
    reduced-rank regression (Izenman 1975), solved by singular values.

    Args:
        resnest: a models.ResNEst without head_norm; run in evaluation, and not changed.
        x, y: inputs [n, N_in] and targets [n, N_o], [n] or classes [n]; or an iterable of batches (x, y), read once.
        progress: a bar on stderr; None: where that is a terminal.

    Returns (W_L, W_Lp1, risk), with `how` and `infimum` beside them.
    """
    problem = prediction("optimal_prediction", resnest, x, y, progress)
    return solve_prediction(problem, augmented_head(problem.sums))


def augmented_head(sums: Moments) -> Tensor:
    """[H_0, ..., H_L] of (PA_phi), [o, d]."""
    return least_squares(sums.rows, sums.targets).T


def solve_prediction(problem: Prediction, H: Tensor) -> OptimalPrediction:
    """The global minimiser, given the augmented head."""
    sums, v, targets = problem.sums, problem.v, problem.sums.targets
    W = torch.cat(problem.maps, 1)
    m, o = len(W), targets.shape[1]
    reach = basis(W)
    if m >= o and len(reach.values) == W.shape[1]:
        on_earlier, on_v, _ = H.split([W.shape[1], v.shape[1], H.shape[1] - W.shape[1] - v.shape[1]], 1)
        on_x = on_earlier @ (reach.vectors / reach.values) @ reach.left.T
        used, left, how = reach.left, torch.eye(o).to(H), "Theorem 1"
    else:
        both = torch.cat([problem.x, v], 1)
        X = least_squares(both, targets)
        # The fitted values' first directions: Eckart-Young, as what cannot be fitted at all is orthogonal to them.
        left = torch.linalg.svd(both @ X, full_matrices=False).Vh[: min(m, o)].T if m < o else torch.eye(o).to(X)
        on_x, on_v = (left.T @ X.T).split([m, v.shape[1]], 1)
        used, how = basis(problem.x).vectors, "reduced-rank regression"
    infimum = sums.risk((problem.x @ on_x.T + v @ on_v.T) @ left.T)
    scale = float(targets.norm() / problem.x.norm()) if problem.x.any() else 0.0
    on_x = _full_rank(on_x, used, scale or 1.0)
    W_L, W_Lp1 = torch.linalg.pinv(on_x) @ on_v, left @ on_x
    found = OptimalPrediction(W_L, W_Lp1, problem.risk(W_L, W_Lp1))
    found.how, found.infimum = how, infimum
    # Of a perfect fit rounding leaves 1e-30 of the targets' square, W_{L+1} at 1e-6 of its size 1e-12.
    nothing = 1e-20 * float(targets.square().sum()) / sums.count
    found.attained = found.risk <= infimum * (1 + 1e-9) + nothing
    return found


def _full_rank(A: Tensor, used: Tensor, scale: float) -> Tensor:
    """A [p, m], p <= m, brought to rank p: in directions orthogonal to `used` [m, r], which change no prediction.

    Where there are too few of them, other directions are taken at 1e-6 of A's size: that costs 1e-12 of the risk's. An
    A that is nothing but rounding beside `scale`, the size at which it yields outputs like the targets, has that size.
    """
    left, values, _ = torch.linalg.svd(A, full_matrices=False)
    size = values[0] if values[0] > 1e-12 * scale else scale
    weak = left[:, values < 1e-6 * size]
    free = torch.linalg.qr(used, mode="complete").Q[:, used.shape[1] :]
    harmless = min(free.shape[1], weak.shape[1])
    A = A + size * weak[:, :harmless] @ free[:, :harmless].T
    rest = weak[:, harmless:]
    if rest.shape[1]:
        A = A + 1e-6 * size * rest @ torch.linalg.svd(A).Vh[A.shape[1] - rest.shape[1] :]
    return A


@dataclass(frozen=True)
class RiskGap:
    """What the coupling of W_L and W_{L+1} costs a ResNEst: gap = risk - augmented_risk, epsilon of equation 8.

    Attributes:
        risk: the least of the ResNEst over W_L and W_{L+1}, (P_phi).
        augmented_risk: the least of the A-ResNEst with the same features over all H_i, (PA_phi): never more.
        gap: never below 0 by more than rounding; 0 to rounding under assumptions 2-4 (Theorem 1).
        how: how the first was found: "Theorem 1" and "reduced-rank regression" as in `OptimalPrediction`, "convex head"
            for other losses than squared.
    """

    risk: float
    augmented_risk: float
    how: str

    @property
    def gap(self) -> float:
        return self.risk - self.augmented_risk


def risk_gap(
    resnest: torch.nn.Module,
    x: Tensor | Iterable[Any],
    y: Tensor | None = None,
    *,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "squared",
    progress: bool | None = None,
) -> RiskGap:
    """epsilon = min (P_phi) - min (PA_phi) for the features that a ResNEst has now: equation 8 of arXiv 2111.05496.

    For other losses than squared the first minimum is the least risk of a linear predictor on [x_{L-1}, v_L] (see
    `optimal_prediction`), a convex problem too; they need M >= N_o (assumption 3). Where no minimiser exists (separable
    classes) the risks are infima.

    Args:
        resnest: a models.ResNEst without head_norm; run in evaluation, and not changed.
        x, y: inputs [n, N_in] and targets [n, N_o], [n] or classes [n]; or an iterable of batches (x, y), which other
            losses than squared read several times.
        loss: as in `linear_head`.
        progress: a bar on stderr; None: where that is a terminal.
    """
    chosen = loss_of("risk_gap", loss)
    model = check_prediction_problem("risk_gap", resnest)
    samples = model_samples("risk_gap", resnest, x, y, chosen, progress=progress)
    if chosen.is_squared:
        sums = moments(samples)
        H = augmented_head(sums)
        best = solve_prediction(Prediction.of(sums, model), H)
        augmented = sums.risk(sums.rows @ H.T)
        return RiskGap(best.risk, augmented, best.how)
    augmented = solve(samples).infimum
    o, m = model.head.weight.shape
    if m < o:
        raise ValueError(
            f"risk_gap: loss {chosen.name} needs resnest of at least as much width as outputs, got {m} and {o}"
        )
    maps = [W.double() for W in linear_maps(model)[:-1]]

    def last(v: Sequence[Tensor]) -> list[Tensor]:
        v = [part.double() for part in v]
        return [stream(maps, v)[-1], v[len(maps)]]

    return RiskGap(solve(samples.mapped(last)).infimum, augmented, "convex head")
