"""Critical points of (P_phi), the squared risk over W_L and W_{L+1} of a ResNEst with all other weights fixed.

With X the rows of x_{L-1}, V those of v_L and Y the targets, f(W_L, W_{L+1}) = |(X + V W_L^T) W_{L+1}^T - Y|^2 / n.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._optional import optional
from .convex import least_squares
from .features import linear_maps
from .model_samples import check_prediction_problem
from .risk import Prediction, augmented_head, prediction, solve_prediction

LANCZOS = 1e-6  # to which the least eigenvalue is found, of the largest magnitude among them
VECTORS = 64  # of Lanczos, before it restarts; of 20 it failed where the least eigenvalue is one of many near 0
RESTARTS = 60  # at most; the direction that the theory knows of is looked at in any case
ROUNDING = 1e-12  # relative, of curvatures and risks: what exceeds it is no rounding
DENSE = 512  # weights up to which the Hessian is made, column by column, and its eigenvalues are found directly

Point = tuple[Tensor, Tensor]  # W_L [m, k], W_{L+1} [o, m], or a direction in that space


class Derivatives(NamedTuple):
    """Of f at one point."""

    problem: Prediction
    point: Point

    @property
    def risk(self) -> float:
        return self.problem.risk(*self.point)

    def _stream(self) -> Tensor:
        return self.problem.x + self.problem.v @ self.point[0].T

    def gradient(self) -> Point:
        W_Lp1 = self.point[1]
        error = 2 / self.problem.sums.count * (self._stream() @ W_Lp1.T - self.problem.sums.targets)
        return (error @ W_Lp1).T @ self.problem.v, error.T @ self._stream()

    def gradient_scale(self) -> float:
        """The gradient's norm if outputs and targets did not cancel."""
        stream, W_Lp1 = self._stream(), self.point[1]
        size = 2 / self.problem.sums.count * float((stream @ W_Lp1.T).norm() + self.problem.sums.targets.norm())
        return size * float(torch.linalg.matrix_norm(W_Lp1, 2) * self.problem.v.norm() + stream.norm())

    def curvature(self, direction: Point) -> Point:
        """The Hessian times a direction, exactly; nothing larger than the rows is made."""
        (_, W_Lp1), (d_L, d_Lp1) = self.point, direction
        v, stream, scale = self.problem.v, self._stream(), 2 / self.problem.sums.count
        error = stream @ W_Lp1.T - self.problem.sums.targets
        moved = v @ d_L.T  # of the stream
        change = moved @ W_Lp1.T + stream @ d_Lp1.T  # of the outputs
        along_L = (change @ W_Lp1 + error @ d_Lp1).T @ v
        along_Lp1 = change.T @ stream + error.T @ moved
        return scale * along_L, scale * along_Lp1

    def moved(self, direction: Point, step: float) -> "Derivatives":
        (W_L, W_Lp1), (d_L, d_Lp1) = self.point, direction
        return Derivatives(self.problem, (W_L + step * d_L, W_Lp1 + step * d_Lp1))


def _norm(direction: Point) -> float:
    norm: float = float(sum(d.square().sum() for d in direction)) ** 0.5
    return norm


