"""Block profiles and linear unpredictability against plain least squares."""

from itertools import pairwise

import numpy
import pytest
import torch
from sklearn import linear_model
from theory.networks import (
    EXACT,
    NARROW,
    RANDOM_NARROW,
    RANDOM_WIDE,
    WIDE,
    build,
    dataset,
    datasets,
    least_risk,
    linear_maps,
    over,
    train,
)
from torch.nn import functional as F

from fastnest import models, nn, theory

# Block profiles


def streams(model, x) -> list[torch.Tensor]:
    v, maps = model.features(x), linear_maps(model)
    return [sum(a @ W.T for a, W in zip(v[: i + 1], maps, strict=False)) for i in range(len(v))]


@over(*WIDE, *NARROW)
def test_squared_profile(case):
    """Each risk by NumPy's least squares."""
    model, x, y = build(case)
    v, found = model.features(x), theory.block_profile(model, x, y)
    assert found.sizes == [part.shape[1] for part in v]
    assert found.head_risk == pytest.approx([least_risk(v[: i + 1], y) for i in range(len(v))], rel=EXACT)
    assert found.stream_risk == pytest.approx([least_risk(x_i, y) for x_i in streams(model, x)], rel=EXACT)
    shares = theory.linear_unpredictability(v).tolist()
    assert found.unpredictability == pytest.approx(shares, abs=EXACT)
    assert found.head_is_monotone
    assert found.loss == "squared"


@over(RANDOM_WIDE[0], RANDOM_NARROW[1])
def test_an_intercept(case):
    """Asked for, it is one more feature, 1; the model's own head has none."""
    model, x, y = build(case)
    y, v = y + 5, model.features(x)
    one = torch.ones(len(x), 1).double()
    found = theory.block_profile(model, x, y, intercept=True)
    expected = [least_risk([one, *v[: i + 1]], y) for i in range(len(v))]
    assert found.head_risk == pytest.approx(expected, rel=EXACT)
    expected = [least_risk([one, x_i], y) for x_i in streams(model, x)]
    assert found.stream_risk == pytest.approx(expected, rel=EXACT)
    assert theory.block_profile(model, x, y).head_risk[0] == pytest.approx(least_risk(v[0], y), rel=EXACT)


@over(RANDOM_WIDE[0], RANDOM_NARROW[3])
def test_cross_entropy_profile(case):
    """Each risk by scikit-learn, as one score for two classes; it goes on to 1e-8 where they are separable."""
    model, x, y = build(case)
    y = y.argmax(1)
    found = theory.block_profile(model, x, y, loss="cross_entropy")
    for risks, parts in (
        (found.head_risk, [torch.cat(model.features(x)[: i + 1], 1) for i in range(len(found.sizes))]),
        (found.stream_risk, streams(model, x)),
    ):
        for risk, rows in zip(risks, parts, strict=True):
            rows = rows.detach()
            solver = linear_model.LogisticRegression(
                C=numpy.inf, fit_intercept=False, solver="newton-cg", tol=1e-10, max_iter=1000
            )
            scores = torch.from_numpy(rows.numpy() @ solver.fit(rows.numpy(), y.numpy()).coef_.T)
            expected = float(F.binary_cross_entropy_with_logits(scores[:, 0], y.double()))
            assert risk == pytest.approx(expected, rel=EXACT, abs=1e-8)
    assert found.head_is_monotone


def test_digits_are_monotone():
    """All 1797 with squared loss, 600 with cross entropy: no risk of a head rises by 1e-9 of the first."""
    x, y = (torch.from_numpy(part) for part in datasets.load_digits(return_X_y=True))
    x = x / 16 - 0.3
    torch.manual_seed(0)
    model = models.ResNEst(64, 10, width=32, bottleneck=8, blocks=6, dtype=torch.float64)
    train(model, x[:300], F.one_hot(y[:300]).double(), steps=50)
    found = theory.block_profile(model, x, y)
    assert all(after <= before + EXACT * found.head_risk[0] for before, after in pairwise(found.head_risk))
    assert found.head_is_monotone
    model = models.ResNEst(64, 2, width=32, bottleneck=4, blocks=2, dtype=torch.float64)
    few = theory.block_profile(model, x[:600], (y >= 5)[:600], loss="cross_entropy")
    assert all(after <= before + EXACT * few.head_risk[0] for before, after in pairwise(few.head_risk))


def test_an_a_resnest_has_one_stream_less():
    """Its last block has no W_L."""
    model, x, y = build(RANDOM_WIDE[0])
    augmented = theory.augment(model)
    found, expected = theory.block_profile(augmented, x, y), theory.block_profile(model, x, y)
    assert found.head_risk == pytest.approx(expected.head_risk, rel=EXACT)
    assert found.stream_risk == pytest.approx(expected.stream_risk[:-1], rel=EXACT)
    assert str(found).splitlines()[-1].split()[3] == "-"


def test_a_block_without_its_last_map_leaves_the_stream():
    """Inside of a module too, where other blocks come behind it."""
    model, x, y = build(RANDOM_WIDE[0])
    m = model.chain.width
    torch.manual_seed(0)
    chains = [nn.ResidualChain(m, 2, 2, last_up=last, dtype=x.dtype) for last in (False, True, False)]
    found = theory.block_profile(torch.nn.Sequential(model.expand, *chains, model.head), x, y)
    assert len(found.head_risk) == 7
    rows, expected = model.expand(x), []
    for chain in chains:
        v = chain(rows, return_features=True)[1]
        for i in range(2):
            expected.append(rows)
            rows = rows + v[:, i] @ chain.up[i].T if i < len(chain.up) else rows
    assert found.stream_risk == pytest.approx([least_risk(one, y) for one in expected], rel=EXACT)


