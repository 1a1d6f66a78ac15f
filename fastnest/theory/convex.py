"""Minimisers of convex risks of linear predictors: least squares by factorisation, other losses by SciPy's solvers."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._optional import optional
from .loss import Loss
from .moments import Moments
from .samples import largest, summed


class Minimum(NamedTuple):
    """A predictor's weight [o, d] and the certificate of its being a minimiser."""

    weight: Tensor
    risk: float
    gradient_norm: float
    rank: int
    iterations: int
    attained: bool
    infimum: float


class Basis(NamedTuple):
    """Singular values [k] of rows [r, d], their left [r, k] and right vectors [d, k], without rounding."""

    left: Tensor
    values: Tensor
    vectors: Tensor


def basis(rows: Tensor) -> Basis:
    """The singular value decomposition of rows [r, d] without what rounding makes of zero."""
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    tolerance = max(rows.shape) * torch.finfo(rows.dtype).eps
    rank = int((values > tolerance * values[:1]).sum())
    return Basis(left[:, :rank], values[:rank], right[:rank].T)


def column_span(rows: Tensor) -> Tensor:
    """An orthonormal basis [r, k] of the columns of rows [r, d], without rounding: by QR with column pivoting, several
    times as fast as singular values."""
    Q, R, _ = optional("scipy.linalg", "theory").qr(rows.cpu().numpy(), mode="economic", pivoting=True)
    Q, size = torch.from_numpy(Q).to(rows), torch.from_numpy(R).diagonal().abs()
    return Q[:, : int((size > max(rows.shape) * torch.finfo(rows.dtype).eps * size[:1]).sum())]


def least_squares(rows: Tensor, targets: Tensor) -> Tensor:
    """The X [d, o] of least norm that minimises |rows X - targets|^2."""
    return _shrunk(basis(rows), targets, 0.0)


def _shrunk(rows: Basis, targets: Tensor, shrink: float) -> Tensor:
    """The same of |rows X - targets|^2 + shrink |X|^2."""
    left, values, vectors = rows
    return vectors @ ((values / (values.square() + shrink))[:, None] * (left.T @ targets))


def minimise_squared(sums: Moments, ridge: float) -> Minimum:
    """By singular values; the minimiser of least norm."""
    rows = sums.rows
    found = basis(rows)
    weight = _shrunk(found, sums.targets, ridge * sums.count).T
    outputs = rows @ weight.T
    gradient = 2 / sums.count * (outputs - sums.targets).T @ rows + 2 * ridge * weight
    risk = sums.risk(outputs)
    return Minimum(weight, risk, float(gradient.norm()), len(found.values), 1, True, risk)