def _falling(at: Derivatives) -> Point:
    """Theorem 2's direction: at a critical point whose W_{L+1} lacks rank, curvature is negative along it unless the
    point is a global minimiser.

    With z W_{L+1} = 0 from the left and W_{L+1} b = 0 from the right, moving W_L by b c^T changes no output, and
    W_{L+1} by -s a b^T then lowers the risk by 2 s a^T C c |b|^2 - O(s^2), C = the error's cross-moment with v_L. The
    O(s^2) is what b takes from the stream: of all such b the one that takes least.
    """
    W_L, W_Lp1 = at.point
    error = at.problem.outputs(W_L, W_Lp1) - at.problem.sums.targets
    left, _, right = torch.linalg.svd(error.T @ at.problem.v, full_matrices=False)
    _, values, directions = torch.linalg.svd(W_Lp1)
    rank = int((values > 1e-6 * values[0]).sum())
    silent = directions[min(rank, len(directions) - 1) :].T
    taken = at._stream() @ silent
    b = silent @ torch.linalg.eigh(taken.T @ taken).eigenvectors[:, 0]
    d_L, d_Lp1 = torch.outer(b, right[0]), -torch.outer(left[:, 0], b)
    # Curvature is a quadratic form in the two's shares, with nothing from d_L alone: its least eigenvector (1, s).
    along = at.curvature((0 * d_L, d_Lp1))
    across, alone = float((d_L * along[0]).sum()), float((d_Lp1 * along[1]).sum())
    s = -2 * across / (alone + math.hypot(alone, 2 * across)) if across else 0.0
    direction = (d_L, s * d_Lp1)
    size = _norm(direction)
    return direction[0] / size, direction[1] / size


def least_curvature(at: Derivatives) -> tuple[float, Point, float]:
    """The Hessian's least eigenvalue and its direction, and the largest in magnitude: by Lanczos (ARPACK), where there
    are more than `DENSE` weights, without making the Hessian."""
    linalg, numpy = optional("scipy.sparse.linalg", "theory"), optional("numpy", "theory")
    shapes, sizes = [w.shape for w in at.point], [w.numel() for w in at.point]

    def unpacked(flat: Any) -> Point:
        parts = torch.from_numpy(numpy.ascontiguousarray(flat)).to(at.point[0]).reshape(-1).split(sizes)
        W_L, W_Lp1 = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return W_L, W_Lp1

    def packed(direction: Point) -> Any:
        return torch.cat([d.reshape(-1) for d in direction]).cpu().numpy()

    def operator(product: Callable[[Any], Any]) -> Any:
        return linalg.LinearOperator((sum(sizes), sum(sizes)), matvec=product, dtype=numpy.float64)

    def curvature(d: Any) -> Any:
        return packed(at.curvature(unpacked(d)))

    if sum(sizes) <= DENSE:
        values, vectors = numpy.linalg.eigh(numpy.stack([curvature(one) for one in numpy.eye(sum(sizes))]))
        return float(values[0]), unpacked(vectors[:, 0]), float(abs(values).max())
    # A start with a share of everything, and much of the direction in which the theory finds negative curvature.
    noise, falling = numpy.random.default_rng(0).standard_normal(sum(sizes)), _falling(at)
    start = packed(falling) + 0.1 * noise / numpy.linalg.norm(noise)
    if not curvature(start).any():  # no curvature at all, which ARPACK takes for a missing start
        return 0.0, unpacked(start / numpy.linalg.norm(start)), 0.0
    most = float(linalg.eigsh(operator(curvature), k=1, which="LM", v0=start, tol=1e-4, return_eigenvectors=False)[0])
    # As the largest eigenvalue of |most| - H: near 0, where the least ones of a minimiser lie in great number, Lanczos
    # would look for digits that rounding does not leave.
    top, options = abs(most), {"k": 1, "which": "LA", "v0": start, "tol": LANCZOS, "ncv": VECTORS}
    try:
        found = linalg.eigsh(operator(lambda d: top * d - curvature(d)), maxiter=RESTARTS, **options)[1]
    except linalg.ArpackNoConvergence:
        found = start[:, None] / numpy.linalg.norm(start)
    # The curvature along any direction bounds the least eigenvalue from above, whatever Lanczos left undone.
    directions = [unpacked(found[:, 0]), falling]
    least, direction = min(((_along(at, d), d) for d in directions), key=lambda one: one[0])
    return least, direction, top


def _along(at: Derivatives, direction: Point) -> float:
    """The curvature along a direction of norm 1."""
    return float(sum((d * c).sum() for d, c in zip(direction, at.curvature(direction), strict=True)))