def test_the_stream_of_a_dense_network_is_its_features():
    torch.manual_seed(0)
    x, y = dataset("diabetes", 150)
    model = models.DenseNEst(10, 1, growth=[3, 2], blocks=2, dtype=torch.float64)
    found = theory.block_profile(model, x, y)
    assert found.stream_risk == found.head_risk
    v = model.features(x)
    assert found.head_risk == pytest.approx([least_risk(v[: i + 1], y) for i in range(3)], rel=EXACT)


class Listened(torch.nn.Module):
    """Blocks in a module that theory knows nothing of."""

    def __init__(self, model: models.ResNEst):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.head(self.model.chain(self.model.expand(x)))


@over(RANDOM_WIDE[0], RANDOM_NARROW[0])
def test_any_module(case):
    """Its features and stream are listened to; v_0 is x_0 then."""
    model, x, y = build(case)
    found = theory.block_profile(Listened(model), x, y)
    v = [streams(model, x)[0], *model.features(x)[1:]]
    assert found.head_risk == pytest.approx([least_risk(v[: i + 1], y) for i in range(len(v))], rel=EXACT)
    assert found.stream_risk == pytest.approx([least_risk(x_i, y) for x_i in streams(model, x)], rel=EXACT)


@pytest.mark.parametrize("kind", ["standard", "a_resnest"])
def test_images(kind):
    """The head of a model on images has a bias, and so have the predictors: v_0 and the averages are not centred."""
    torch.manual_seed(0)
    model = models.cifar("resnet_20", kind, 3).eval()
    x, y = torch.randn(60, 3, 16, 16), torch.arange(60) % 3
    found = theory.block_profile(model, x, y)
    with torch.no_grad():
        v = [part.double() for part in theory.features(model, x)]
    targets, one = F.one_hot(y).double(), torch.ones(60, 1).double()
    expected = [least_risk([one, *v[: i + 1]], targets) for i in range(2)]
    assert found.head_risk[:2] == pytest.approx(expected, rel=1e-6)  # features are float32
    assert len(found.head_risk) == 10
    assert len(found.stream_risk) == (9 if kind == "a_resnest" else 10)


def test_prints_a_table():
    model, x, y = build(RANDOM_WIDE[0])
    lines = str(theory.block_profile(model, x, y)).splitlines()
    assert lines[0].split() == ["block", "features", "risk", "of", "head", "from", "x_i", "not", "linear"]
    assert [line.split()[:2] for line in lines[1:]] == [["0", "4"], *([str(i), "3"] for i in (1, 2, 3, 4))]
    assert lines[1].endswith("100.00%")


# Linear unpredictability


def plain_unpredictability(v: list[torch.Tensor]) -> list[float]:
    """Residual over total sum of squares of an affine least-squares fit, one after the other."""
    before, shares = torch.ones(len(v[0]), 1).double(), []
    for part in v:
        part = part.detach().double()
        rest = len(part) * least_risk(before, part)
        shares.append(rest / float((part - part.mean(0)).square().sum()))
        before = torch.cat([before, part], 1)
    return shares


@over(*WIDE, *NARROW)
def test_unpredictability_is_what_least_squares_leave(case):
    model, x, _ = build(case)
    v = model.features(x)
    found = theory.linear_unpredictability(v)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(plain_unpredictability(v), abs=EXACT)
    assert found[0] == pytest.approx(1)
    assert ((found >= 0) & (found <= 1 + EXACT)).all()


def test_unpredictability_of_what_is_known():
    """Copies, affine maps and what does not vary: 0 (to rounding, whose square it is); independent noise: nearly 1; a
    feature one half of whose variance is new: one half."""
    torch.manual_seed(0)
    a, b, noise = torch.randn(3, 500, 3, dtype=torch.float64).unbind(0)
    q = torch.linalg.qr(torch.cat([torch.ones(500, 1).double(), a, b], 1)).Q  # orthonormal, and to 1
    v = [a, a, 2 * a[:, :2] + 3, torch.full((500, 2), 7.0), b, q[:, 4:5] + q[:, 1:2], torch.cat([a, b], 1) + 1]
    found = theory.linear_unpredictability([*v[:4], noise])
    assert found[1:4].max() <= 1e-24
    assert found[4] > 0.95
    assert theory.linear_unpredictability([a, (q[:, 4:5] + q[:, 1:2])])[1] == pytest.approx(0.5, rel=EXACT)
    assert theory.linear_unpredictability(v)[5:].max() <= 1e-24
    assert theory.linear_unpredictability([torch.zeros(9, 2)]).tolist() == [0]


def test_blocks_that_are_linear_add_nothing():
    _, x, y = build(RANDOM_WIDE[0])
    blocks = [torch.nn.Linear(16, 3, bias=False, dtype=torch.float64) for _ in range(2)]
    found = theory.block_profile(models.ResNEst(4, 2, width=16, blocks=blocks, dtype=torch.float64), x, y)
    assert max(found.unpredictability[1:]) <= 1e-24
    assert found.head_risk == pytest.approx([found.head_risk[0]] * 3, rel=EXACT)
