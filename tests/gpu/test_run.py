"""`make gpu` around its stages: budget, order, options, what is written where; nothing here needs a GPU."""

import argparse
import json
import os
import subprocess
import sys

import pytest
from gpu.result import FACTS, row

from fastnest.benchmarks.gpu import cases, record
from fastnest.benchmarks.gpu import run as gpu_run


def test_shares_and_ends():
    assert sum(gpu_run.SHARES.values()) + gpu_run.REST == pytest.approx(1)
    ends = gpu_run.ends(100.0, 800.0, list(gpu_run.SHARES))
    assert list(ends) == ["install", "checks", "convolutions", "compile", "measure", "profile", "sanitize", "peers"]
    assert ends["install"] == pytest.approx(100 + 80)
    assert ends["peers"] == pytest.approx(100 + 800 * 0.97)
    assert gpu_run.ends(0.0, 100.0, ["peers"]) == pytest.approx({"peers": 97.0})
    assert gpu_run.parser().parse_args([]).seconds <= 15 * 60


def test_what_is_timed_is_compiled_before():
    assert gpu_run.in_order(["peers", "checks"]) == ["checks", "compile", "peers"]
    assert gpu_run.in_order(["profile"]) == ["compile", "profile"]
    assert gpu_run.in_order(["convolutions"]) == ["convolutions"]
    assert gpu_run.in_order(["sanitize"], prebuilt=True) == ["install", "sanitize"]
    assert gpu_run.in_order(list(gpu_run.SHARES)) == list(gpu_run.SHARES)


def test_peers_are_those_of_the_cases():
    assert ("eager", *gpu_run.PEERS) == cases.PEERS


def test_options_that_make_no_sense(capsys):
    for words, said in ((["--only", "("], "is no regular expression"), (["--stages", "speed"], "invalid choice")):
        with pytest.raises(SystemExit):
            gpu_run.parser().parse_args(words)
        assert said in capsys.readouterr().err


@pytest.fixture
def stages(monkeypatch):
    """The order in which they are begun, all of which do nothing."""
    order = []

    def install(end, say, architecture):
        order.append(f"install {architecture}")
        return "installed", {"FOUND": "here"}

    for name in gpu_run.STAGES:
        monkeypatch.setitem(gpu_run.STAGES, name, lambda session, end, name=name: order.append(name))
    monkeypatch.setattr(gpu_run.install, "install", install)
    monkeypatch.setattr(gpu_run.install, "prebuilt", lambda *_: (order.append("prebuilt"), ("there", {}))[1])
    monkeypatch.setattr(gpu_run.timing, "compile_first", lambda session, end, asked: order.append(f"compile {asked}"))
    monkeypatch.setattr(gpu_run, "commit", lambda: "abc")
    monkeypatch.setattr(gpu_run, "version", lambda: "0.1.0")
    return order


def options(tmp_path, *words) -> argparse.Namespace:
    return gpu_run.parser().parse_args([*words, "--seconds", "10", "--out", str(tmp_path)])


def test_stages_in_order(tmp_path, stages):
    found = gpu_run.run(options(tmp_path), dict(FACTS), 0.0)
    every = list(gpu_run.SHARES)
    before, after = ["install 9.0a", "checks", "convolutions"], ["measure", "profile", "sanitize", "peers"]
    assert stages == [*before, f"compile {every}", *after]
    data = json.loads((tmp_path / "stand-in-r-5.json").read_text())
    assert data == found.data
    assert [stage["name"] for stage in data["stages"]] == every
    assert (data["fastnest"], data["commit"]) == ("0.1.0", "abc")
    assert [(one["limit_s"], one["stages"]) for one in data["runs"]] == [(10, every)]
    assert record.complete(data)


def test_parts_of_a_run_go_on_in_its_file_and_a_whole_one_begins_anew(tmp_path, stages):
    path = tmp_path / "stand-in-r-5.json"
    record.Record(path, FACTS).add("rows", row("a"))
    gpu_run.run(options(tmp_path, "--stages", "profile", "--prebuilt"), dict(FACTS), 0.0)
    assert stages == ["prebuilt", "compile ['install', 'compile', 'profile']", "profile"]
    assert [one["name"] for one in json.loads(path.read_text())["rows"]] == ["a"]
    gpu_run.run(options(tmp_path), dict(FACTS), 0.0)
    assert json.loads(path.read_text())["rows"] == []


def test_a_part_of_a_run_is_no_result_to_ship(tmp_path, stages, monkeypatch):
    monkeypatch.setattr(gpu_run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu_run, "PARTIAL", tmp_path / "partial")
    for words in ("", "--only a", "--stages checks", "--peers compile", "--seconds 60"):
        record_ = gpu_run.run(gpu_run.parser().parse_args(words.split()), dict(FACTS), 0.0)
        assert record_.path.parent == tmp_path / ("partial" if words else "results"), words


def test_stages_alone_find_the_checkout_where_nothing_was_installed(tmp_path, stages, monkeypatch):
    found = []
    monkeypatch.setitem(gpu_run.STAGES, "checks", lambda session, end: found.append(session.environment))
    gpu_run.run(options(tmp_path, "--stages", "checks"), dict(FACTS), 0.0)
    code = "import fastnest, fastnest.benchmarks.gpu.work as work; print(work.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **found[0]}, capture_output=True, text=True
    )
    assert done.stdout.startswith(found[0]["PYTHONPATH"].split(os.pathsep)[0]), done.stderr


def test_results_are_no_change_of_the_commit(tmp_path, monkeypatch):
    """Or the first part of a run would be of another commit than the second."""

    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a", *words], cwd=tmp_path, check=True)

    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for path in (results / "card.json", tmp_path / "code.py"):
        path.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    (results / "card.json").write_text("2")
    assert len(gpu_run.commit()) == 40
    (tmp_path / "code.py").write_text("2")
    assert gpu_run.commit().endswith("+changes")


def test_an_extension_that_is_not_there_leaves_the_last_result(tmp_path, stages, monkeypatch, capsys):
    path = tmp_path / "stand-in-r-5.json"
    record.Record(path, FACTS).add("rows", row("a"))
    before = path.read_bytes()

    def prebuilt(*_):
        raise gpu_run.install.NotBuilt("--prebuilt needs it")

    def asked(*_, **__):
        return argparse.Namespace(returncode=0, stdout=json.dumps(FACTS), stderr="")

    monkeypatch.setattr(gpu_run.install, "prebuilt", prebuilt)
    monkeypatch.setattr(gpu_run.subprocess, "run", asked)
    assert gpu_run.main(["--prebuilt", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "gpu: --prebuilt needs it; nothing was run\n"
    assert path.read_bytes() == before


def test_the_version_is_the_projects():
    assert gpu_run.version() == "0.1.0"


def test_without_a_gpu_a_plain_sentence(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_run.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gpu: no GPU that torch can use with ")
    assert said.endswith("; nothing was run\n")
