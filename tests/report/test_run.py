"""The command: its two files, its options, and what it says of input that does not fit."""

import html.parser
import json
import re

import numpy
import pytest
import torch

from fastnest import cli, theory
from fastnest.demo import data, training
from fastnest.report import page, run

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Checked(html.parser.HTMLParser):
    """Every element is closed in its turn; collects text, tags and attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text


def report(tmp_path, *arguments: str) -> tuple[Checked, dict]:
    assert cli.main(["report", *arguments, "--out", str(tmp_path / "out")]) == 0
    pages, numbers = sorted((tmp_path / "out").glob("*.html")), sorted((tmp_path / "out").glob("*.json"))
    assert len(pages) == len(numbers) == 1
    assert pages[0].stem == numbers[0].stem
    return Checked(pages[0].read_text(encoding="utf-8")), json.loads(numbers[0].read_text(encoding="utf-8"))


QUICK = ["--epochs", "2", "--width", "24", "--blocks", "2"]


def test_digits(tmp_path, capsys):
    shown, found = report(tmp_path, "--data", "digits", *QUICK)
    said = capsys.readouterr().out
    assert (tmp_path / "out" / "report-digits-resnest.html").exists()
    assert str(tmp_path / "out" / "report-digits-resnest.json") in said
    assert found["verdict"]["headline"] in said
    assert "ResNEst on digits" in shown.text
    # The same training again gives the same numbers.
    digits = data.load("digits")
    model, _ = run._trained(digits, run.Options("digits", epochs=2, width=24, blocks=2))
    assert found["risks"]["model"] == theory.empirical_risk(model, digits.x, digits.y)
    assert found["risks"]["gap"] == theory.risk_gap(model, digits.x, digits.y).gap
    for value in (found["risks"]["model"], found["risks"]["linear"], found["risks"]["gap"]):
        assert f"{value:.3g}" in shown.text


@pytest.mark.parametrize("model", training.KINDS)
def test_page_stands_alone(model, tmp_path):
    shown, _ = report(tmp_path, "--data", "iris", "--model", model, *QUICK)
    for tag, name, value in shown.attributes:
        if name in ("src", "srcset", "data", "action", "poster", "background"):
            raise AssertionError(f"{tag} loads {value}")
        if name.endswith("href"):
            assert value == page.PAPER or value.startswith("#"), f"{tag} {name}={value}"
        assert not name.startswith("on")
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(shown.tags)
    assert "url(http" not in shown.text
    assert "@import" not in shown.text
    ids = [value for _, name, value in shown.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, name, value in shown.attributes if name.endswith("href") and value.startswith("#")]
    targets += [found for _, _, value in shown.attributes for found in re.findall(r"url\(#([^)]*)\)", value or "")]
    assert set(targets) <= set(ids)
    labels = [value for tag, name, value in shown.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == shown.tags.count("svg") == 2
    assert ("html", "lang", "en") in shown.attributes
    assert [tag for tag in shown.tags if tag in ("h1", "h2")].index("h1") == 0


def test_trains_with_the_loss_it_reports(tmp_path):
    sizes = ["--epochs", "100", "--rate", "0.01", "--width", "24", "--blocks", "2"]
    for loss in ("squared", "cross_entropy"):
        (tmp_path / loss).mkdir()
        _, found = report(tmp_path / loss, "--data", "wine", "--loss", loss, *sizes)
        assert found["loss"] == loss
        assert found["risks"]["model"] < 0.2


@pytest.mark.parametrize("model", training.KINDS)
def test_saved_model(model, tmp_path):
    path = tmp_path / "my <model>.pt"
    train = ["train", "diabetes", "--model", model, "--width", "16", "--blocks", "2", "--epochs", "2"]
    assert cli.main([*train, "--save", str(path)]) == 0
    shown, found = report(tmp_path, str(path), "--data", "diabetes")
    assert (tmp_path / "out" / "report-diabetes-my-model.html").exists()
    assert found["model"]["origin"] == {"file": "my <model>.pt"}
    assert "my <model>.pt" in shown.text
    assert "model" not in shown.tags
    diabetes = data.load("diabetes")
    again = training.build(model, diabetes, 16, 2, seed=0)
    again.load_state_dict(torch.load(path))
    assert found["risks"]["model"] == theory.empirical_risk(again, diabetes.x, diabetes.y)


def test_hostile_names_are_escaped(tmp_path):
    path = tmp_path / "<script>alert(1)<&quot;svg onload='x'>.csv"
    x = numpy.random.default_rng(0).normal(size=(20, 2))
    path.write_text('<b>,"\'",<img src=x>\n' + "".join(f"{a},{b},{a * b}\n" for a, b in x))
    shown, found = report(tmp_path, "--data", str(path), "--target", "<img src=x>", *QUICK)
    assert found["data"]["name"] == path.stem
    assert path.stem in shown.text
    assert not {"script", "img", "b"} & set(shown.tags)
    assert shown.tags.count("svg") == 2
    assert len(list((tmp_path / "out").glob("report-script-alert-1-*"))) == 2


def table(path, x, y):
    """One table in every format."""
    if path.suffix == ".npz":
        numpy.savez(path, x=x, y=y)
    elif path.suffix == ".csv":
        path.write_text("a,b,y\n" + "".join(f"{a},{b},{c}\n" for (a, b), c in zip(x.tolist(), y.tolist(), strict=True)))
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"a": x[:, 0], "b": x[:, 1], "y": y}), path)
    return path


def test_every_format_is_the_same_table(tmp_path):
    x = numpy.random.default_rng(0).normal(size=(40, 2))
    every = []
    for form in ("csv", "npz", "parquet"):
        (tmp_path / form).mkdir()
        path = table(tmp_path / f"rows.{form}", x, x[:, 0] * x[:, 1])
        every.append(report(tmp_path / form, "--data", str(path), *QUICK)[1])
    readings = [found["data"].pop("reading") for found in every]
    assert every[0] == every[1] == every[2]
    assert [one["target"] for one in readings] == ["y"] * 3
    assert [one["features"] for one in readings] == [["a", "b"], [], ["a", "b"]]
    assert all(one["target_is"] == "regression: numbers with a fraction" for one in readings)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "digitz"], "data must be a .csv, .tsv, .txt, .parquet, .npz or one of digits"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--data", "diabetes", "--loss", "cross_entropy"], "--loss cross_entropy needs classes"),
        (["nowhere.pt", "--data", "iris"], "nowhere.pt"),
        (["model.pt", "--data", "iris", "--width", "8", "--seed", "1"], "--width, --seed: only for training"),
        (["--data", "iris", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["model.pt", "--data", "digits"], "does not fit the rows of digits, of size 64"),
        (["model.pt", "--data", "diabetes"], "does not fit the rows of diabetes"),
        (["outputs.pt", "--data", "iris"], "must have as many outputs as iris has classes, 3, got 2"),
        (["model.pt", "--data", "iris", "--activation", "sine"], "activation"),
        (["--data", "images.npz"], "data must be rows of features, got images of 3 x 8 x 8"),
        (["model.pt", "--data", "images.npz"], "does not fit the rows of images, of size 3 x 8 x 8"),
        ([".", "--data", "iris"], "Is a directory"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    iris = data.load("iris")
    model = training.build("resnest", iris, 16, 2, seed=0)
    torch.save(model.state_dict(), "model.pt")
    torch.save({**model.state_dict(), "head.weight": torch.zeros(2, 16)}, "outputs.pt")
    numpy.savez("images.npz", x=numpy.random.default_rng(0).normal(size=(9, 3, 8, 8)), y=numpy.arange(9) % 3)
    assert cli.main(["report", *arguments]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastnest")]
    assert len(error) == 1
    assert error[0].startswith("fastnest report: ")
    assert said in error[0]
    assert not (tmp_path / "out").exists()
