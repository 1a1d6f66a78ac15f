"""Every proposition, theorem and corollary of arXiv 2111.05496, where its assumptions hold and where one is broken.

Every statement is checked on random and on trained networks, by plain formulas (`networks`) beside what fastnest.theory
says. Tests named `..._needs_...` break an assumption: the statement is false there, and the tool says so.
"""

import copy
from itertools import pairwise

import numpy
import pytest
import torch
from scipy import optimize
from theory.networks import (
    EXACT,
    NARROW,
    RANDOM_FEW,
    RANDOM_NARROW,
    RANDOM_WIDE,
    WIDE,
    Problem,
    Random,
    Shape,
    before_last,
    build,
    critical,
    dataset,
    dense_hessian,
    first_blocks,
    huber,
    least_risk,
    linear_maps,
    over,
    point,
    prediction_risk,
    random_data,
    train,
    with_prediction,
)

from fastnest import models, theory

EPSILON = torch.finfo(torch.float64).eps


def dead_last_block(problem: Problem) -> Problem:
    """With v_L = 0, as gelu(0) = 0."""
    model = copy.deepcopy(problem.model)
    with torch.no_grad():
        model.chain.down[-1] = 0
        model.chain.down_bias[-1] = 0
    return problem._replace(model=model)


def random_points(model: models.ResNEst, count: int) -> list[models.ResNEst]:
    parts = point(model)
    return [with_prediction(model, *(torch.randn_like(part) for part in parts)) for _ in range(count)]


# Proposition 1


@over(*WIDE, *NARROW, *RANDOM_FEW)
def test_proposition_1_a(case):
    """(P_phi) is not convex: half way between two points the risk is above the mean of theirs."""
    model, x, y = build(case)
    assert theory.check_assumptions(model, x, y).first
    found = theory.check_convexity(model, x, y)
    assert found.convex is False
    f = prediction_risk(model, x, y)
    half_way = [(a + b) / 2 for a, b in zip(found.first, found.second, strict=True)]
    risks = [float(f(*weights)) for weights in (found.first, found.second, half_way)]
    assert risks == pytest.approx([found.first_risk, found.second_risk, found.midpoint_risk], rel=EXACT)
    assert risks[2] > (risks[0] + risks[1]) / 2


@over(*RANDOM_WIDE, *RANDOM_NARROW)
def test_proposition_1_a_needs_assumption_1(case):
    """With v_L = 0 the risk does not depend on W_L and is convex in W_{L+1}: the tool shows nothing."""
    model, x, y = dead_last_block(build(case))
    assert not theory.check_assumptions(model, x, y).first
    assert theory.check_convexity(model, x, y).convex is None
    torch.manual_seed(0)
    f = prediction_risk(model, x, y)
    points = [point(one) for one in random_points(model, 20)]
    for a, b in pairwise(points):
        half_way = [(p + q) / 2 for p, q in zip(a, b, strict=True)]
        assert f(*half_way) <= (f(*a) + f(*b)) / 2 * (1 + EXACT)


@over(*RANDOM_WIDE[::2], *RANDOM_NARROW[::2], *RANDOM_FEW)
def test_proposition_1_b(case):
    """The Hessian is nowhere negative semidefinite, so that no critical point is a local maximum."""
    problem = build(case)
    model, x, y = problem
    torch.manual_seed(0)
    o, m = model.head.weight.shape
    few = [keep for keep in ([], [0], list(range(min(o, m)))) if o - len(keep) <= model.chain.bottleneck]
    for at in [*random_points(model, 3), *(critical(problem, keep) for keep in few)]:
        eigenvalues = torch.linalg.eigvalsh(dense_hessian(at, x, y))
        assert eigenvalues[-1] > 1e-6 * eigenvalues.abs().max()


