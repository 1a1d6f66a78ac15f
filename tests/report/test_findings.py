"""The numbers of a report are those of fastnest.theory, and its words follow from them."""

import json
import math
from itertools import pairwise

import numpy
import pytest
import torch

from fastnest import models, theory
from fastnest.demo import data
from fastnest.report import findings, words

ORIGIN = {"file": "model.pt"}


def dataset(classes: bool = False, n: int = 120) -> data.Dataset:
    x = numpy.random.default_rng(0).normal(size=(n, 4))
    signal = numpy.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.5 * x[:, 3:]
    y = (signal[:, 0] > 0).astype(int) + (signal[:, 0] > 1) if classes else numpy.hstack([signal, x[:, :1] ** 2])
    return data.split("made", x, y)


def build(kind: str, outputs: int, **sizes) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "densenest":
        return models.DenseNEst(4, outputs, growth=3, blocks=3)
    sizes = {"width": 20, "bottleneck": 3, "blocks": 3, **sizes}
    if kind == "aresnest":
        return models.AResNEst(4, outputs, **sizes)
    return models.ResNEst(4, outputs, head_norm=kind == "bn_resnest", **sizes)


def gather(kind: str, rows: data.Dataset, loss: str = "squared", **sizes) -> tuple[torch.nn.Module, dict]:
    model = build(kind, rows.outputs, **sizes)
    return model, findings.gather(model, rows, loss=loss, origin=ORIGIN)


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("kind", ["resnest", "bn_resnest", "aresnest", "densenest"])
def test_numbers_are_those_of_theory(kind, classes):
    rows = dataset(classes)
    model, found = gather(kind, rows)
    risks, profile = found["risks"], theory.block_profile(model, rows.x, rows.y)
    head = theory.linear_head(theory.features(model, rows.x), rows.y)
    assert risks["model"] == theory.empirical_risk(model, rows.x, rows.y)
    assert risks["heads"] == pytest.approx(head.risk, rel=1e-9)
    assert risks["linear"] == pytest.approx(theory.best_linear_predictor(rows.x, rows.y).risk, rel=1e-12)
    assert [row["head_risk"] for row in found["blocks"]] == profile.head_risk
    assert [row["unpredictability"] for row in found["blocks"]] == profile.unpredictability
    assert [row["stream_risk"] for row in found["blocks"] if row["stream_risk"] is not None] == profile.stream_risk
    assert sum(row["share"] for row in found["blocks"][1:]) == pytest.approx(1)
    assumptions = theory.check_assumptions(model, rows.x, rows.y)
    assert [found["assumptions"][name]["holds"] for name in "1234"] == [
        assumptions.first.holds, True, assumptions.third.holds, assumptions.fourth.holds
    ]  # fmt: skip
    if kind == "resnest":
        gap, point = theory.risk_gap(model, rows.x, rows.y), theory.critical_point(model, rows.x, rows.y)
        assert (risks["last_maps"], risks["heads"], risks["gap"]) == (gap.risk, gap.augmented_risk, gap.gap)
        same = ("verdict", "risk", "gradient_norm", "least_eigenvalue", "escaped_risk", "rank")
        assert [found["critical_point"][name] for name in same] == [getattr(point, name) for name in same]
    else:
        assert risks["gap"] is None
        assert risks["gap_why_not"] in found["critical_point_words"]
        assert found["critical_point"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("kind", "sizes", "holds", "headline"),
    [
        ("resnest", {}, True, "Every guarantee of a wide ResNEst holds"),
        ("resnest", {"width": 6}, False, "Assumption 4 does not hold: a stream of width 6 for 10 features."),
        ("resnest", {"width": 1}, False, "Assumption 3 does not hold: width 1 for 2 outputs. Assumption 4"),
        ("bn_resnest", {}, None, "The paper guarantees nothing for this model"),
        ("aresnest", {}, True, "The guarantees of an A-ResNEst hold"),
        ("densenest", {}, True, "The guarantees of a DenseNEst hold"),
    ],
)
def test_verdict(kind, sizes, holds, headline):
    _, found = gather(kind, dataset(), **sizes)
    verdict = found["verdict"]
    assert verdict["holds"] is holds
    assert verdict["headline"].startswith(headline)
    paper = {"resnest": "Corollary 2", "densenest": "Proposition 3", "aresnest": "Corollary 1"}.get(kind)
    best, own = found["bounds"]
    assert best["paper"] == paper
    said = " ".join(verdict["sentences"])
    assert f"{words.number(best['risk'])} {'≤' if best['holds'] else '>'} {words.number(best['linear'])}" in said
    for bound in (best, own):
        assert bound["holds"] == (bound["risk"] <= bound["linear"] * (1 + 1e-9))
    assert best["holds"] or not holds
    if sizes:
        assert "The coupling of the last two linear maps costs" in said


