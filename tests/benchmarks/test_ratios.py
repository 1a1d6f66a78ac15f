"""`pytest benchmarks --benchmark-compare` finds a slow-down in ratios; the clock is a stand-in, nothing is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastnest.benchmarks import machine, ratios, report

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).parents[2]
# Two cases, stored as 4 and 2 times as fast as eager; what a step costs is put on the clock.
CONFTEST = """
import pytest
from fastnest.benchmarks import ratios

STORED = {"first": {"fastnest": 1.0, "eager": 4.0}, "second": {"fastnest": 50.0, "eager": 100.0}}

def pytest_configure(config):
    if config.getoption("benchmark_compare"):
        config.pluginmanager.register(ratios.Watch(lambda: ("what the test stored", STORED)))
"""
BENCH = """
import os
import pytest

clock = [0.0]

@pytest.mark.parametrize("case", ["first", "second"])
@pytest.mark.parametrize("name", ["fastnest", "eager"])
@pytest.mark.benchmark(timer=lambda: clock[0])
def test_stand_in(benchmark, case, name):
    benchmark.group = case
    benchmark.extra_info["contestant"] = name
    cost = {"first": {"fastnest": 1e-3, "eager": 4e-3}, "second": {"fastnest": 5e-3, "eager": 1e-2}}
    cost["second"]["fastnest"] *= float(os.environ["SECOND"])
    def step():
        clock[0] += float(os.environ["MACHINE"]) * cost[case][name]
    benchmark.pedantic(step, rounds=5, iterations=1)
"""
COMPARE = "--benchmark-compare"
# words, how much slower the second case's step is than stored, how much slower the machine
SESSIONS = {
    "as stored": ([COMPARE], 1.0, 1.0),
    "30 percent": ([COMPARE], 1.3, 1.0),
    "10 percent": ([COMPARE], 1.1, 2.0),
    "nothing": ([COMPARE, "-k", "fastnest"], 1.0, 1.0),
    "none matches": ([f"{COMPARE}=0007"], 1.0, 1.0),
    "save": (["--benchmark-autosave"], 3.0, 1.0),
    "as saved": ([COMPARE], 3.1, 1.0),
    "slower than saved": ([COMPARE], 3.0 * 1.3, 1.0),
}
# One process for all, since most of a session is the import of torch.
RUN = """
import contextlib, io, json, os, sys
import pytest
done = {}
for name, (words, second, machine) in json.loads(sys.argv[1]).items():
    os.environ.update(SECOND=str(second), MACHINE=str(machine))
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = pytest.main(["-q", "--capture=no", "-p", "no:cacheprovider", *words])
    done[name] = (int(code), out.getvalue())
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def sessions(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """name -> (exit code, output) of every session, in one folder."""
    folder = tmp_path_factory.mktemp("sessions")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_stand_in.py").write_text(BENCH)
    words = [sys.executable, "-c", RUN, json.dumps(SESSIONS)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_has_not_changed_passes(sessions):
    code, said = sessions["as stored"]
    assert code == 0, said
    assert "ratios against what the test stored" in said
    assert "2 cases compared, 0 slower by more than 20%" in said


def test_30_percent_slower_fails_and_is_named(sessions):
    code, said = sessions["30 percent"]
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert "4 passed" in said
    lines = said.partition("ratios against what the test stored")[2].splitlines()
    named = [line.split() for line in lines if line.startswith(("first", "second"))]
    assert named == [["second", "2.00", "1.54", "130%"]]
    assert "2 cases compared, 1 slower by more than 20%" in lines


def test_10_percent_slower_passes_on_a_machine_half_as_fast(sessions):
    code, said = sessions["10 percent"]
    assert code == 0, said
    assert "2 cases compared, 0 slower by more than 20%" in said


def test_a_saved_run_comes_before_what_is_stored(sessions):
    assert sessions["save"][0] == 0
    code, said = sessions["as saved"]
    assert code == 0, said
    assert "ratios against the saved run of " in said
    assert sessions["slower than saved"][0] == pytest.ExitCode.TESTS_FAILED
    code, said = sessions["none matches"]
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "--benchmark-compare=0007: no saved run matches" in said


def test_a_comparison_of_nothing_fails(sessions):
    code, said = sessions["nothing"]
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert "0 cases compared, 0 slower by more than 20%; without a ratio, stored or now: first, second" in said


@pytest.mark.parametrize(("now", "failed"), [(1.0, False), (1.2, False), (1.21, True), (0.5, False)])
def test_the_bound_is_a_fifth_more_time_than_at_the_stored_ratio(now, failed):
    stored = {"a": {"fastnest": 10.0, "eager": 30.0}}
    (entry,) = ratios.compare(stored, {"a": {"fastnest": now, "eager": 3.0}})
    assert entry.slowdown == pytest.approx(now - 1)
    assert entry.failed == failed


def test_entries_are_those_that_both_have_the_slowest_first():
    stored = {name: {"fastnest": 1.0, "eager": 2.0, "compile": 9.0} for name in "abcd"}
    now = {
        "a": {"fastnest": 1.1, "eager": 2.0},
        "b": {"fastnest": 1.4, "eager": 2.0},
        "c": {"fastnest": 1.0},
        "new": {"fastnest": 1.0, "eager": 1.0},
    }
    entries = ratios.compare(stored, now)
    assert [entry.name for entry in entries] == ["b", "a"]
    assert ratios.lines(entries)[1].split() == ["b", "2.00", "1.43", "140%"]


def test_stored_ratios_are_of_this_machine_and_its_threads(result, monkeypatch):
    facts = result["machine"]
    other = {**result, "machine": {**facts, "cores": 64}}
    monkeypatch.setattr(
        report, "load", lambda: {Path("a.json"): result, Path("b.json"): other, Path("c"): {"card": ""}}
    )
    monkeypatch.setattr(machine, "facts", lambda: facts)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    source, stored = ratios.of_this_machine()
    assert source == "a.json"
    assert stored["residual_chain-train-float32-n64"] == {"fastnest": 500.0, "eager": 4000.0, "compile": 2000.0}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with pytest.raises(pytest.UsageError, match=r"none of this machine \(some-cpu-1-2-2-cores, 1 threads.*autosave"):
        ratios.of_this_machine()


def test_without_any_results_it_says_how_to_make_them(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    with pytest.raises(pytest.UsageError, match="`fastnest bench --full` makes them"):
        ratios.of_this_machine()


def test_without_pytest_benchmark_the_extra_is_named():
    words = ["benchmarks", "--collect-only", "-p", "no:benchmark", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout + done.stderr
    assert 'pip install "fastnest-torch[bench]"' in done.stderr


def test_benchmarks_say_which_case_and_contestant_they_are(tmp_path):
    """What the comparison reads, written by the benchmarks themselves; their times do not matter."""
    words = ["benchmarks/bench_residual_chain.py", "-k", "forward-float32-n1-m256 and (fastnest or eager)", "-q"]
    words += ["-p", "no:cacheprovider", f"--benchmark-json={tmp_path / 'a.json'}"]
    words += ["--benchmark-min-rounds=1", "--benchmark-max-time=0.001"]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    medians = ratios.of_pytest(json.loads((tmp_path / "a.json").read_text())["benchmarks"])
    assert list(medians) == ["residual_chain-forward-float32-n1-m256-k16-l8"]
    assert set(*medians.values()) == {"fastnest", "eager"}
