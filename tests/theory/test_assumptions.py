"""Assumptions 1, 3 and 4: what holds, by how much, and what is said of it."""

import copy

import numpy
import pytest
import torch
from theory.networks import NARROW, RANDOM_FEW, RANDOM_WIDE, WIDE, build, linear_maps, over, random_data

from fastnest import models, theory


@over(*WIDE, *NARROW, *RANDOM_FEW)
def test_numbers(case):
    """Ranks, condition numbers and the cross-moment by NumPy."""
    model, x, y = build(case)
    found = theory.check_assumptions(model, x, y)
    v = model.features(x)[-1].detach().numpy()
    first = found.first.numbers
    cross = numpy.linalg.norm(v.T @ y.numpy()) / (numpy.linalg.norm(v) * numpy.linalg.norm(y.numpy()))
    assert first["cross_moment"] == pytest.approx(cross, rel=1e-9)
    assert first["rank"] == numpy.linalg.matrix_rank(v)
    assert first["features"] == v.shape[1]
    # A condition number c is known to c roundings of 1e-16 times the sizes.
    assert first["condition"] == pytest.approx(numpy.linalg.cond(v), rel=1e-9)
    assert found.first.margin == pytest.approx(min(cross, 1 / numpy.linalg.cond(v)), rel=1e-9)
    assert found.first

    o, m = model.head.weight.shape
    assert found.third.numbers == {"width": m, "outputs": o}
    assert found.third.margin == m - o
    assert bool(found.third) is (m >= o)

    W = torch.cat(linear_maps(model)[:-1], 1).numpy()
    fourth = found.fourth.numbers
    rank, columns = int(numpy.linalg.matrix_rank(W)), W.shape[1]
    assert (fourth["rank"], fourth["columns"], fourth["width"]) == (rank, columns, m)
    assert bool(found.fourth) is (rank == columns)
    condition = numpy.linalg.cond(W) if rank == columns else numpy.inf
    assert fourth["condition"] == pytest.approx(condition, rel=1e-9)
    assert found.fourth.margin == pytest.approx(1 / condition, rel=1e-9)
    assert found.guaranteed == (m >= o and rank == columns)


def test_assumption_1_needs_a_cross_moment():
    """y less all that v_L says of it linearly, and a y of zeros."""
    model, x, y = build(RANDOM_WIDE[0])
    q = torch.linalg.qr(model.features(x)[-1].detach()).Q
    for targets in (y - q @ (q.T @ y), 0 * y):
        found = theory.check_assumptions(model, x, targets).first
        assert not found
        assert found.numbers["cross_moment"] <= 1e-14  # rounding
        assert found.numbers["rank"] == 3
        assert found.margin <= 1e-14


def test_assumption_1_needs_independent_features():
    model, x, y = build(RANDOM_WIDE[0])
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.chain.down[-1, 1] = model.chain.down[-1, 0]
        model.chain.down_bias[-1, 1] = model.chain.down_bias[-1, 0]
    found = theory.check_assumptions(model, x, y).first
    assert not found
    assert found.numbers["rank"] == 2
    assert found.numbers["condition"] == numpy.inf
    assert found.margin == 0


def test_assumption_4_needs_a_place_for_every_feature():
    """W_1 in the span of W_0: as many columns as before, and none of them new."""
    model, x, y = build(RANDOM_WIDE[0])
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.chain.up[0] = model.expand.weight[:, :3] @ torch.randn(3, 3, dtype=torch.float64)
    found = theory.check_assumptions(model, x, y)
    assert not found.fourth
    assert found.fourth.numbers["rank"] == found.fourth.numbers["columns"] - 3
    assert not found.guaranteed
    # W_L is no part of it.
    model, x, y = build(RANDOM_WIDE[0])
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.chain.up[-1] = 0
    assert theory.check_assumptions(model, x, y).fourth


def test_other_models():
    """An A-ResNEst has no head on a stream; a DenseNEst's stream is its features; a stream of images is not linear in
    what is known of it."""
    model, x, y = build(RANDOM_WIDE[0])
    found = theory.check_assumptions(theory.augment(model), x, y)
    assert found.third.holds is None
    assert not found.third
    assert found.fourth.numbers == theory.check_assumptions(model, x, y).fourth.numbers
    assert not found.guaranteed

    dense = models.DenseNEst(4, 2, growth=3, blocks=2, activation="gelu", dtype=torch.float64)
    found = theory.check_assumptions(dense, x, y)
    assert found.third.numbers == {"width": 10, "outputs": 2}
    assert found.fourth.numbers == {"rank": 7, "columns": 7, "width": 10, "condition": 1}
    assert found.guaranteed

    torch.manual_seed(0)
    net = models.cifar("resnet_20", "resnest", 3)
    found = theory.check_assumptions(net, torch.randn(80, 3, 16, 16), torch.arange(80) % 3)
    assert found.third.numbers == {"width": 64, "outputs": 3}
    assert found.fourth.holds is None


def test_says_what_holds():
    model, x, y = build(NARROW[0])
    lines = str(theory.check_assumptions(model, x, y)).splitlines()
    assert lines[0].startswith("assumption 1 holds: v_L and y have a cross-moment of ")
    assert lines[1] == "assumption 3 holds: width 4, outputs 2"
    assert lines[2] == "assumption 4 does not hold: [W_0, ..., W_(L-1)] has rank 4 of 12 columns, of 4 each"
    lines = str(theory.check_assumptions(theory.augment(model), x, y)).splitlines()
    assert lines[1] == "assumption 3 does not apply: the model has no linear map behind a stream"


def test_classes_are_vectors_of_zeros_and_a_one():
    torch.manual_seed(0)
    x, y = random_data(4, 3)
    model = models.ResNEst(4, 3, width=12, bottleneck=2, blocks=2, activation="gelu", dtype=torch.float64)
    labels = y.argmax(1)
    found = theory.check_assumptions(model, x, labels)
    expected = theory.check_assumptions(model, x, torch.nn.functional.one_hot(labels).double())
    assert found.first == expected.first
    assert found.third.numbers["outputs"] == 3