def test_proposition_1_b_needs_assumption_1():
    """With x_{L-1} = 0, v_L = 1 and both weights 0, the gradient is 0 and the Hessian has nothing but the cross-moment
    of v_L and y: with one it is indefinite; without one (y centred) it is 0, and negative semidefinite."""
    torch.manual_seed(0)
    constant = torch.nn.Linear(4, 1, dtype=torch.float64)
    torch.nn.init.zeros_(constant.weight)
    torch.nn.init.ones_(constant.bias)
    model = models.ResNEst(3, 2, width=4, blocks=[constant], dtype=torch.float64)
    with torch.no_grad():
        for weight in (model.expand.weight, model.chain[0].up, model.head.weight):
            weight.zero_()
    x, y = random_data(3, 2)
    for targets, holds in ((y + 1, True), (y - y.mean(0), False)):
        assert bool(theory.check_assumptions(model, x, targets).first) is holds
        found = theory.critical_point(model, x, targets)
        assert found.gradient_norm <= 1e-14
        assert found.verdict == ("strict saddle" if holds else "global minimiser")
        assert (found.largest_eigenvalue > 0.1) is holds
        assert (found.least_eigenvalue < -0.1) is holds


# Proposition 2


@over(*WIDE, *NARROW, *RANDOM_FEW)
def test_proposition_2(case):
    """min (PA_phi) <= min (P_phi), for any ResNEst; augmenting it changes no output."""
    model, x, y = build(case)
    gap = theory.risk_gap(model, x, y)
    assert gap.augmented_risk == pytest.approx(least_risk(model.features(x), y), rel=EXACT)
    assert gap.gap >= -EXACT * gap.risk
    augmented = theory.augment(model)
    # Sums of products in another order: some hundred roundings of terms that are a hundred times the result at most.
    torch.testing.assert_close(augmented(x), model(x), rtol=1e-11, atol=1e-11)
    assert gap.risk <= theory.empirical_risk(model, x, y) * (1 + EXACT)
    assert gap.augmented_risk <= theory.empirical_risk(augmented, x, y) * (1 + EXACT)


@over(*WIDE)
def test_proposition_2_needs_the_same_features(case):
    """An A-ResNEst on other features, here of no block at all, has a higher risk than the ResNEst."""
    model, x, y = build(case)
    assert theory.linear_head(model.features(x)[:1], y).risk > theory.risk_gap(model, x, y).risk * 1.01


# Theorem 1


@over(*WIDE)
def test_theorem_1(case):
    """Under assumptions 2, 3 and 4, min (P_phi) = min (PA_phi), and the theorem's construction is a critical point with
    W_{L+1} of full rank that attains it."""
    model, x, y = build(case)
    assert theory.check_assumptions(model, x, y).guaranteed
    gap = theory.risk_gap(model, x, y)
    assert gap.how == "Theorem 1"
    assert abs(gap.gap) <= EXACT * gap.risk
    W_L, W_Lp1, risk = theory.optimal_prediction(model, x, y)
    best = with_prediction(model, W_L, W_Lp1)
    assert theory.empirical_risk(best, x, y) == pytest.approx(risk, rel=EXACT)
    assert risk == pytest.approx(least_risk(model.features(x), y), rel=EXACT)
    found = theory.critical_point(best, x, y)
    assert found.full_rank
    assert found.verdict == "global minimiser"


def descended(model: models.ResNEst, x, y, start) -> tuple[models.ResNEst, float]:
    """W_L and W_{L+1} where L-BFGS arrives, and how far at most its risk is from the least by its gradient there.

    The outputs are linear in B = [W_{L+1}, W_{L+1} W_L], in which the risk is quadratic with the curvature 2 s^2 / n at
    least, s the least singular value of R = [x_{L-1}, v_L] that is not 0; so it lies |dB|^2 n / (4 s^2) above the
    minimum at most. dB follows from the weights' gradients where W_{L+1} has full row rank:
    dW_L = W_{L+1}^T dB_v and dW_{L+1} = dB_x + dB_v W_L^T.
    """
    f, shapes = prediction_risk(model, x, y), [part.shape for part in start]

    def value(flat):
        parts = [p.view(s).requires_grad_() for p, s in zip(split(flat), shapes, strict=True)]
        risk = f(*parts)
        gradient = torch.autograd.grad(risk, parts)
        return risk.item(), torch.cat([g.flatten() for g in gradient]).numpy()

    def split(flat):
        return torch.from_numpy(numpy.array(flat)).split([shape.numel() for shape in shapes])

    begin = torch.cat([part.flatten() for part in start]).numpy()
    options = {"maxiter": 20000, "maxfun": 40000, "gtol": 1e-9, "ftol": 0.0, "maxcor": 50}
    found = optimize.minimize(value, begin, jac=True, method="L-BFGS-B", options=options)
    W_L, W_Lp1 = (part.view(shape) for part, shape in zip(split(found.x), shapes, strict=True))
    dW_L, dW_Lp1 = (part.view(s) for part, s in zip(split(value(found.x)[1]), shapes, strict=True))
    dB_v = torch.linalg.pinv(W_Lp1.T) @ dW_L
    dB = torch.cat([dW_Lp1 - dB_v @ W_L.T, dB_v], 1)
    values = torch.linalg.svdvals(torch.cat(before_last(model, x), 1))
    s = values[values > 1e-12 * values[0]][-1]
    return with_prediction(model, W_L, W_Lp1), float(dB.square().sum() * len(y) / (4 * s**2))


