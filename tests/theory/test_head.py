"""Linear heads against other solvers: NumPy, SciPy and scikit-learn."""

import numpy
import pytest
import scipy
import torch
from sklearn import linear_model
from theory.networks import EXACT, dataset, datasets, huber, random_data
from torch.nn import functional as F

from fastnest import theory
from fastnest.theory.batches import Batches
from fastnest.theory.convex import Risk
from fastnest.theory.loss import loss_of
from fastnest.theory.moments import moments
from fastnest.theory.samples import Samples

# A minimiser is found to a gradient of 1e-8 of that at weight 0, scikit-learn's and SciPy's to what is asked of them
# here: weights may differ by the sum of the gradients over the least curvature, which is 1e-3 of the scale or more.
SOLVED = {"rtol": 1e-5, "atol": 1e-5}
# The risk is off by the square of that gradient over twice the curvature.
RISK = 1e-9


def features(n: int = 80, sizes=(3, 4, 2), seed: int = 0) -> list[torch.Tensor]:
    """v_0, v_1, v_2 of very different scales."""
    torch.manual_seed(seed)
    return [10.0**i * torch.randn(n, size, dtype=torch.float64) for i, size in enumerate(sizes)]


def objective_gradient(head, v, y, mean, ridge: float) -> torch.Tensor:
    """Of mean loss + ridge |weight|^2, by automatic differentiation."""
    parameters = [head.weight.clone().requires_grad_()]
    if head.intercept is not None:
        parameters.append(head.intercept.clone().requires_grad_())
    risk = mean(F.linear(torch.cat(v, 1), *parameters), y) + ridge * sum(p.square().sum() for p in parameters)
    return torch.cat([g.flatten() for g in torch.autograd.grad(risk, parameters)])


def squared(outputs, y):
    return (outputs - y).square().sum(1).mean()


def binary(outputs, y):
    return F.binary_cross_entropy_with_logits(outputs, y)


def soft_margin(outputs, y):
    return F.soft_margin_loss(outputs, 2 * y - 1)


# Squared


@pytest.mark.parametrize("outputs", [1, 3])
def test_squared_is_least_squares(outputs):
    v = features()
    y = torch.randn(80, outputs, dtype=torch.float64)
    head = theory.linear_head(v, y)
    rows = torch.cat(v, 1).numpy()
    weight, *_ = scipy.linalg.lstsq(rows, y.numpy())
    # Condition number 1e2, and rounding of 1e-16 times 80 rows.
    numpy.testing.assert_allclose(head.weight.numpy(), weight.T, rtol=1e-10, atol=1e-12)
    assert head.risk == pytest.approx(((rows @ weight - y.numpy()) ** 2).sum(1).mean(), rel=EXACT)
    assert head.infimum == head.risk
    assert head.attained
    assert head.rank == 9
    assert head.sizes == (3, 4, 2)
    assert [tuple(H.shape) for H in head.weights] == [(outputs, 3), (outputs, 4), (outputs, 2)]
    torch.testing.assert_close(head(v), torch.cat(v, 1) @ head.weight.T)
    torch.testing.assert_close(head(torch.cat(v, 1)), head(v))


@pytest.mark.parametrize("n", [80, 8, 1])
def test_dependent_features_get_the_least_norm(n):
    """Duplicates, sums, a constant 0, and fewer rows than features: as by the pseudo-inverse."""
    v = features(n)
    v += [v[0] + 1e-2 * v[1][:, :3], v[2], torch.zeros(n, 1)]
    y = torch.randn(n, 2, dtype=torch.float64)
    head, rows = theory.linear_head(v, y), torch.cat([part.double() for part in v], 1).numpy()
    assert head.rank == numpy.linalg.matrix_rank(rows) == min(n, 9)
    weight = numpy.linalg.pinv(rows, rcond=1e-12) @ y.numpy()
    numpy.testing.assert_allclose(head.weight.numpy(), weight.T, rtol=1e-9, atol=1e-11)
    assert head.risk == pytest.approx(((rows @ weight - y.numpy()) ** 2).sum(1).mean(), rel=EXACT, abs=1e-24)


