"""Gradients and Hessians of (P_phi) against automatic differentiation, and what is said of a point."""

import pytest
import torch
from theory.networks import (
    EXACT,
    RANDOM_FEW,
    RANDOM_NARROW,
    RANDOM_WIDE,
    WIDE,
    Problem,
    Random,
    Shape,
    build,
    critical,
    dense_hessian,
    over,
    point,
    prediction_risk,
    with_prediction,
)

from fastnest import models, theory
from fastnest.theory import critical_points
from fastnest.theory.critical_points import Derivatives, _falling
from fastnest.theory.risk import prediction

SMALL = [*RANDOM_WIDE[::2], *RANDOM_NARROW[::2], *RANDOM_FEW, Random(Shape(1, 1, 1, 1, 1))]


def derivatives(problem: Problem) -> Derivatives:
    return Derivatives(prediction("test", *problem, None), point(problem.model))


@over(*SMALL)
def test_gradient(case):
    problem = build(case)
    at = derivatives(problem)
    parts = [part.requires_grad_() for part in point(problem.model)]
    risk = prediction_risk(*problem)(*parts)
    expected = torch.autograd.grad(risk, parts)
    # Sums over rows in another order: rounding of the sum of the terms' sizes, which gradient_scale bounds.
    torch.testing.assert_close(at.gradient(), expected, rtol=0, atol=1e-13 * at.gradient_scale())
    assert at.risk == pytest.approx(risk.item(), rel=EXACT)
    found = theory.critical_point(*problem)
    norm = float(sum(g.square().sum() for g in expected)) ** 0.5
    assert found.gradient_norm == pytest.approx(norm, abs=1e-13 * at.gradient_scale())
    assert found.gradient_scale == at.gradient_scale() >= norm


@over(*SMALL)
def test_curvature_is_the_hessian(case):
    """Every entry: the operator on every unit vector."""
    problem = build(case)
    at, shapes = derivatives(problem), [part.shape for part in point(problem.model)]
    sizes = [shape.numel() for shape in shapes]
    columns = []
    for unit in torch.eye(sum(sizes), dtype=torch.float64):
        direction = tuple(part.view(shape) for part, shape in zip(unit.split(sizes), shapes, strict=True))
        columns.append(torch.cat([d.flatten() for d in at.curvature(direction)]))
    expected = dense_hessian(*problem)
    rounding = 1e-13 * float(torch.linalg.matrix_norm(expected, 2))
    torch.testing.assert_close(torch.stack(columns, 1), expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("solver", ["dense", "Lanczos"])
@over(*SMALL[:-1])
def test_least_eigenvalue(case, solver, monkeypatch):
    """Of random points, saddles and minimisers, made densely (here) and found by Lanczos, as for many weights."""
    if solver == "Lanczos":
        monkeypatch.setattr(critical_points, "DENSE", 0)
    problem = build(case)
    o, m = problem.model.head.weight.shape
    keep = list(range(min(o, m)))
    points = [problem.model, critical(problem, keep)]
    if o <= problem.model.chain.bottleneck + 1:
        points.append(critical(problem, keep[:1] if o > 1 else []))
    for model in points:
        found = theory.critical_point(model, problem.x, problem.y)
        H = dense_hessian(model, problem.x, problem.y)
        eigenvalues = torch.linalg.eigvalsh(H)
        largest = float(eigenvalues.abs().max())
        # Lanczos stops at a residual of LANCZOS times the largest eigenvalue of largest - H, at most twice that of H.
        accuracy = 1e-13 if solver == "dense" else 2 * critical_points.LANCZOS
        assert found.least_eigenvalue == pytest.approx(float(eigenvalues[0]), abs=accuracy * largest)
        assert found.largest_eigenvalue == pytest.approx(largest, rel=1e-3)
        direction = torch.cat([d.flatten() for d in found.direction])
        assert float(direction.norm()) == pytest.approx(1)
        residual = H @ direction - found.least_eigenvalue * direction
        assert float(residual.norm()) <= 10 * accuracy * largest


@over(*RANDOM_WIDE[:4], *RANDOM_NARROW[:4])
def test_theorem_2s_direction_proves_a_saddle_where_lanczos_does_not_arrive(case, monkeypatch):
    """Its curvature is negative at a critical point with W_{L+1} of rank 1 for 2 outputs and more, and stands out of
    rounding, so that a strict saddle is told from one Lanczos restart of too few vectors."""
    problem = build(case)
    at = critical(problem, [0])
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(at, problem.x, problem.y))
    direction = _falling(derivatives(problem._replace(model=at)))
    assert float(sum(d.square().sum() for d in direction)) == pytest.approx(1)
    moved = derivatives(problem._replace(model=at)).curvature(direction)
    along = float(sum((d * c).sum() for d, c in zip(direction, moved, strict=True)))
    assert eigenvalues[0] <= along < -1e3 * critical_points.ROUNDING * eigenvalues.abs().max()
    for name, value in {"DENSE": 0, "RESTARTS": 1, "VECTORS": 3}.items():
        monkeypatch.setattr(critical_points, name, value)
    found = theory.critical_point(at, problem.x, problem.y)
    assert found.verdict == "strict saddle"
    assert found.least_eigenvalue <= along
    assert found.escaped_risk < found.risk