@over(*RANDOM_WIDE[:6:2], WIDE[-2])
def test_theorem_1_where_descent_ends(case):
    """A critical point with W_{L+1} of full rank is a global minimiser, wherever descent began."""
    model, x, y = build(case)
    torch.manual_seed(0)
    end, above = descended(model, x, y, [torch.randn_like(part) for part in point(model)])
    found = theory.critical_point(end, x, y)
    assert found.full_rank
    assert found.verdict == "global minimiser"
    least = least_risk(model.features(x), y)
    assert above <= 1e-6 * least  # the solver did arrive
    assert least * (1 - EXACT) <= found.risk <= least * (1 + EXACT) + above


@pytest.mark.parametrize("loss", [huber, "cross_entropy"])
@over(*RANDOM_WIDE[1:4:2])
def test_theorem_1_for_other_convex_losses(case, loss):
    """Assumption 2 asks for a convex loss, no more: epsilon is 0 for others too.

    Both minima are found to a gradient g of 1e-8 of that at weight 0, in coordinates where features have second moment
    1. A risk is off by g^2 / (2 curvature), which stays below 1e-9 unless the loss is flatter than 1e-7 there.
    """
    model, x, y = build(case)
    y = y.argmax(1) if loss == "cross_entropy" else y
    gap = theory.risk_gap(model, x, y, loss=loss)
    assert abs(gap.gap) <= EXACT * gap.risk
    assert gap.augmented_risk == pytest.approx(theory.linear_head(model.features(x), y, loss=loss).infimum, rel=EXACT)


def test_theorem_1_needs_assumption_2():
    """Under a loss that is not convex a vanishing gradient proves nothing: with targets 6 (of 3 in 5) and 0, and the
    loss 1 - exp(-e^2), the solver stays near 0, where the gradient is 0 and the risk is higher than at 6."""

    def welsch(outputs, y):
        return (1 - (-(outputs - y).square()).exp()).sum(1).mean()

    v, y = torch.ones(5, 1), torch.tensor([6.0, 6.0, 6.0, 0.0, 0.0])[:, None]
    found = theory.linear_head(v, y, loss=welsch)
    assert found.gradient_norm <= 1e-6
    assert welsch(6 * v, y) < found.risk - 0.1


@over(*NARROW)
def test_theorem_1_needs_assumption_4(case):
    """A stream that is too narrow to hold its features costs risk: epsilon > 0."""
    model, x, y = build(case)
    assumptions = theory.check_assumptions(model, x, y)
    assert assumptions.third
    assert not assumptions.fourth
    assert not assumptions.guaranteed
    gap = theory.risk_gap(model, x, y)
    assert gap.gap > 0.01 * gap.augmented_risk
    # The least of (P_phi) it is: that of a linear predictor from x_{L-1} and v_L.
    assert gap.risk == pytest.approx(least_risk(list(before_last(model, x)), y), rel=EXACT)