@pytest.mark.parametrize("intercept", [False, True])
def test_ridge(intercept):
    """(V^T V / n + ridge)^-1 V^T y / n; and scikit-learn's, whose penalty is n times ours and spares the intercept."""
    v, ridge = features(), 0.3
    y = torch.randn(80, 2, dtype=torch.float64) + 1
    head = theory.linear_head(v, y, ridge=ridge, intercept=intercept)
    rows = torch.cat([torch.ones(80, int(intercept), dtype=torch.float64), *v], 1)
    expected = torch.linalg.solve(rows.T @ rows / 80 + ridge * torch.eye(rows.shape[1]).double(), rows.T @ y / 80).T
    found = head.weight if not intercept else torch.cat([head.intercept[:, None], head.weight], 1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    if not intercept:
        ridge_of = linear_model.Ridge(alpha=80 * ridge, fit_intercept=False, solver="cholesky")
        numpy.testing.assert_allclose(head.weight, ridge_of.fit(rows.numpy(), y.numpy()).coef_, rtol=1e-9, atol=1e-11)
    assert head.risk == pytest.approx(float(squared(head(v), y)), rel=EXACT)


def test_squared_with_an_intercept_is_linear_regression():
    x, y = dataset("diabetes")
    head = theory.linear_head(x + 1, y + 2, intercept=True)
    expected = linear_model.LinearRegression().fit((x + 1).numpy(), (y + 2).numpy())
    # Diabetes' features have a condition number of 20, the shifted ones with a constant of 1e2.
    numpy.testing.assert_allclose(head.weight, expected.coef_, rtol=1e-9, atol=1e-11)
    numpy.testing.assert_allclose(head.intercept, expected.intercept_, rtol=1e-9, atol=1e-11)


def test_squared_loss_of_classes_is_to_vectors_of_zeros_and_a_one():
    v, y = features(), torch.arange(80) % 3
    head, expected = theory.linear_head(v, y), theory.linear_head(v, F.one_hot(y).double())
    torch.testing.assert_close(head.weight, expected.weight, rtol=0, atol=0)
    assert theory.linear_head(v, y, classes=5).weight.shape == (5, 9)


# Cross entropy


def classes(n: int = 300, seed: int = 1):
    """Three classes that overlap, on features of different scales."""
    v = features(n, seed=seed)
    scores = torch.cat([v[0], v[1][:, :1] / 10, v[2] / 100], 1) @ torch.randn(6, 3, dtype=torch.float64)
    return v, (scores + 2 * torch.randn_like(scores)).argmax(1)


def sklearn_logistic(rows, y, ridge: float, intercept: bool):
    """C is 1 / (2 n ridge): scikit-learn adds |w|^2 / 2 to C times the sum of losses."""
    C = numpy.inf if not ridge else 1 / (2 * len(y) * ridge)
    model = linear_model.LogisticRegression(C=C, fit_intercept=intercept, solver="newton-cg", tol=1e-10, max_iter=1000)
    return model.fit(rows, y)


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_cross_entropy_is_logistic_regression(ridge):
    v, y = classes()
    head = theory.linear_head(v, y, loss="cross_entropy", ridge=ridge)
    expected = torch.from_numpy(sklearn_logistic(torch.cat(v, 1).numpy(), y.numpy(), ridge, False).coef_)
    # Without a ridge a shift of all classes' weights changes nothing: compare weights without their mean.
    centred = [w - w.mean(0) for w in (head.weight, expected)]
    torch.testing.assert_close(*centred, **SOLVED)
    rows = torch.cat(v, 1)
    risks = [float(F.cross_entropy(rows @ w.T, y) + ridge * w.square().sum()) for w in (head.weight, centred[1])]
    assert risks[0] == pytest.approx(risks[1], rel=RISK)
    assert head.risk == pytest.approx(risks[0] - ridge * float(head.weight.square().sum()), rel=EXACT)
    assert head.attained


def test_cross_entropy_with_an_intercept():
    v, y = classes()
    head = theory.linear_head(v, y, loss="cross_entropy", intercept=True)
    expected = sklearn_logistic(torch.cat(v, 1).numpy(), y.numpy(), 0.0, True)
    numpy.testing.assert_allclose(head.weight - head.weight.mean(0), expected.coef_ - expected.coef_.mean(0), **SOLVED)
    intercepts = head.intercept.numpy(), expected.intercept_
    numpy.testing.assert_allclose(*(b - b.mean() for b in intercepts), **SOLVED)
    weights = torch.from_numpy(expected.coef_), torch.from_numpy(expected.intercept_)
    risk = F.cross_entropy(F.linear(torch.cat(v, 1), *weights), y)
    assert head.risk == pytest.approx(float(risk), rel=RISK)


def test_cross_entropy_with_probabilities():
    """Targets may be a distribution for each sample; that of a model itself is attained, with its entropy as risk."""
    v = features(300)
    weight = torch.randn(3, 9, dtype=torch.float64) / torch.cat(v, 1).std(0)
    log_p = (torch.cat(v, 1) @ weight.T).log_softmax(1)
    head = theory.linear_head(v, log_p.exp(), loss="cross_entropy")
    assert head.risk == pytest.approx(float(-(log_p.exp() * log_p).sum(1).mean()), rel=RISK)
    torch.testing.assert_close(head.weight - head.weight.mean(0), weight - weight.mean(0), **SOLVED)


def test_separable_classes_have_no_minimiser():
    """The risk falls to 0 along any weight that separates them; a ridge brings a minimiser."""
    x = torch.tensor([[-2.0, 1], [-1, 1], [1, 1], [3, 1]])
    y = torch.tensor([0, 0, 1, 1])
    head = theory.linear_head(x, y, loss="cross_entropy")
    assert not head.attained
    assert head.infimum == 0
    assert head.risk > 0
    assert (head(x).argmax(1) == y).all()
    ridged = theory.linear_head(x, y, loss="cross_entropy", ridge=0.1)
    assert ridged.attained
    assert ridged.infimum == ridged.risk > 0


@pytest.mark.parametrize("intercept", [False, True])
def test_classes_of_which_some_are_separable_have_no_minimiser(intercept):
    """Iris: one species lies apart, two overlap. The infimum is what the two cost, found by a tiny ridge."""
    x, y = datasets.load_iris(return_X_y=True)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    head = theory.linear_head(x, y, loss="cross_entropy", intercept=intercept)
    assert not head.attained
    assert 0 < head.infimum <= head.risk
    ridge = theory.linear_head(x, y, loss="cross_entropy", ridge=1e-3, intercept=intercept)
    assert ridge.attained
    assert ridge.risk > head.risk
    two = y > 0
    apart = theory.linear_head(x[two], y[two] - 1, loss="cross_entropy", intercept=intercept)
    assert apart.attained
    # A bound from below: three classes cost at least what two of them do; and nothing more in the limit.
    assert head.infimum == pytest.approx(apart.risk * 2 / 3, rel=0.01)


def some_are_separable(rows: torch.Tensor, y: torch.Tensor) -> bool:
    """By linear programming: whether weights exist by which no sample's class is behind another and one is ahead, which
    is when no minimiser exists (Albert and Anderson 1984)."""
    rows, y = rows.double().numpy(), y.numpy()
    n, d, classes = len(rows), rows.shape[1], y.max() + 1
    margins = numpy.zeros(
        (n, classes, classes, d)
    )  # of every sample, its class ahead of another, by weights [classes, d]
    for c in range(classes):
        margins[range(n), c, y] += rows
        margins[:, c, c] -= rows
    margins = margins.reshape(n * classes, -1)
    found = scipy.optimize.linprog(-margins.mean(0), A_ub=-margins, b_ub=numpy.zeros(len(margins)), bounds=(-1, 1))
    assert found.status == 0
    return bool(-found.fun > 1e-6)


def test_attained_is_what_linear_programming_says():
    """Of three classes in 4 dimensions whose rows are few enough for either answer, and for both from most numbers."""
    answers = set()
    for n in (12, 18, 24, 30, 40, 80):
        for seed in range(6):
            torch.manual_seed(seed)
            rows, y = torch.randn(n, 4, dtype=torch.float64), torch.arange(n) % 3
            rows[:, 0] += y
            head, separable = theory.linear_head(rows, y, loss="cross_entropy"), some_are_separable(rows, y)
            assert head.attained == (not separable), f"{n} rows of seed {seed}: {head}"
            answers.add((n, separable))
    assert len(answers) > 8


def test_digits_of_two_kinds_have_no_minimiser():
    """Some of 64 pixels are dark in all images of a kind but one."""
    x, y = (torch.from_numpy(part) for part in datasets.load_digits(return_X_y=True))
    y = (y >= 5).long()
    assert some_are_separable(x, y)
    assert not theory.linear_head(x, y, loss="cross_entropy").attained


def test_a_single_class_and_no_features():
    v = features()
    head = theory.linear_head(v, torch.zeros(80, dtype=torch.long), loss="cross_entropy")
    assert (head.risk, head.attained, head.gradient_norm) == (0, True, 0)
    y = torch.arange(80) % 3
    head = theory.linear_head([0 * part for part in v], y, loss="cross_entropy")
    assert head.risk == pytest.approx(numpy.log(3))
    assert (head.rank, head.attained) == (0, True)


# Callables


@pytest.mark.parametrize("ridge", [0.0, 0.01])
@pytest.mark.parametrize("loss", [huber, binary, soft_margin])
def test_callables(loss, ridge):
    """Against SciPy's BFGS on the same objective."""
    torch.manual_seed(0)
    v = [torch.randn(200, 3, dtype=torch.float64), torch.randn(200, 2, dtype=torch.float64)]
    rows = torch.cat(v, 1)
    scores = rows @ torch.randn(5, 2, dtype=torch.float64) + 2 * torch.randn(200, 2, dtype=torch.float64)
    y = scores if loss is huber else (scores > 0).double()

    def value(flat):
        weight = torch.from_numpy(flat).view(2, 5).requires_grad_()
        risk = loss(rows @ weight.T, y) + ridge * weight.square().sum()
        (gradient,) = torch.autograd.grad(risk, weight)
        return risk.item(), gradient.flatten().numpy()

    expected = scipy.optimize.minimize(value, numpy.zeros(10), jac=True, method="BFGS", options={"gtol": 1e-9})
    head = theory.linear_head(v, y, loss=loss, ridge=ridge)
    assert head.risk + ridge * float(head.weight.square().sum()) == pytest.approx(expected.fun, rel=RISK)
    numpy.testing.assert_allclose(head.weight.flatten(), expected.x, **SOLVED)
    assert head.attained


def test_callables_get_classes_as_they_are():
    v, y = classes()

    def squared_margin(outputs, y):
        """Squared hinge of the class against each other."""
        assert y.dtype == torch.long
        margins = (1 - outputs.gather(1, y[:, None]) + outputs).clamp(min=0).square()
        return margins.masked_fill(F.one_hot(y, 3).bool(), 0).sum(1).mean()

    head = theory.linear_head(v, y, loss=squared_margin)
    assert head.attained
    assert head.weight.shape == (3, 9)
    at_zero = float(squared_margin(torch.zeros(300, 3).double(), y))
    assert head.risk < 0.7 * at_zero


def test_losses_without_curvature_are_not_said_to_be_solved():
    """Newton's method finds nothing to go by in linear pieces, and says so."""
    v = features()
    y = torch.randn(80, 1, dtype=torch.float64)
    head = theory.linear_head(v, y, loss=torch.nn.L1Loss())
    assert not head.attained
    assert head.gradient_norm > 1e-3


def test_a_callable_cross_entropy_is_the_named_one():
    v, y = classes()
    named = theory.linear_head(v, y, loss="cross_entropy")
    own = theory.linear_head(v, y, loss=torch.nn.CrossEntropyLoss())
    torch.testing.assert_close(own.weight, named.weight, rtol=1e-12, atol=1e-14)


# Certificates

CERTIFIED = [("squared", squared), ("cross_entropy", F.cross_entropy), (huber, huber)]


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize(("loss", "mean"), CERTIFIED, ids=["squared", "cross entropy", "huber"])
def test_gradient_norm_is_that_of_the_objective(loss, mean, ridge, intercept):
    """And it is small: 1e-8 of that at weight 0, whitened; features here are scaled by 1 to 100."""
    v, y = classes()
    y = y if loss == "cross_entropy" else F.one_hot(y).double()
    head = theory.linear_head(v, y, loss=loss, ridge=ridge, intercept=intercept)
    gradient = float(objective_gradient(head, v, y, mean, ridge).norm())
    nothing = theory.linear_head([0 * part for part in v], y, loss=loss)
    at_zero = float(objective_gradient(nothing, v, y, mean, 0.0).norm())
    # Sums of 300 terms as large as the gradient at 0 leave 1e-14 of it.
    assert head.gradient_norm == pytest.approx(gradient, rel=1e-3, abs=1e-13 * at_zero)
    assert head.gradient_norm <= 1e-6 * at_zero
    assert head.rank == 9 + intercept


@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize("loss", ["cross_entropy", huber], ids=["cross entropy", "huber"])
def test_newton_gets_the_risks_own_derivatives(loss, ridge):
    """Value, gradient, and the Hessian on every unit vector, by automatic differentiation of the whole risk.

    A wrong curvature would not show in a solution, only in the way to it.
    """
    v, y = classes(40)
    y = y if loss == "cross_entropy" else F.one_hot(y).double()
    chosen, rows = loss_of("test", loss), torch.cat(v, 1)
    whole = Samples(Batches("test", v, y), list, loss_of("test", "squared"))
    halves = [(rows[:15], y[:15]), (rows[15:], y[15:])]
    risk = Risk(halves, moments(whole), chosen, ridge)
    w = torch.randn(3, 9, dtype=torch.float64)

    def plain(w):
        h = w @ risk.transform.T
        return chosen.mean(rows @ h.T, y) + ridge * h.square().sum()

    value, gradient, _ = risk.with_gradient(w)
    assert value == pytest.approx(float(plain(w)), rel=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(plain, w), rtol=1e-10, atol=1e-12)
    hessian = torch.autograd.functional.hessian(plain, w).view(27, 27)
    columns = [risk.curvature(w, unit.view(3, 9)).flatten() for unit in torch.eye(27, dtype=torch.float64)]
    torch.testing.assert_close(torch.stack(columns, 1), hessian, rtol=1e-10, atol=1e-12)


# The best linear predictor


def test_best_linear_predictor_flattens_images():
    torch.manual_seed(0)
    x, y = torch.randn(40, 2, 3, 3), torch.randn(40, 2)
    found = theory.best_linear_predictor(x, y)
    expected = theory.linear_head(x.flatten(1), y)
    torch.testing.assert_close(found.weight, expected.weight, rtol=0, atol=0)
    x, y = random_data(3, 1)
    assert theory.best_linear_predictor(x, y, intercept=True, ridge=0.1).intercept.shape == (1,)
    assert theory.best_linear_predictor(x, y[:, 0] > 0, loss="cross_entropy").weight.shape == (2, 3)


# Wrong arguments

v, y, labels = torch.ones(6, 3), torch.ones(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
WRONG = [
    (ValueError, lambda: theory.linear_head(v, y[:3]), "linear_head: x and y must have the same rows, at least one"),
    (ValueError, lambda: theory.linear_head([v, v[:2]], y), "linear_head: x and y must have the same rows, at least"),
    (ValueError, lambda: theory.linear_head(v[:0], y[:0]), "linear_head: x and y must have the same rows, at least"),
    (TypeError, lambda: theory.linear_head(v, [1, 2]), "linear_head: y must be a torch.Tensor, got list"),
    (TypeError, lambda: theory.linear_head(3, y), "linear_head: x must be a tensor or a list of tensors where y is"),
    (TypeError, lambda: theory.linear_head([], y), "linear_head: x must be a tensor or a list of tensors where y is"),
    (ValueError, lambda: theory.linear_head(v), "linear_head: y must be a tensor where x is no iterable of batches"),
    (ValueError, lambda: theory.linear_head([v]), "linear_head: y must be a tensor where x is no iterable of batches"),
    (ValueError, lambda: theory.linear_head(v, y, loss="hinge"), "linear_head: loss must be squared, cross_entropy"),
    (ValueError, lambda: theory.linear_head(v, y, ridge=-1), "linear_head: ridge must be at least 0, got -1"),
    (ValueError, lambda: theory.linear_head(v, y, ridge=float("nan")), "linear_head: ridge must be at least 0"),
    (ValueError, lambda: theory.linear_head(v, labels - 1), "linear_head: y must hold classes from 0 to 1, got -1"),
    (ValueError, lambda: theory.linear_head(v, labels, classes=2), "linear_head: y must hold classes from 0 to 1, got"),
    (ValueError, lambda: theory.linear_head(v, y.long(), loss="cross_entropy"), "linear_head: y must be classes [n]"),
    (ValueError, lambda: theory.linear_head(v[None], y[None]), "linear_head: features must be"),
    (ValueError, lambda: theory.linear_head(v * torch.nan, y), "linear_head: features and y must be finite, got NaN"),
    (ValueError, lambda: theory.linear_head(v, y * torch.inf), "linear_head: features and y must be finite, got NaN"),
    (ValueError, lambda: theory.linear_head(v * torch.nan, labels, loss="cross_entropy"),
     "linear_head: features and y must be finite, got NaN or Inf"),
    (TypeError, lambda: theory.linear_head(v, y, ridge="1"), "linear_head: ridge must be a number, got '1'"),
    (TypeError, lambda: theory.linear_head(v, y, intercept="no"), "linear_head: intercept must be a bool, got 'no'"),
    (ValueError, lambda: theory.best_linear_predictor(v[:, 0], y[:, 0]), "best_linear_predictor: x must be [n, ..."),
    (ValueError, lambda: theory.best_linear_predictor(v, y, ridge=-1), "best_linear_predictor: ridge must be at"),
    (ValueError, lambda: theory.best_linear_predictor(v, y, loss="hinge"), "best_linear_predictor: loss must be"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "make", "message"), WRONG, ids=[f"{i} {m}" for i, (_, _, m) in enumerate(WRONG)])
def test_bad_input(error, make, message):
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value).startswith(message)