@dataclass(frozen=True)
class CriticalPoint:
    """Where W_L and W_{L+1} of a ResNEst stand in the landscape of (P_phi).

    Attributes:
        verdict: "not critical"; "global minimiser" of (P_phi); "strict saddle", with a direction along which the risk
            falls; "degenerate": critical and above the minimum, without curvature below 0 that stands out of rounding;
            or "undecided": the last two, where the Hessian was left out.
        risk: here.
        least_risk: of the global minimiser.
        gradient_norm: of the risk with respect to (W_L, W_{L+1}), float64.
        gradient_scale: what the norm would be if outputs and targets did not cancel; critical means a norm below
            `tolerance` of this.
        rank: of W_{L+1}, of at most min(M, N_o); singular values below `tolerance` of the largest count as 0.
        full_rank: whether it is N_o; then a critical point is a global minimiser (Theorem 1).
        least_eigenvalue: of the Hessian: the curvature along `direction`, which bounds it from above; with more than
            512 weights to 1e-6 of the largest, or as near as 60 restarts of Lanczos came.
        largest_eigenvalue: of the Hessian, in magnitude, to a few digits.
        direction: the least eigenvalue's, (W_L [m, k], W_{L+1} [o, m]) of norm 1 together.
        escaped_risk: the least risk found by stepping along the direction, either way; below `risk` at a strict saddle.
        step: the step to it, in units of the direction, with its sign; 0 if none lowers the risk.
        tolerance: as given.

    What comes from the Hessian (least_eigenvalue to step) is None where it was left out.
    """

    verdict: str
    risk: float
    least_risk: float
    gradient_norm: float
    gradient_scale: float
    rank: int
    full_rank: bool
    least_eigenvalue: float | None
    largest_eigenvalue: float | None
    direction: Point | None
    escaped_risk: float | None
    step: float | None
    tolerance: float


