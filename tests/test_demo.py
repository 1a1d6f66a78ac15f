"""The demo's parts: data, training, and the comparison of fused with reference. Its timing is not run here."""

import numpy
import pytest
import torch

import fastnest
from fastnest.demo import data, plot, run, training

pytest.importorskip("sklearn")
CPP = fastnest.backends()["cpp"] == "available"


@pytest.mark.parametrize("kind", training.KINDS)
@pytest.mark.parametrize("name", run.SETTINGS)
def test_fused_training_equals_reference(kind, name, capsys):
    trained = run.train(kind, data.load(name), epochs=2)
    assert run.report(trained)
    said = capsys.readouterr().out
    assert ("equal to rounding" in said) == CPP
    assert set(trained.fits) == {"reference", *(["cpp"] if CPP else [])}
    for fit in trained.fits.values():
        assert fit.losses[-1] < fit.losses[0]


def test_unequal_is_reported(capsys):
    trained = run.train("resnest", data.load("diabetes"), epochs=1)
    trained.fits.setdefault("cpp", trained.fits["reference"])
    trained.scores.setdefault("cpp", trained.scores["reference"])
    trained.error, trained.plain = 2e-6, 1e-7
    assert not run.report(trained)
    assert "NOT EQUAL" in capsys.readouterr().out


def test_digits_are_learnt():
    digits = data.load("digits")
    model = training.build("resnest", digits, 128, 8, seed=0)
    training.fit(model, digits, epochs=5, rate=2e-3)
    assert training.score(model, digits).value > 0.95


def test_regression_score_is_in_the_targets_unit():
    x = numpy.random.default_rng(0).normal(size=(40, 2))
    dataset = data.split("line", x, 300 * x[:, :1] + 1000)
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():  # predicts the training mean for every row
        model.weight.zero_()
        model.bias.zero_()
    score = training.score(model, dataset)
    expected = (dataset.y_held_out * dataset.scale).double().square().mean().sqrt()
    assert score.rmse == pytest.approx(float(expected), rel=1e-6)
    assert score.value <= 0
    assert str(score).startswith("R^2 ")


def test_split_standardises_by_training_rows_and_keeps_rows_apart():
    x = numpy.arange(80.0).reshape(20, 4)
    x[:, 3] = 5  # a constant column
    dataset = data.split("some", x, numpy.arange(20) % 3)
    assert (len(dataset.x), len(dataset.x_held_out), dataset.outputs) == (15, 5, 3)
    assert dataset.x[:, :3].std(0).allclose(torch.ones(3))
    assert dataset.x[:, 3].eq(0).all()
    rows = torch.cat([dataset.x, dataset.x_held_out])[:, 0]
    assert len(rows.unique()) == 20


@pytest.mark.parametrize(
    ("text", "kind", "outputs"),
    [("1,2\n3,4\n", "classes", 2), ("1,2.5\n3,4\n", "values", 1), ("1,u\n3,v\n", "classes", 2)],
)
def test_csv_targets(text, kind, outputs, tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n" + 8 * text)
    dataset = data.load(str(tmp_path / "rows.csv"))
    assert (dataset.is_classification, dataset.outputs) == (kind == "classes", outputs)
    if "u" not in text:
        assert not data.load(str(tmp_path / "rows.csv"), regression=True).is_classification


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        ("a,b\n" + "1,2\n" * 9, "c", "target must be one of a, b, got 'c'"),
        ("a,b\n" + "x,2\n" * 9, None, "every column but the target must hold numbers"),
        ("a,b\n" + "1,2\n" * 3, None, "at least 8 rows"),
    ],
)
def test_bad_csv(text, target, said, tmp_path):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        data.load(str(tmp_path / "rows.csv"), target=target)


def test_bad_npz(tmp_path):
    numpy.savez(tmp_path / "rows.npz", x=numpy.zeros((9, 2)))
    with pytest.raises(ValueError, match="must hold arrays x and y, got x"):
        data.load(str(tmp_path / "rows.npz"))


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    trained = run.train("resnest", data.load("diabetes"), epochs=1)
    median = {"fastnest": 1.0, "eager": 2.0, "compile": 3.0}
    rows = [
        {"subject": "ResNEst", "mode": mode, "sizes": {"n": 9}, "median_us": median, "memory": median if train else {}}
        for mode, train in (("forward", False), ("train", True))
    ]
    for shown in (rows, []):
        assert plot.draw([trained], shown, tmp_path / "sub" / "demo.png").read_bytes().startswith(b"\x89PNG")
    run.table(rows)
