"""Bad values on the command line: one line before anything is trained, measured or written, and never a traceback."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from fastnest import cli, options
from fastnest.benchmarks import report
from fastnest.demo import data, training
from fastnest.report import words
from fastnest.training import memory

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("pyarrow")

SMALL = "--epochs 1 --width 8 --blocks 2"
# command: what it says; `file` is there, `folder` too, `nowhere` is not
REFUSED = {
    # numbers
    "train iris --width 0": "--width must be at least 1, got 0",
    "train iris --width 1000000000000": "--width must be at most 2147483647, got 1000000000000",
    "train iris --width 100000000": "--width 100000000 and --blocks 8 would need",
    "train iris --blocks -1": "--blocks must be at least 1, got -1",
    "train iris --blocks 1000000000": "--blocks 1000000000 would need about 198,364.3 GiB of memory, and this",
    "train iris --model aresnest --blocks 1000000000": "would need",
    "train iris --model densenest --blocks 1000000000": "would need",
    "train iris --epochs 0": "--epochs must be at least 1, got 0",
    "train iris --epochs 1000000000000": "--epochs must be at most 1000000, got 1000000000000",
    **{f"{command} --rate {rate}": f"--rate must be a finite number more than 0, got {rate}"
       for command in ("train iris", "report --data iris", "train --synthetic") for rate in ("nan", "inf", "-1", "0")},
    f"train iris --rate 1e20 {SMALL}": "outputs must be finite, got NaN or Inf after the training: try a lower --rate",
    f"train digits --rate 1e20 {SMALL}": "the loss must stay finite, got nan in epoch 1: try a lower --rate",
    f"report --data iris --rate 1e20 {SMALL}": "features of iris must be finite",
    "train iris --seed 18446744073709551616": "--seed must be at most 18446744073709551615, got 18446744073709551616",
    "train iris --seed -9223372036854775809": "--seed must be at least -9223372036854775808",
    "report --data iris --seed 18446744073709551616": "--seed must be at most",
    "report --data iris --width 100000000": "would need more than a million GiB of memory",
    "report --data iris --epochs 0": "--epochs must be at least 1, got 0",
    "demo --epochs 0": "--epochs must be at least 1, got 0",
    "demo --epochs 10000000": "--epochs must be at most 1000000, got 10000000",
    "train --synthetic 7": "--synthetic must be at least 8 images, got 7",
    "train --synthetic -1": "--synthetic must be at least 8 images, got -1",
    "train --synthetic 1000000000000": "--synthetic 1000000000000 would need more than a million GiB of memory",
    "train --synthetic --batch 0": "--batch must be at least 1, got 0",
    "train --synthetic --batch 1000000000000": "--batch must be at most 2147483647, got 1000000000000",
    "train --synthetic --checkpoint-every 0": "--checkpoint-every must be at least 1, got 0",
    "bench --seconds nan": "--seconds must be a finite number more than 0, got nan",
    "bench --seconds 0": "--seconds must be a finite number more than 0, got 0",
    # files and folders to write
    f"train iris --save folder {SMALL}": "--save must name a file, got the folder folder",
    f"train iris --save nowhere/a.pt {SMALL}": "--save must name a file in a folder that is there, got nowhere/a.pt",
    f"train iris --save file/a.pt {SMALL}": "--save must name a file in a folder that is there, got file/a.pt",
    f"train iris --save /proc/a.pt {SMALL}": "--save: the folder /proc cannot be written to",
    f"train rows.csv --save rows.csv {SMALL}": "--save must name another file than the data, got rows.csv",
    "train --synthetic --save folder": "--save must name a file, got the folder folder",
    "train --synthetic --checkpoint folder": "--checkpoint must name a file, got the folder folder",
    "train --synthetic --checkpoint file/a": "--checkpoint: file must be a folder, got a file",
    "train --synthetic --checkpoint /proc/a/b": "--checkpoint: the folder /proc cannot be written to",
    "report --data iris --out file": "--out: file must be a folder, got a file",
    "report --data iris --out /proc/a": "--out: the folder /proc cannot be written to",
    "demo --out file": "--out: file must be a folder, got a file",
    "demo --out /proc/a": "--out: the folder /proc cannot be written to",
    "bench --out folder": "--out must name a file, got the folder folder",
    "bench --out file/a.json": "--out: file must be a folder, got a file",
    "bench --show --pictures file": "--pictures: file must be a folder, got a file",
    # data
    "train constant.npz": "target y has one value in every row, 3.5: there is nothing to learn",
    "report --data constant.npz": "target y has one value in every row, 3.5: there is nothing to learn",
    "report --data constant.csv --regression": "target y has one value in every row, 3: there is nothing to learn",
    "train images.npz": "data must be rows of features, got images of 3 x 8 x 8",
    "report --data images.npz": "data must be rows of features, got images of 3 x 8 x 8",
    "train rows.csv --classes --regression": "--classes and --regression exclude each other, got both",
    "report --data rows.csv --target z": "target must be one of a, y, got 'z'",
    "report --data iris --missing drop": "--missing: has no effect on iris",
    "train --synthetic --no-header": "--no-header: not for images",
    "train --synthetic --classes --missing drop": "--classes, --missing: not for images",
    "train file": "data must be a .csv, .tsv, .txt, .parquet, .npz or one of digits",
    "report --data folder": "data must be a .csv, .tsv, .txt, .parquet, .npz or one of digits",
    # results
    "bench --show file": "file cannot be read as JSON",
    "bench --show deep.json": "deep.json cannot be read as JSON: maximum recursion depth exceeded",
    "bench --show other.json": "what `fastnest bench` or `make gpu` has written, but machine is absent or of another",
    "bench --show list.json": "has written, but it is no object",
    "bench --show card.json": "has written, but runs is absent or of another type",
    "bench --show row.json": "has written, but conditions.fair.rows.0 is no object",
    "bench --show --readme file": "file must contain <!-- benchmarks: begin -->",
}  # fmt: skip


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("here\n")
    x = numpy.random.default_rng(0).normal(size=(20, 2))
    numpy.savez("constant.npz", x=x, y=numpy.full(20, 3.5))
    numpy.savez("images.npz", x=numpy.random.default_rng(0).normal(size=(20, 3, 8, 8)), y=numpy.arange(20) % 2)
    (tmp_path / "rows.csv").write_text("a,y\n" + "".join(f"{a},{b}\n" for a, b in x))
    (tmp_path / "constant.csv").write_text("a,y\n" + "".join(f"{a},3\n" for a, _ in x))
    (tmp_path / "deep.json").write_text("[" * 10_000)
    condition = {"rows": [1], "failures": [], "died": [], "not_run": [], "threads": 1, "peak_gflops": {}}
    result = {"machine": {}, "versions": {}, "date": "", "conditions": {"fair": condition}, "not_begun": []}
    for name, content in {"other": {}, "list": [], "card": {"card": "a GPU"}, "row": result}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("command", REFUSED)
def test_is_one_line(command, there, capsys):
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*")}
    assert cli.main(command.split()) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastnest")]
    assert len(error) == 1
    assert error[0].startswith(f"fastnest {command.split()[0]}: ")
    assert REFUSED[command] in error[0]
    assert {path: path.stat().st_mtime_ns for path in there.rglob("*")} == before


@pytest.mark.parametrize(
    "command",
    [
        f"train iris --seed -1 {SMALL}",
        f"train iris --seed 18446744073709551615 --save folder/a.pt {SMALL}",
        f"train rows.csv --save file {SMALL}",
        f"report --data rows.csv --out folder/new/new {SMALL}",
        f"report --data iris --seed -1 --out folder {SMALL}",
    ],
)
def test_runs(command, there, capsys):
    assert cli.main(command.split()) == 0, capsys.readouterr().err


def test_decisions_are_printed(there, capsys):
    (there / "some.csv").write_text("1.5;2.5;u\n?;2.5;u\n" + "1.5;3.5;v\n" * 10)
    assert cli.main(f"train some.csv --no-header --missing drop --target c3 {SMALL}".split()) == 0
    said = capsys.readouterr().out
    for part in (
        "target c3, 2 classes: u, v (words)",
        "features c1, c2",
        "12 rows read; separated by semicolons; no header: columns are named c1 to c3",
        "1 of 12 rows dropped",
    ):
        assert part in said
    assert cli.main(f"report --data some.csv --no-header --missing drop --out out {SMALL}".split()) == 0
    said = capsys.readouterr().out
    assert "1 of 12 rows dropped" in said
    found = json.loads((there / "out" / "report-some-resnest.json").read_text())["data"]["reading"]
    assert (found["target"], found["rows"], found["dropped"]) == ("c3", 12, 1)
    page = (there / "out" / "report-some-resnest.html").read_text()
    assert "c3, 2 classes: u, v (words)" in page
    assert "1 rows, where a value was missing" in page


def test_one_target_in_all_held_out_rows(there, capsys):
    """R^2 then has no meaning; the report says so."""
    x = numpy.random.default_rng(0).normal(size=(8, 2))
    apart = torch.randperm(8, generator=torch.Generator().manual_seed(0))[-2:].tolist()
    numpy.savez("held.npz", x=x, y=numpy.where(numpy.isin(numpy.arange(8), apart), 0.5, numpy.arange(8) + 0.25))
    assert len(data.load("held.npz").y_held_out.unique()) == 1
    assert cli.main(f"train held.npz {SMALL}".split()) == 0
    assert "R^2 undefined (one target in all held-out rows)" in capsys.readouterr().out
    assert cli.main(f"report --data held.npz --out out {SMALL}".split()) == 0
    assert "R² undefined (one target in all of them)" in capsys.readouterr().out
    assert words.score({"r2": 0.5, "rmse": 1.0}) == "R² 0.500, root mean square error 1"


def test_unwritable(there, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(options.tempfile, "TemporaryFile", refuse)  # root may write everywhere
    monkeypatch.setattr(options.os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"--save: the folder folder cannot be written to: Permission denied"):
        options.check_file("--save", Path("folder/a.pt"))
    with pytest.raises(ValueError, match=r"--save: file cannot be written to"):
        options.check_file("--save", Path("file"))
    with pytest.raises(ValueError, match=r"--out: the folder .* cannot be written to: Permission denied"):
        options.check_folder("--out", Path("new"))


def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "LIMIT_OF_GROUP", tmp_path / "limit")
    machine = memory.memory()
    (tmp_path / "limit").write_text("max\n")
    assert memory.memory() == machine
    (tmp_path / "limit").write_text("1048576\n")
    assert memory.memory() == 2**20
    iris = data.load("iris")
    training.build("resnest", iris, 8, 2, 0)
    with pytest.raises(ValueError, match="--width 1024 and --blocks 8 would need"):
        training.build("resnest", iris, 1024, 8, 0)
    monkeypatch.delattr(os, "sysconf")
    (tmp_path / "limit").unlink()
    assert memory.memory() == memory.UNKNOWN


def test_report_fits_into_memory(there, capsys, monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda: 2**20)
    assert cli.main("report --data digits --width 64 --blocks 4".split()) == 2
    assert re.search(r"a report on \d+ features of 1348 rows would need", capsys.readouterr().err)


def test_packages_are_asked_for_before_the_training(there, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command in (f"report --data iris {SMALL}", "demo"):
        assert cli.main(command.split()) == 2
        assert "this needs matplotlib" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["train", "rows.csv"]) == 2
    assert 'this needs pyarrow: pip install "fastnest-torch[demo]"' in capsys.readouterr().err


def test_every_number_has_limits():
    """What argparse reads as a number is checked before a command begins."""
    known = {*options.WHOLE, "rate", "seconds", "synthetic"}
    commands = next(action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        assert {action.dest for action in command._actions if action.type in (int, float)} <= known


def test_shipped_results_pass():
    assert len(report.load()) >= 2


def test_a_name_that_is_no_text(there):
    """Bytes that are no UTF-8: one line, or a report whose page can be written."""
    name = os.fsdecode(b"\xff.csv")
    try:
        os.rename("rows.csv", name)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    words = [sys.executable, "-m", "fastnest", "report", "--data", name, *SMALL.split()]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert list((there / "out").glob("*.html"))