def critical_point(
    resnest: torch.nn.Module,
    x: Tensor | Iterable[Any],
    y: Tensor | None = None,
    *,
    tolerance: float = 1e-6,
    hessian: bool = True,
    progress: bool | None = None,
) -> CriticalPoint:
    """Whether (W_L, W_{L+1}) is a critical point of the squared risk, and of which kind (arXiv 2111.05496).

    By Proposition 1 every critical point is a local minimiser or a saddle; one with W_{L+1} of full row rank is a
    global minimiser (Theorem 1), and one without is that, or a strict saddle (Theorem 2, under assumptions 3 and 4).

    The Hessian acts as an operator on the rows of the second moments; with more than 512 weights in W_L and W_{L+1} it
    is not made, and its least eigenvalue comes from Lanczos (ARPACK).

    Args:
        resnest: a models.ResNEst without head_norm; run in evaluation, and not changed.
        x, y: inputs [n, N_in] and targets [n, N_o], [n] or classes [n]; or an iterable of batches (x, y), read once.
        tolerance: how small a gradient counts as none, relative to `CriticalPoint.gradient_scale`; also of singular
            values of W_{L+1}, relative to the largest, and of what a risk may lie above the least one, relative to that
            of y = 0.
        hessian: False leaves it out: what is left takes no longer than `optimal_prediction`.
        progress: a bar on stderr; None: where that is a terminal.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"critical_point: tolerance must lie between 0 and 1, got {tolerance}")
    model = check_prediction_problem("critical_point", resnest)
    problem = prediction("critical_point", model, x, y, progress)
    W_L, W_Lp1 = linear_maps(model)[-1].double(), model.head.weight.detach().double()
    at = Derivatives(problem, (W_L, W_Lp1))
    norm, scale, risk = _norm(at.gradient()), at.gradient_scale(), at.risk
    values = torch.linalg.svdvals(W_Lp1)
    rank = int((values > tolerance * values[0]).sum())
    least_risk = solve_prediction(problem, augmented_head(problem.sums)).infimum
    least = direction = most = step = escaped = None
    if hessian:
        least, direction, most = least_curvature(at)
        step, escaped = _best_step(at, direction)
    near = tolerance * problem.sums.risk(torch.zeros_like(problem.sums.targets))
    if norm > tolerance * scale:
        verdict = "not critical"
    elif risk <= least_risk + near:
        verdict = "global minimiser"
    elif least is None or most is None or escaped is None:
        verdict = "undecided"
    elif least < -ROUNDING * most and escaped < risk:
        verdict = "strict saddle"
    else:
        verdict = "degenerate"
    return CriticalPoint(
        verdict,
        risk,
        least_risk,
        norm,
        scale,
        rank,
        rank == len(W_Lp1),
        least,
        most,
        direction,
        escaped,
        step,
        tolerance,
    )


def _best_step(at: Derivatives, direction: Point) -> tuple[float, float]:
    """The step along the direction, either way, that lowers the risk most, and the risk there."""
    size = max(_norm(at.point), 1.0)
    steps = [0.0, *(sign * size * 2.0**-power for power in range(24) for sign in (1, -1))]
    return min(((step, at.moved(direction, step).risk) for step in steps), key=lambda found: found[1])


@dataclass(frozen=True)
class Convexity:
    """Two points of (P_phi) and the one half way, where a convex risk is at most the mean of theirs.

    Attributes:
        convex: False where `midpoint_risk` is above that mean by more than rounding: a proof that the risk is not
            convex. None where these points prove nothing.
        first, second: (W_L [m, k], W_{L+1} [o, m]) each.
        first_risk, second_risk, midpoint_risk: there.
        excess: midpoint_risk - (first_risk + second_risk) / 2.
    """

    convex: bool | None
    first: Point
    second: Point
    first_risk: float
    second_risk: float
    midpoint_risk: float

    @property
    def excess(self) -> float:
        return self.midpoint_risk - (self.first_risk + self.second_risk) / 2


def check_convexity(
    resnest: torch.nn.Module, x: Tensor | Iterable[Any], y: Tensor | None = None, *, progress: bool | None = None
) -> Convexity:
    """Shows that (P_phi) is not convex by two points: Proposition 1 (a) of arXiv 2111.05496.

    The points are (t A, s U) and (-t A, -s U) with U of full row rank, s t U A = T the best linear map from v_L to y
    and s small. Half way both weights are 0 and the risk is that of y = 0; at the points W_{L+1} x_{L-1} all but
    vanishes and the risk is that of y = T v_L, less wherever v_L and y have a cross-moment: assumption 1. Without one,
    T is 0 and nothing is shown.

    Args: as `critical_point`.
    """
    problem = prediction("check_convexity", resnest, x, y, progress)
    T = least_squares(problem.v, problem.sums.targets).T
    left, values, right = torch.linalg.svd(T, full_matrices=False)
    m, (o, k) = problem.x.shape[1], T.shape
    rank = min(m, len(values))
    U, A = T.new_zeros(o, m), T.new_zeros(m, k)
    U[:, :rank], A[:rank] = left[:, :rank], values[:rank, None] * right[:rank]
    # s balances what the map of x_{L-1} costs, s^2 |U x|^2, against what T gains.
    nothing = problem.sums.risk(torch.zeros_like(problem.sums.targets))
    gain = nothing - problem.sums.risk(problem.v @ (U @ A).T)
    cost = problem.sums.risk(problem.x @ U.T + problem.sums.targets)
    s = min(1.0, (0.1 * max(gain, 0.0) / cost) ** 0.5) if cost > 0 else 1.0
    s = s if s > 0 else 1.0
    first, second = (A / s, s * U), (-A / s, -s * U)
    first_risk, second_risk = problem.risk(*first), problem.risk(*second)
    convex = None if nothing - (first_risk + second_risk) / 2 <= ROUNDING * nothing else False
    return Convexity(convex, first, second, first_risk, second_risk, nothing)