@over(RANDOM_WIDE[0], RANDOM_FEW[0])
def test_a_step_along_the_direction(case):
    """escaped_risk is the risk at `step` along `direction`, and no other step tried is better than the best."""
    problem = build(case)
    at = critical(problem, [0])
    found = theory.critical_point(at, problem.x, problem.y)
    f, parts = prediction_risk(*problem), point(at)

    def risk(step):
        return float(f(*(part + step * d for part, d in zip(parts, found.direction, strict=True))))

    assert found.escaped_risk == pytest.approx(risk(found.step), rel=EXACT)
    assert found.escaped_risk < found.risk == pytest.approx(risk(0), rel=EXACT)
    assert found.step != 0
    # The risk falls from the first small step on, by half the eigenvalue times its square.
    small = 1e-3
    fall = found.least_eigenvalue * small**2 / 2
    assert risk(small) - risk(0) == pytest.approx(fall, rel=0.1)


def test_without_the_hessian():
    """The rest is the same, and a saddle is not told from other points that are critical."""
    problem = build(RANDOM_WIDE[0])
    saddle = critical(problem, [0])
    best = theory.optimal_prediction(*problem)
    for model, verdict in (
        (problem.model, "not critical"),
        (saddle, "undecided"),
        (with_prediction(problem.model, best.W_L, best.W_Lp1), "global minimiser"),
    ):
        whole = vars(theory.critical_point(model, problem.x, problem.y))
        part = vars(theory.critical_point(model, problem.x, problem.y, hessian=False))
        assert part.pop("verdict") == verdict
        assert whole.pop("verdict") == ("strict saddle" if verdict == "undecided" else verdict)
        left_out = {"least_eigenvalue", "largest_eigenvalue", "direction", "escaped_risk", "step"}
        assert {name for name, value in part.items() if value is None} == left_out
        assert {name: whole[name] for name in part.keys() - left_out} == {
            name: part[name] for name in part.keys() - left_out
        }


def test_tolerance():
    """A point a little beside a critical one is critical to a tolerance, and not to a smaller one."""
    problem = build(RANDOM_WIDE[0])
    W_L, W_Lp1 = point(critical(problem, [0, 1]))
    torch.manual_seed(0)
    beside = with_prediction(problem.model, W_L, W_Lp1 + 1e-5 * torch.randn_like(W_Lp1) * W_Lp1.abs().max())
    assert theory.critical_point(beside, problem.x, problem.y, tolerance=1e-3).verdict == "global minimiser"
    found = theory.critical_point(beside, problem.x, problem.y, tolerance=1e-9)
    assert found.verdict == "not critical"
    assert found.tolerance == 1e-9
    for tolerance in (0, 1, -1, float("nan")):
        with pytest.raises(ValueError, match="critical_point: tolerance must lie between 0 and 1, got"):
            theory.critical_point(*problem, tolerance=tolerance)


def test_rank_counts_what_stands_out():
    """A W_{L+1} of rank 1 but for 1e-9 counts as short of rank, at the default tolerance of 1e-6."""
    problem = build(RANDOM_WIDE[0])
    W_L, W_Lp1 = point(critical(problem, [0]))
    assert torch.linalg.matrix_rank(W_Lp1) == 1
    torch.manual_seed(0)
    W_Lp1 = W_Lp1 + 1e-10 * torch.randn_like(W_Lp1)
    found = theory.critical_point(with_prediction(problem.model, W_L, W_Lp1), problem.x, problem.y)
    assert (found.rank, found.full_rank, found.verdict) == (1, False, "strict saddle")


def test_a_network_without_features():
    """Where nothing depends on the weights the Hessian is 0 and every point a minimiser."""
    _, x, y = build(RANDOM_WIDE[0])
    net = models.ResNEst(4, 2, width=6, bottleneck=2, blocks=1, dtype=torch.float64)
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
    for lanczos in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if lanczos:
                patch.setattr(critical_points, "DENSE", 0)
            found = theory.critical_point(net, x, y)
        assert found.verdict == "global minimiser"
        assert (found.gradient_norm, found.least_eigenvalue, found.largest_eigenvalue) == (0, 0, 0)
        assert found.risk == found.least_risk == pytest.approx(float(y.square().sum(1).mean()), rel=EXACT)
    assert theory.check_convexity(net, x, y).convex is None


@over(*WIDE[:4:2], *RANDOM_NARROW[:2])
def test_convexity_of_classes(case):
    model, x, y = build(case)
    found = theory.check_convexity(model, x, y.argmax(1))
    assert found.convex is False
    assert found.excess == pytest.approx(found.midpoint_risk - (found.first_risk + found.second_risk) / 2)
    assert found.midpoint_risk == pytest.approx(1)  # of outputs 0, for vectors of zeros and a one


@pytest.mark.parametrize("tool", [theory.critical_point, theory.check_convexity])
def test_bad_input(tool):
    name, x, y = tool.__name__, torch.ones(6, 3), torch.ones(6, 2)
    sizes = {"width": 8, "bottleneck": 2, "blocks": 2}
    with pytest.raises(TypeError, match=rf"{name}: resnest must be a fastnest\.models\.ResNEst, got AResNEst"):
        tool(models.AResNEst(3, 2, **sizes), x, y)
    with pytest.raises(ValueError, match=f"{name}: resnest must have no batch norm before its head"):
        tool(models.ResNEst(3, 2, **sizes, head_norm=True), x, y)
    with pytest.raises(ValueError, match=f"{name}: features and y must be finite, got NaN or Inf"):
        tool(models.ResNEst(3, 2, **sizes), x * torch.nan, y)
