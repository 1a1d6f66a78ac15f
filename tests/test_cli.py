"""The command line."""

import json
import subprocess
import sys

import numpy
import pytest
import torch
from marks import needs_cpp

import fastnest
from fastnest import _backend, _optional, cli

CPP = fastnest.backends()["cpp"] == "available"


def test_module_runs():
    result = subprocess.run([sys.executable, "-m", "fastnest", "info"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"fastnest {fastnest.__version__}, torch {torch.__version__}" in result.stdout


def test_info_names_backends_and_kernels(capsys):
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in fastnest.backends())
    assert ("(in use)" in said) == CPP


@needs_cpp
@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (None, "cuda         none\n"),
        ({"nvcc": "13.0", "architectures": ["sm_80", "compute_80"]}, "cuda         nvcc 13.0 for sm_80, compute_80\n"),
    ],
)
def test_info_says_for_which_gpus(cuda, said, capsys, monkeypatch):
    monkeypatch.setattr(_backend._C, "build_info", lambda: {"compiler": "gcc", "cuda": cuda})
    assert cli.main(["info"]) == 0
    assert said in capsys.readouterr().out


def test_info_without_kernels_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(fastnest, "backends", lambda: {"reference": "available", "cpp": "not built"})
    assert cli.main(["info"]) == 0
    assert "install a C++ compiler" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["train"], ["train", "digits", "--model", "resnet"]])
def test_wrong_call(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: fastnest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "iriss"], "one of digits"),
        (["train", "nowhere.csv"], "nowhere.csv"),
        (["bench", "no such case"], "no case has" if CPP else "nothing to compare"),
        (["bench", "--show", "nowhere.json"], "nowhere.json"),
        (["bench", "ResNEst", "--show"], "--show prints all of a file"),
        (["bench", "--readme", "README.md"], "--pictures and --readme need --show"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith(f"fastnest {arguments[0]}: ")


def test_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    assert cli.main(["train", "iris"]) == 2
    assert 'this needs scikit-learn: pip install "fastnest-torch[demo]"' in capsys.readouterr().err


def test_optional_lets_other_errors_through():
    with pytest.raises(_optional.MissingExtra, match=r"this needs nonesuch: pip install .*\[plot\]"):
        _optional.optional("nonesuch.part", "plot")
    assert _optional.optional("json.decoder", "plot") is json.decoder


@pytest.mark.parametrize("model", ["resnest", "aresnest", "densenest"])
def test_train_on_csv(model, tmp_path, capsys):
    x = numpy.random.default_rng(0).normal(size=(200, 3))
    lines = [f"{a},{'yes' if a + b > 0 else 'no'},{b},{c}" for a, b, c in x]
    (tmp_path / "rows.csv").write_text("a,wanted,b,c\n" + "\n".join(lines) + "\n")
    saved = tmp_path / "model.pt"
    common = [str(tmp_path / "rows.csv"), "--target", "wanted", "--model", model, "--save", str(saved)]
    assert cli.main(["train", *common, "--width", "16", "--blocks", "2", "--epochs", "60", "--rate", "0.01"]) == 0
    said = capsys.readouterr().out
    assert "150 training and 50 held-out rows of 3, 2 classes" in said
    assert float(said.partition("accuracy ")[2].partition("%")[0]) > 75
    assert "head.weight" in torch.load(saved)


def test_train_on_npz(tmp_path, capsys):
    x = numpy.random.default_rng(0).normal(size=(80, 4))
    numpy.savez(tmp_path / "rows.npz", x=x, y=1000 * x[:, 0] - 500 * x[:, 1] + 7)
    arguments = [
        "train",
        str(tmp_path / "rows.npz"),
        "--width",
        "16",
        "--blocks",
        "2",
        "--epochs",
        "60",
        "--rate",
        "0.01",
    ]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "regression of 1 values" in said
    assert float(said.partition("R^2 ")[2].partition(",")[0]) > 0.8