class Risk:
    """Mean loss + ridge |H|^2 of H = W T^T with W [o, k] in coordinates whose features T^T v have second moment 1.

    T [d, k] spans the features' span, so H is the minimiser of least norm, and how features are scaled or depend on
    each other does not slow the solver.
    """

    def __init__(self, samples: Iterable[tuple[Tensor, Tensor]], sums: Moments, loss: Loss, ridge: float):
        _, values, vectors = basis(sums.rows)
        self.transform: Tensor = vectors * (sums.count**0.5 / values)
        self.samples, self.count, self.loss, self.ridge = samples, sums.count, loss, ridge
        self.outputs = sums.targets.shape[1]

    def weight(self, w: Tensor) -> Tensor:
        """H [o, d]."""
        return w @ self.transform.T

    def _sums(
        self, w: Tensor, per_batch: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]], like: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Means of what per_batch makes of the features as they are, a batch's outputs and its targets."""
        totals, h = like, self.weight(w)
        for v, y in self.samples:
            if not len(y):  # its mean is no number
                continue
            for total, value in zip(totals, per_batch(v, v @ h.T, y), strict=True):
                total += value * (len(y) / self.count)
        return summed(*totals)

    def with_gradient(self, w: Tensor) -> tuple[float, Tensor, float]:
        """Risk, gradient [o, k], and the least margin by which a sample's class beats the others (inf: no classes)."""
        margin = torch.full((), torch.inf, dtype=w.dtype, device=w.device)

        def of(v: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                value = self.loss.mean(z.requires_grad_(), y)
            (dz,) = torch.autograd.grad(value, z)
            if y.dim() == 1:
                margin.copy_(torch.minimum(margin, _margins(z.detach(), y).min()))
            return value.detach(), dz.T @ v

        h = self.weight(w)
        risk, gradient = self._sums(w, of, [w.new_zeros(()), torch.zeros_like(h)])
        penalty = self.ridge * float(h.square().sum())
        return float(risk) + penalty, (gradient + 2 * self.ridge * h) @ self.transform, -float(largest(-margin))

    def curvature(self, w: Tensor, direction: Tensor) -> Tensor:
        """The second derivative at w along a direction [o, k]."""

        along = self.weight(direction)

        def of(v: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor]:
            with torch.enable_grad():
                (dz,) = torch.autograd.grad(self.loss.mean(z.requires_grad_(), y), z, create_graph=True)
                if not dz.requires_grad:  # linear pieces
                    return (torch.zeros_like(along),)
                (moved,) = torch.autograd.grad(dz, z, v @ along.T)
            return (moved.T @ v,)

        (total,) = self._sums(w, of, [torch.zeros_like(along)])
        return (total + 2 * self.ridge * along) @ self.transform


def _margins(z: Tensor, y: Tensor) -> Tensor:
    own = z.gather(1, y[:, None])
    others = z.masked_fill(F.one_hot(y, z.shape[1]).bool(), -torch.inf)
    margins: Tensor = own[:, 0] - others.max(1).values
    return margins


class _Separated(Exception):
    """Every sample's class is ahead: along this weight the risk falls to 0 and never gets there."""

    def __init__(self, w: Tensor):
        self.w = w


TOLERANCE = 1e-8  # of the gradient's norm at the minimiser, in units of that at weight 0
RUNS_AWAY = 1e-2  # a Newton step this long, in units of 1 + |W|, where the gradient is within TOLERANCE
# Curvature that is taken for none, in units of the gradient at weight 0. Where a loss is flat (cross entropy: the same
# weight for all classes) rounding leaves a gradient of 1e-16, and on the way to infinity both are at 1e-9.
FLAT = 1e-11
ITERATIONS = 200


def minimise(risk: Risk, start: Tensor | None = None) -> Minimum:
    """By SciPy's trust region Newton method with conjugate gradients, from the weight `start` [o, d] or from 0.

    Without a minimiser the gradient vanishes on the way to infinity. That is told apart by a sample-wise proof (a
    weight that separates all classes), and where only some can be separated by Newton's step, which does not shrink
    there.
    """
    shape = risk.outputs, risk.transform.shape[1]
    like = risk.transform

    def matrix(w: Any) -> Tensor:
        return torch.from_numpy(w).to(like).view(shape)

    def vector(w: Tensor) -> Any:
        return w.reshape(-1).cpu().numpy()

    separable = risk.loss.name == "cross_entropy" and risk.ridge == 0

    evaluations = 0

    def value(w: Any) -> tuple[float, Any]:
        nonlocal evaluations
        evaluations += 1
        found, gradient, margin = risk.with_gradient(matrix(w))
        if separable and 0 < margin < float("inf"):
            raise _Separated(matrix(w))
        return found, vector(gradient)

    def curvature(w: Any, direction: Any) -> Any:
        return vector(risk.curvature(matrix(w), matrix(direction)))

    begin = like.new_zeros(shape)
    scale = float(risk.with_gradient(begin)[1].norm())
    if not scale:  # features that are all 0, or a single class
        return _minimum(risk, begin, 0, attained=True)
    if start is not None:
        begin = start @ torch.linalg.pinv(risk.transform.T)
    options = {"gtol": TOLERANCE * scale, "maxiter": ITERATIONS}
    solver = optional("scipy.optimize", "theory").minimize
    try:
        found = solver(value, vector(begin), jac=True, hessp=curvature, method="trust-ncg", options=options)
        w, iterations = matrix(found.x), found.nit
    except _Separated as proof:
        return _minimum(risk, proof.w, evaluations, attained=False, infimum=0.0)
    gradient = risk.with_gradient(w)[1]
    converged = float(gradient.norm()) <= 10 * TOLERANCE * scale
    arrived = risk.ridge > 0 or newton_step(risk, w, gradient, FLAT * scale) <= RUNS_AWAY * (1 + float(w.norm()))
    attained = converged and arrived
    return _minimum(risk, w, iterations, attained)


def newton_step(risk: Risk, w: Tensor, gradient: Tensor, damping: float) -> float:
    """Length of Newton's step at w, with `damping` added to every curvature."""
    linalg = optional("scipy.sparse.linalg", "theory")

    def product(flat: Any) -> Any:
        direction = torch.from_numpy(flat).to(w).view(w.shape)
        moved = risk.curvature(w, direction) + damping * direction
        return moved.reshape(-1).cpu().numpy()

    size = w.numel()
    operator = linalg.LinearOperator((size, size), matvec=product, dtype=float)
    step, _ = linalg.cg(operator, gradient.reshape(-1).cpu().numpy(), rtol=1e-3, maxiter=100)
    return float((step**2).sum() ** 0.5)


def _minimum(risk: Risk, w: Tensor, iterations: int, attained: bool, infimum: float | None = None) -> Minimum:
    value, gradient, _ = risk.with_gradient(w)
    weight = risk.weight(w)
    value -= risk.ridge * float(weight.square().sum())
    # H = W T^T has the gradient g with g T = that of W, and g lies in the span of T as the features do.
    norm = float((gradient @ torch.linalg.pinv(risk.transform)).norm())
    rank = risk.transform.shape[1]
    return Minimum(weight, value, norm, rank, iterations, attained, value if infimum is None else infimum)
