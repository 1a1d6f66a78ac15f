"""The demo's parts: data, training, and the comparison of fused with reference."""

from types import SimpleNamespace

import numpy
import pytest
import torch

import fastnest
from fastnest import models
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


ROWS = numpy.arange(18.0).reshape(9, 2)
Y = ROWS[:, 0] / 4


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": ROWS}, "must hold arrays x and y, got x"),
        ({"x": ROWS, "y": numpy.array([{}] * 9)}, "cannot be read as a .npz: Object arrays cannot be loaded"),
        ({"x": ROWS.astype(complex), "y": Y}, "rows: x must hold numbers, got complex128"),
        ({"x": ROWS.astype(str), "y": Y}, "rows: x must hold numbers, got <U32"),
        ({"x": ROWS, "y": numpy.full(9, numpy.nan)}, "row 1, column y: numbers must be finite, got nan"),
        (
            {"x": ROWS[:, 0], "y": Y},
            r"height, width\] with at least 8 rows and y as long, got x \[9\], y \[9\]",
        ),
        ({"x": ROWS, "y": Y[:8]}, r"got x \[9, 2\], y \[8\]"),
        ({"x": ROWS[:, :0], "y": Y}, r"got x \[9, 0\], y \[9\]"),
    ],
)
def test_bad_npz(arrays, said, tmp_path):
    numpy.savez(tmp_path / "rows.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        data.load(str(tmp_path / "rows.npz"))


def parquet(path, **columns):
    pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").table(columns), path)


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_files_that_are_cut_short(form, tmp_path):
    path = tmp_path / f"rows.{form}"
    if form == "npz":
        numpy.savez_compressed(path, x=ROWS, y=Y)
    else:
        parquet(path, a=ROWS[:, 0], b=Y)
    whole = path.read_bytes()
    assert len(data.load(str(path)).x) == 7
    broken = bytearray(whole)
    broken[60:90] = bytes(30)
    for content in (b"", whole[:20], whole[:-20], whole[len(whole) // 2 :], b"PK" + whole[2:100], bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"rows.{form}:? cannot be read as a .{form}"):
            data.load(str(path))


def test_images_are_standardised_by_channel(tmp_path):
    images = numpy.random.default_rng(0).integers(0, 256, size=(20, 3, 4, 5), dtype=numpy.uint8)
    images[:, 2] = 7
    numpy.savez(tmp_path / "images.npz", x=images, y=numpy.arange(20) % 2 == 0)
    found = data.load(str(tmp_path / "images.npz"))
    assert found.x.shape == (15, 3, 4, 5)
    assert found.outputs == 2
    assert found.x.mean((0, 2, 3)).allclose(torch.zeros(3), atol=1e-5)
    assert found.x[:, :2].std((0, 2, 3)).allclose(torch.ones(2), atol=1e-2)
    assert found.x[:, 2].eq(0).all()
    assert "15 training and 5 held-out rows of 3 x 4 x 5, 2 classes" in str(found)
    with pytest.raises(ValueError, match="resnest: data must be rows of features, got images of 3 x 4 x 5"):
        training.build("resnest", found, 8, 2, seed=0)


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


@pytest.mark.skipif(not CPP, reason="there is nothing to time: the C++ kernels are not built")
def test_speed_is_measured_and_shown(monkeypatch, capsys):
    """By a real measurement, without torch.compile, which takes a minute."""
    monkeypatch.setattr(run.contest, "COMPILED", {})
    model = models.ResNEst(8, 3, width=16, bottleneck=4, blocks=2)
    trained = SimpleNamespace(kind="resnest", model=model, data=SimpleNamespace(x=torch.randn(32, 8)))
    rows = run.speed(trained)
    for row in rows:
        for figures in filter(None, (row["median_us"], row["memory"])):
            assert figures.keys() >= {"fastnest", "eager"}
            figures["compile"] = figures["eager"]
    run.table(rows)
    assert "ResNEst train" in capsys.readouterr().out