def test_dead_features_of_the_last_block():
    rows = dataset()
    model = build("resnest", rows.outputs)
    with torch.no_grad():
        model.chain.down_bias[-1, 0] = -1e6
    verdict = findings.gather(model, rows, origin=ORIGIN)["verdict"]
    assert verdict["holds"]
    assert verdict["headline"].startswith("The guarantees about the risk of a wide ResNEst hold")
    assert "Assumption 1, about its landscape, does not" in verdict["sentences"][1]


def test_dependent_maps_of_a_wide_model():
    rows = dataset()
    model = build("resnest", rows.outputs)
    with torch.no_grad():
        model.chain.up[1] = model.chain.up[0]
    found = findings.gather(model, rows, origin=ORIGIN)
    assert found["verdict"]["headline"] == "Assumption 4 does not hold: the maps have rank 7 of 10."
    assert found["assumptions"]["4"]["numbers"]["condition"] is None  # infinite


@pytest.mark.parametrize("kind", ["resnest", "aresnest"])
def test_cross_entropy(kind):
    rows = dataset(classes=True)
    model, found = gather(kind, rows, "cross_entropy")
    assert found["risks"]["model"] == theory.empirical_risk(model, rows.x, rows.y, loss="cross_entropy")
    assert found["risks"]["heads"] < found["risks"]["linear"] < math.log(3)
    assert found["critical_point"] is None
    if kind == "resnest":
        assert found["critical_point_words"] == [words.OTHER_LOSS]
        assert found["risks"]["gap"] == pytest.approx(0, abs=1e-6)


def test_separable_classes_are_said():
    x = numpy.random.default_rng(0).normal(size=(40, 4))
    _, found = gather("aresnest", data.split("made", x, (x[:, 0] > 0).astype(int)), "cross_entropy")
    assert not found["risks"]["attained"]
    assert "can be separated" in " ".join(found["verdict"]["sentences"])


def test_narrow_model_has_no_gap_in_cross_entropy():
    _, found = gather("resnest", dataset(classes=True), "cross_entropy", width=2)
    assert found["risks"]["gap"] is None
    assert "where assumption 3 holds" in found["risks"]["gap_why_not"]
    assert found["risks"]["gap_why_not"] in found["verdict"]["sentences"]


def test_more_features_than_rows_are_said():
    rows = dataset(n=12)
    _, found = gather("resnest", rows)
    assert found["risks"]["heads"] < 1e-20
    assert "13 features are enough to fit any 9 rows" in " ".join(found["verdict"]["sentences"])
    assert all(bound["holds"] for bound in found["bounds"][:1])


def test_many_weights_go_without_the_hessian(monkeypatch):
    rows = dataset()
    model, whole = gather("resnest", rows)
    monkeypatch.setattr(findings, "HESSIAN", 0)
    part = findings.gather(model, rows, origin=ORIGIN)["critical_point"]
    assert part.keys() == whole["critical_point"].keys()
    for name, value in part.items():
        if value is None:
            assert name in ("least_eigenvalue", "largest_eigenvalue", "escaped_risk", "step")
        else:
            assert value == whole["critical_point"][name] or value == pytest.approx(whole["critical_point"][name])
    assert "eigenvalues are left out" in words.critical_point(part)[-1]


