"""Optimal linear predictors of features: the convex problems (PA_phi), (PD_phi) and the best linear predictor."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.arguments import check_flags, check_number
from .batches import Batches
from .convex import Minimum, Risk, minimise, minimise_squared
from .loss import NAMED, loss_of
from .moments import moments
from .samples import Samples


@dataclass(frozen=True)
class Head:
    """The linear predictor sum_i H_i v_i (+ intercept) of least risk, and what certifies that.

    Attributes:
        weight: [H_0, ..., H_L] side by side, [outputs, size_0 + ... + size_L], float64.
        intercept: [outputs], or None where it was not asked for.
        sizes: of the features, [size_0, ..., size_L].
        risk: mean loss of this predictor over the samples, without the ridge.
        infimum: the least mean loss of all linear predictors; `risk` where it is attained, and 0 where classes are
            separable.
        attained: whether there is a minimiser, and it was found: False for cross entropy where some classes can be
            separated (then scaling up a direction of weights lowers the risk for ever), or if the solver did not
            arrive.
        gradient_norm: of mean loss + ridge |weight|^2 at `weight`.
        rank: of the features over the samples; the minimiser is the one of least norm.
        iterations: of the solver.
    """

    weight: Tensor
    intercept: Tensor | None
    sizes: tuple[int, ...]
    risk: float
    infimum: float
    attained: bool
    gradient_norm: float
    rank: int
    iterations: int

    @property
    def weights(self) -> list[Tensor]:
        """[H_0, ..., H_L], each [outputs, size_i]."""
        return list(self.weight.split(self.sizes, 1))

    def __call__(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Predictions [n, outputs] in float64 for features [n, sum of sizes], or a list of [n, size_i]."""
        v = features if isinstance(features, Tensor) else torch.cat(list(features), 1)
        return F.linear(v.double(), self.weight, self.intercept)


def _check_options(function: str, ridge: float, intercept: bool) -> None:
    check_flags(function, intercept=intercept)
    check_number(function, "ridge", ridge)
    if not ridge >= 0:
        raise ValueError(f"{function}: ridge must be at least 0, got {ridge}")


def solve(samples: Samples, *, ridge: float = 0.0) -> Minimum:
    """The minimiser for whatever loss the samples are meant for."""
    if samples.loss.is_squared:
        return minimise_squared(moments(samples), ridge)
    kept = samples.kept()
    return minimise(Risk(kept, moments(samples.like(NAMED["squared"])), samples.loss, ridge))


def _head(samples: Samples, ridge: float) -> Head:
    found = solve(samples, ridge=ridge)
    sizes, weight, intercept = samples.sizes or [], found.weight, None
    if samples.intercept:
        sizes, weight, intercept = sizes[1:], weight[:, 1:], weight[:, 0]
    certificate = found._asdict()
    certificate.pop("weight")
    return Head(weight=weight, intercept=intercept, sizes=tuple(sizes), **certificate)


def linear_head(
    features: Tensor | Sequence[Tensor] | Iterable[Any],
    y: Tensor | None = None,
    *,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "squared",
    ridge: float = 0.0,
    intercept: bool = False,
    classes: int | None = None,
    progress: bool | None = None,
) -> Head:
    """The H_i that minimise (1/n) sum_n loss(sum_i H_i v_i(x_n), y_n) + ridge sum_i |H_i|^2, to optimality.

    For the features of a ResNEst this is (PA_phi), equation 7 of arXiv 2111.05496, for those of a DenseNEst (PD_phi),
    equation 10: convex, for the features are fixed. Squared loss is solved by singular values of a triangular factor of
    the second moments, which is collected in one pass (right for dependent features too: the minimiser of least norm);
    other losses by SciPy's trust region Newton method to a gradient of 1e-8 of that at H = 0, in as many passes as it
    takes.

    Args:
        features: [v_0, ..., v_L], each [n, size_i] (as `theory.features` returns them), or one tensor [n, size]; or
            where y is None an iterable of batches (features, y), which other losses than squared read several times.
        y: targets [n, o] or [n]; whole numbers [n] are classes.
        loss: "squared" (mean over samples of the squared Euclidean norm; of classes: to vectors of zeros and a one),
            "cross_entropy", or a callable (outputs [n, o] float64, y) that is convex and twice differentiable (by
            autograd) in outputs and returns a mean over its rows; it gets classes as they are, and other y as
            float64 [n, o].
        ridge: weight of the squared norm, at least 0; the intercept counts in it.
        intercept: whether the predictor has one.
        classes: their number, where y holds classes; default: the largest + 1. Batches of classes need it.
        progress: a bar on stderr; None: where that is a terminal.

    Under torch.distributed the samples are those of all processes of the default group, and all get the same head; each
    has to have a batch (which may be empty), or the others wait for it.

    Raises ValueError or TypeError for arguments that do not fit, and for features or y with NaN or Inf.
    """
    _check_options("linear_head", ridge, intercept)
    batches = Batches("linear_head", features, y, progress)
    return _head(Samples(batches, _as_list, loss_of("linear_head", loss), classes, intercept), ridge)


def _as_list(features: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features)


def best_linear_predictor(
    x: Tensor | Iterable[Any],
    y: Tensor | None = None,
    *,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "squared",
    ridge: float = 0.0,
    intercept: bool = False,
    classes: int | None = None,
    progress: bool | None = None,
) -> Head:
    """The best linear predictor of y from x itself, which Corollary 2 and Proposition 3 compare a network with.

    Args: as `linear_head`, with inputs x [n, ...] (images are flattened) in place of features.
    """
    _check_options("best_linear_predictor", ridge, intercept)
    batches = Batches("best_linear_predictor", x, y, progress)
    chosen = loss_of("best_linear_predictor", loss)
    return _head(Samples(batches, _flat_rows, chosen, classes, intercept), ridge)


def _flat_rows(x: Tensor) -> list[Tensor]:
    if not isinstance(x, Tensor):
        raise TypeError(f"best_linear_predictor: x must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() < 2:
        raise ValueError(f"best_linear_predictor: x must be [n, ...], got x {list(x.shape)}")
    return [x.flatten(1)]