@over(*RANDOM_FEW)
def test_theorem_1_needs_assumption_3(case):
    """With M < N_o no W_{L+1} has full row rank, and the rank of the outputs costs risk."""
    problem = build(case)
    model, x, y = problem
    assumptions = theory.check_assumptions(model, x, y)
    assert not assumptions.third
    assert not assumptions.guaranteed
    gap = theory.risk_gap(model, x, y)
    assert gap.gap > 0.01 * gap.augmented_risk
    # A critical point with W_{L+1} of as much rank as it can have, on the wrong directions, is no minimiser.
    o, m = model.head.weight.shape
    found = theory.critical_point(critical(problem, list(range(o - m, o))), x, y)
    assert found.rank == m
    assert not found.full_rank
    assert found.verdict == "strict saddle"


# Corollary 1 and Remark 2


@over(*WIDE)
def test_corollary_1(case):
    """min (P_phi) of the first i blocks never rises with i."""
    model, x, y = build(case)
    risks = [theory.risk_gap(first_blocks(model, i), x, y).risk for i in range(1, model.chain.blocks + 1)]
    assert all(after <= before + EXACT * risks[0] for before, after in pairwise(risks))
    expected = [least_risk(model.features(x)[: i + 1], y) for i in range(1, model.chain.blocks + 1)]
    assert risks == pytest.approx(expected, rel=EXACT)


def overwriting() -> Problem:
    """A scalar stream: x_0 = x, v_1 = relu(x), x_1 = x - relu(x) = min(x, 0), v_2 = relu(x_1) = 0, and y = x."""
    model = models.ResNEst(1, 1, width=1, blocks=[torch.nn.ReLU(), torch.nn.ReLU()], dtype=torch.float64)
    with torch.no_grad():
        for weight, value in ((model.expand.weight, 1), (model.chain[0].up, -1), (model.chain[1].up, 1)):
            weight.fill_(value)
    x = torch.linspace(-1, 2, 31, dtype=torch.float64)[:, None]
    return Problem(model, x, x)


def test_corollary_1_needs_assumption_4():
    """W_1 v_1 takes back what x_0 held where x > 0: with one block the risk is 0, with two it is not."""
    model, x, y = overwriting()
    one = models.ResNEst(1, 1, width=1, blocks=[model.chain[0].block], dtype=torch.float64)
    one.expand = model.expand
    assert theory.check_assumptions(one, x, y).guaranteed
    assert not theory.check_assumptions(model, x, y).fourth
    assert theory.risk_gap(one, x, y).risk <= EPSILON
    assert theory.risk_gap(model, x, y).risk == pytest.approx(float(y.clamp(min=0).square().mean()), rel=EXACT)


@over(*RANDOM_NARROW[:4])
def test_corollary_1_needs_assumption_4_on_random_networks(case):
    """What x_{i-1} and v_i yield to a linear predictor, found by NumPy too, gets worse with some block."""
    model, x, y = build(case)
    blocks = range(1, model.chain.blocks + 1)
    risks = [theory.risk_gap(first_blocks(model, i), x, y).risk for i in blocks]
    expected = [least_risk(list(before_last(first_blocks(model, i), x)), y) for i in blocks]
    assert risks == pytest.approx(expected, rel=EXACT)
    assert any(after > 1.01 * before for before, after in pairwise(risks))


@over(*WIDE)
def test_remark_2(case):
    """The best linear predictor from x_i gets no worse with i as long as the x_i determine the v_0, ..., v_i."""
    model, x, y = build(case)
    profile = theory.block_profile(model, x, y)
    maps, v = linear_maps(model), model.features(x)
    W = torch.cat(maps, 1)
    determined = len(maps) if torch.linalg.matrix_rank(W) == W.shape[1] else len(maps) - 1
    risks = profile.stream_risk[:determined]
    assert all(after <= before + EXACT * risks[0] for before, after in pairwise(risks))
    assert risks == pytest.approx([least_risk(v[: i + 1], y) for i in range(determined)], rel=EXACT)
    assert profile.head_is_monotone


@over(*RANDOM_NARROW)
def test_remark_2_needs_assumption_4(case):
    """A narrow stream loses what it held: the risk from x_i rises, and that of the heads on all v_i does not."""
    model, x, y = build(case)
    profile = theory.block_profile(model, x, y)
    assert not theory.check_assumptions(model, x, y).fourth
    assert not profile.stream_is_monotone
    assert profile.head_is_monotone