def test_a_minimiser_is_said():
    rows = dataset()
    double = (t.double() for t in (rows.x, rows.y, rows.x_held_out, rows.y_held_out))
    rows = data.Dataset(rows.name, *double, rows.outputs, rows.scale)
    model = build("resnest", rows.outputs).double()
    best = theory.optimal_prediction(model, rows.x, rows.y)
    with torch.no_grad():
        model.chain.up[-1] = best.W_L
        model.head.weight.copy_(best.W_Lp1)
    found = findings.gather(model, rows, origin=ORIGIN)
    assert found["critical_point"]["verdict"] == "global minimiser"
    assert found["critical_point_words"][0].startswith("The last two maps are a global minimiser")
    assert found["bounds"][1]["holds"]
    assert found["bounds"][1]["risk"] == pytest.approx(found["bounds"][0]["risk"])


@pytest.mark.parametrize("verdict", ["not critical", "global minimiser", "strict saddle", "degenerate", "undecided"])
@pytest.mark.parametrize("escaped", [2.0, 3.0])
def test_critical_points_in_words(verdict, escaped):
    at = {"verdict": verdict, "risk": 3.0, "least_risk": 1.0, "gradient_norm": 0.0, "gradient_scale": 0.0, "rank": 1}
    at |= {"full_rank": False, "outputs": 2, "weights": 9, "least_eigenvalue": -1.0, "largest_eigenvalue": 4.0}
    first, *_, rank, curvature = words.critical_point(at | {"escaped_risk": escaped, "step": 1.0})
    assert "risk 3" in first
    assert "W_(L+1) has rank 1 of 2: not full" in rank
    assert ("lowers the risk to 2." in curvature) == (escaped < 3)


@pytest.mark.parametrize("kind", ["resnest", "standard", "a_resnest", "densenest"])
def test_images(kind):
    generator = numpy.random.default_rng(0)
    images = generator.integers(0, 256, size=(40, 3, 8, 8), dtype=numpy.uint8)
    rows = data.split("images", images, generator.integers(0, 3, 40))
    torch.manual_seed(0)
    dense = kind == "densenest"
    model = models.densenest("bc_100_12", 3, head_norm_act=False) if dense else models.cifar("resnet_20", kind, 3)
    found = findings.gather(model, rows, origin=ORIGIN)
    assert found["risks"]["linear_of"] == "v_0"
    # The averages v_0 are taken in float32, in two places.
    assert found["risks"]["linear"] == pytest.approx(found["blocks"][0]["head_risk"], abs=64 * 2**-23)
    assert found["verdict"]["holds"] is (True if kind in ("a_resnest", "densenest") else None)
    assert found["model"]["inputs"] == 3 * 8 * 8
    assert len(found["blocks"]) == (17 if dense else 10)


def test_blocks_in_words():
    def rows(*risks, stream=None):
        every = risks[0] - risks[-1]
        shares = [None, *((a - b) / every if every else None for a, b in pairwise(risks))]
        columns = zip(range(len(risks)), risks, stream or risks, shares, strict=True)
        return [dict(zip(("block", "head_risk", "stream_risk", "share"), row, strict=True)) for row in columns]

    said = words.blocks(rows(4, 2, 1.99, 1))
    assert "block 1 (66.7 %), block 3 (33 %) and block 2 (0.333 %)" in said[1]
    assert said[2] == "Next to nothing comes from block 2."
    assert words.blocks(rows(1, 1, 1))[-1] == "No block lowers it."
    assert "In block 2 the stream loses something" in words.blocks(rows(4, 2, 1, stream=[4, 2, 3]))[-1]


@pytest.mark.parametrize(
    ("value", "said"), [(None, "–"), (0.0, "0"), (1e-17, "0 to rounding"), (0.123456, "0.1235"), (561.08, "561.1")]
)
def test_numbers_in_words(value, said):
    assert words.number(value) == said