# Corollary 2 and Proposition 3


@over(*WIDE)
def test_corollary_2(case):
    """A wide ResNEst of least risk is at least as good as the best linear predictor from x."""
    model, x, y = build(case)
    linear = theory.best_linear_predictor(x, y).risk
    assert linear == pytest.approx(least_risk(x, y), rel=EXACT)
    assert theory.optimal_prediction(model, x, y).risk <= linear * (1 + EXACT)


def test_corollary_2_needs_assumption_4():
    """W_0 of rank 1 loses what a linear predictor from x uses, and no block can make up for it."""
    model, x, _ = build(Random(Shape(4, 2, 16, 3, 4)))
    model, y = copy.deepcopy(model), x[:, :2]
    with torch.no_grad():
        model.expand.weight[:, 1:] = 0
    assert not theory.check_assumptions(model, x, y).fourth
    assert theory.best_linear_predictor(x, y).risk <= EPSILON
    assert theory.optimal_prediction(model, x, y).risk > 0.1


DENSE = [
    {"growth": 4, "blocks": 3},
    {"growth": [4, 1], "blocks": 2, "hidden": 6, "activation": "silu"},
    {"growth": 2, "blocks": 2, "hidden": [5, 3], "pre_activation": False, "activation": "gelu", "bias": False},
    {"growth": [3, 2], "blocks": 2, "norm": "batch"},
    {"growth": [3, 2], "blocks": 2, "norm": "batch", "hidden": 4},
    {"growth": 3, "blocks": 1, "norm": "batch", "pre_activation": False, "activation": "leaky_relu"},
    {"growth": [3, 2], "blocks": ("modules",)},
]


def dense(options: dict, trained: bool) -> Problem:
    torch.manual_seed(0)
    x, y = dataset("diabetes", 200) if trained else random_data(5, 2)
    options = dict(options)
    if options["blocks"] == ("modules",):
        sizes = [x.shape[1], x.shape[1] + 3]
        blocks = [torch.nn.Linear(size, d, dtype=torch.float64) for size, d in zip(sizes, (3, 2), strict=True)]
        options["blocks"] = [torch.nn.Sequential(block, torch.nn.Tanh()) for block in blocks]
    model = models.DenseNEst(x.shape[1], y.shape[1], **options, dtype=torch.float64)
    train(model, x, y, steps=100 if trained else 2)  # two: statistics of batch norms that are not 0 and 1
    return Problem(model.eval(), x, y)


every_dense = pytest.mark.parametrize("options", DENSE, ids=str)
random_and_trained = pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])


@every_dense
@random_and_trained
def test_proposition_3(options, trained):
    """A DenseNEst of least risk, whatever its blocks, is at least as good as the best linear predictor from x."""
    model, x, y = dense(options, trained)
    found = theory.linear_head(theory.features(model, x), y).risk
    assert found == pytest.approx(least_risk(model.features(x), y), rel=EXACT)
    assert found <= theory.best_linear_predictor(x, y).risk * (1 + EXACT)


def test_proposition_3_needs_the_input_among_the_features():
    """The blocks' features alone, without the x that a DenseNEst hands on, can do worse."""
    model, x, y = dense(DENSE[0], trained=False)
    y = x[:, :2] + 0.1 * y
    v = theory.features(model, x)
    linear = theory.best_linear_predictor(x, y).risk
    assert theory.linear_head(v, y).risk <= linear
    assert theory.linear_head(v[2:3], y).risk > 2 * linear


# Theorem 2


def saddles():
    """Networks with directions to keep, not all: none, the first, the last (K at least the number left out)."""
    for case in (*RANDOM_WIDE, WIDE[-2], *RANDOM_NARROW):
        shape = case.shape
        for keep in dict.fromkeys([(), (0,), (shape.outputs - 1,)]):
            if 0 < shape.outputs - len(keep) <= shape.bottleneck:
                yield pytest.param(case, list(keep), id=f"{case} keeping {list(keep)}")


@pytest.mark.parametrize(("case", "keep"), list(saddles()))
def test_theorem_2(case, keep):
    """A critical point with W_{L+1} short of full rank that is no global minimiser is a strict saddle: along the
    eigenvector of a negative eigenvalue the risk falls."""
    problem = build(case)
    x, y = problem.x, problem.y
    at = critical(problem, keep)
    found = theory.critical_point(at, x, y)
    assert found.verdict == "strict saddle"
    assert found.rank == len(keep)
    assert found.risk > found.least_risk * 1.01
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(at, x, y))
    # A symmetric matrix of rounding E moves eigenvalues by |E| at most (Weyl).
    rounding = 1e3 * EPSILON * float(eigenvalues.abs().max())
    assert found.least_eigenvalue == pytest.approx(float(eigenvalues[0]), abs=rounding)
    assert found.largest_eigenvalue == pytest.approx(float(eigenvalues.abs().max()), rel=1e-3)
    assert found.least_eigenvalue < -10 * rounding
    stepped = with_prediction(at, *(w + found.step * d for w, d in zip(point(at), found.direction, strict=True)))
    assert theory.empirical_risk(stepped, x, y) == pytest.approx(found.escaped_risk, rel=EXACT)
    assert found.escaped_risk < found.risk


def test_theorem_2_on_digits():
    """The same on a trained network of ten classes whose head has half its rank, by Lanczos."""
    problem = build(WIDE[-1])
    found = theory.critical_point(critical(problem, [0, 1, 2, 3, 4]), problem.x, problem.y)
    assert found.verdict == "strict saddle"
    assert found.rank == 5
    assert found.least_eigenvalue < 0
    assert found.escaped_risk < found.risk


@over(*WIDE, *RANDOM_NARROW)
def test_theorem_2_needs_a_head_short_of_rank(case):
    """With W_{L+1} of full rank a critical point has no negative curvature and nowhere to fall to."""
    problem = build(case)
    x, y = problem.x, problem.y
    at = critical(problem, list(range(y.shape[1])))
    found = theory.critical_point(at, x, y)
    assert found.full_rank
    assert found.verdict == "global minimiser"
    # Rounding of the eigenvalues, and what Lanczos leaves: 1e-9 of the largest.
    assert found.least_eigenvalue >= -2e-9 * found.largest_eigenvalue
    assert found.escaped_risk >= found.risk * (1 - EXACT)


@over(*WIDE, *NARROW)
def test_theorem_2_needs_a_critical_point(case):
    """Elsewhere the gradient says that nothing is decided."""
    model, x, y = build(case)
    torch.manual_seed(0)
    for at in random_points(model, 2):
        found = theory.critical_point(at, x, y)
        assert found.verdict == "not critical"
        assert found.gradient_norm > 1e-3 * found.gradient_scale


# Proposition 4


@every_dense
@random_and_trained
def test_proposition_4(options, trained):
    """A DenseNEst is a wide ResNEst with equal features and outputs, for which assumption 4 holds with condition number
    1, and which so has the guarantees of Theorem 1."""
    model, x, y = dense(options, trained)
    resnest = theory.to_resnest(model)
    assert isinstance(resnest, models.ResNEst)
    torch.testing.assert_close(resnest(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(resnest.features(x), model.features(x), rtol=1e-12, atol=1e-12)
    assumptions = theory.check_assumptions(resnest, x, y)
    assert assumptions.guaranteed
    assert assumptions.fourth.margin == assumptions.fourth.numbers["condition"] == 1
    gap = theory.risk_gap(resnest, x, y)
    assert abs(gap.gap) <= EXACT * gap.risk
    assert gap.risk == pytest.approx(theory.linear_head(model.features(x), y).risk, rel=EXACT)


def test_proposition_4_needs_a_place_for_every_block():
    """Where the last W_i of a stream write to one place, the outputs differ, assumption 4 fails and risk is lost."""
    model, x, y = dense(DENSE[0], trained=False)
    resnest = theory.to_resnest(model)
    with torch.no_grad():
        resnest.chain[1].up.copy_(resnest.chain[0].up)
    assert (resnest(x) - model(x)).abs().max() > 1e-2
    assert not theory.check_assumptions(resnest, x, y).fourth
    assert theory.risk_gap(resnest, x, y).gap > 1e-3
