"""The stages of `make gpu`: budget, order, what is written when a process dies, the table; nothing here needs a GPU."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastnest import cli
from fastnest.benchmarks import pictures
from fastnest.benchmarks import report as reports
from fastnest.benchmarks.gpu import children, install, record, table
from fastnest.benchmarks.gpu import run as gpu_run
from fastnest.benchmarks.gpu.children import Ended

FACTS = {"card": "Stand In (R) 5", "torch": "2.11", "triton": "3.6", "python": "3.12"}
FACTS |= {"capability": [9, 0], "commit": "abc", "date": "2026-01-01"}
RATES = {"copy_bytes_per_second": 1e12, "flops_per_second": {"bfloat16": 1e14}}


def row(name: str, own: float = 10.0, **more) -> dict:
    call, graph = {"fastnest": 2 * own, "eager": 40.0}, {"fastnest": own, "eager": 25.0}
    return {
        "name": name,
        "subject": "residual_chain",
        "mode": "train",
        "dtype": "bfloat16",
        "sizes": {"n": 8, "m": 4},
        "backend": "",
        "flops": 10**8,
        "bytes": 5 * 10**6,
        "runs": ["1 x residual_chain on triton"],
        "call_us": call,
        "call_iqr_us": call,
        "graph_us": graph,
        "graph_iqr_us": graph,
        "no_graph": {"max-autotune-no-cudagraphs": "RuntimeError: no"},
        "ratios": {"call": {"eager": 20 / own}, "graph": {"eager": 25 / own}},
        "error": {"fastnest": 1e-3},
        "memory_bytes": {"fastnest": 2**20, "eager": 2**22},
        **more,
    }


def test_shares_and_ends():
    assert sum(gpu_run.SHARES.values()) + gpu_run.REST == pytest.approx(1)
    ends = gpu_run.ends(100.0, 480.0, list(gpu_run.SHARES))
    assert list(ends) == ["install", "checks", "first", "compiled"]
    assert ends["install"] == pytest.approx(100 + 96)
    assert ends["compiled"] == pytest.approx(100 + 480 * 0.96)
    assert gpu_run.ends(0.0, 100.0, ["compiled"]) == pytest.approx({"compiled": 96.0})


def test_record_is_on_disk_after_every_entry(tmp_path):
    one = record.Record(tmp_path / "out" / "card.json", FACTS)
    for what, entry in (("tests", {"verdict": "passed"}), ("failures", {"name": "a", "what": "b"})):
        one.add(what, entry)
        assert json.loads(one.path.read_text())[what] == [entry]
    one.add("not_measured", {"name": "a", "what": "no time left"})
    one.row(row("a"))
    one.row(row("b"))
    one.row(row("a", own=5.0))
    found = json.loads(one.path.read_text())["rows"]
    assert [(r["name"], r["graph_us"]["fastnest"]) for r in found] == [("b", 10.0), ("a", 5.0)]
    assert one.data["not_measured"] == []
    assert list(tmp_path.joinpath("out").iterdir()) == [one.path]
    assert not record.complete(one.data)
    assert record.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def listen(code: str, tmp_path: Path, seconds: float = 20, **environment) -> tuple[list, Ended]:
    lines = []
    words = [sys.executable, "-c", code]
    until = time.time() + seconds
    return lines, children.listen(words, lines.append, until=until, folder=tmp_path, environment=environment)


def test_children_say_lines_and_how_they_ended(tmp_path):
    code = "import os, sys; print('{\"a\": 1}'); print('{no'); print('words', os.environ['X']); sys.exit(3)"
    lines, ended = listen(code, tmp_path, X="y")
    assert lines == [{"a": 1}]
    assert ended == Ended(3, "{no\nwords y\n")
    assert str(ended) == "ended with 3; {no\nwords y"


def test_children_end_with_their_time_and_with_all_they_started(tmp_path):
    code = (
        "import subprocess, sys, time; print('{\"a\": 1}', flush=True)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('{\"pid\": %d}' % p.pid, flush=True); time.sleep(60)"
    )
    start = time.time()
    lines, ended = listen(code, tmp_path, seconds=1.5)
    assert time.time() - start < 15
    assert lines[0] == {"a": 1}
    assert ended.status is None
    state = Path(f"/proc/{lines[1]['pid']}/stat")
    for _ in range(50):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("what the child started still runs")


class Script:
    """In the place of `listen`: plays a reply per process, [(lines, ended), ...], and keeps what it was asked."""

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def __call__(self, words, on_line, *, until, folder, environment=None):
        self.asked.append(([str(word) for word in words], environment))
        lines, ended = self.replies.pop(0)
        for line in lines:
            on_line(line)
        return ended


def session(tmp_path, script, seconds=1000.0) -> gpu_run.Session:
    ends = gpu_run.ends(time.time(), seconds, list(gpu_run.SHARES))
    one = record.Record(tmp_path / "card.json", FACTS)
    one.put("rates", RATES)
    return gpu_run.Session(one, ends, {"KEPT": "1"}, script)


def test_benchmarks_go_on_behind_a_case_that_died(tmp_path):
    script = Script(
        ([{"cases": ["a", "b", "c", "d"]}, {"begin": "a"}, {"row": row("a")}, {"begin": "b"}], Ended(-11, "fault")),
        ([{"cases": ["c", "d"]}, {"begin": "c"}, {"failure": {"name": "c", "what": "wrong"}}], Ended(0, "")),
        ([{"cases": ["d"]}], Ended(0, "")),
    )
    one = session(tmp_path, script)
    gpu_run.benchmark(one, "first", "only")
    data = json.loads(one.record.path.read_text())
    assert [r["name"] for r in data["rows"]] == ["a"]
    assert [(f["name"], f["what"]) for f in data["failures"]] == [
        ("b", "not measured (first): ended with -11; fault"),
        ("c", "wrong"),
    ]
    assert data["not_measured"] == [{"name": "d", "what": "not measured (first): no time left"}]
    assert [words[-1] for words, _ in script.asked] == ["only", "b", "c"]
    assert script.asked[0][1]["KEPT"] == "1"


def test_benchmarks_that_time_cuts_off_are_no_failures(tmp_path):
    one = session(tmp_path, Script(([{"cases": ["a", "b"]}, {"begin": "a"}], Ended(None, ""))))
    one.ends["first"] = time.time() + 15.2
    gpu_run.benchmark(one, "first")
    # The process was killed; whether there is time for another is the clock's.
    assert one.record.data["failures"] == [] or one.record.data["failures"][0]["name"] == "b"
    assert one.record.data["not_measured"][0]["name"] == "a"


def test_benchmarks_that_do_not_begin_are_a_failure_told_once(tmp_path):
    one = session(tmp_path, Script(([], Ended(1, "ImportError"))))
    gpu_run.benchmark(one, "first")
    assert one.record.data["failures"] == [{"name": "benchmarks (first)", "what": "ended with 1; ImportError"}]


def test_checks_that_die_say_where(tmp_path):
    passed = {
        "op": "o",
        "backend": "b",
        "dtype": "float32",
        "part": "0/1",
        "done": 2,
        "of": 2,
        "failed": 0,
        "what": "",
        "seconds": 1,
    }
    passed |= {"check": "chosen", "verdict": "passed"}
    one = session(tmp_path, Script(([passed], Ended(-6, "illegal access"))))
    job = {"op": "o", "backend": "b", "dtype": "float32", "checks": ["chosen", "graphs", "streams"]}
    gpu_run.checked(one, job, time.time() + 100)
    verdicts = [(test["check"], test["verdict"]) for test in one.record.data["tests"]]
    assert verdicts == [("chosen", "passed"), ("graphs", "failed"), ("streams", "not run")]
    assert "illegal access" in one.record.data["tests"][1]["what"]
    gpu_run.checked(one, job, time.time() - 1)
    assert {test["verdict"] for test in one.record.data["tests"][3:]} == {"not run"}


def test_all_checks_are_started(tmp_path, monkeypatch):
    asked = []

    def run(words, on_line, *, until, folder, environment=None):
        words = [str(word) for word in words]
        asked.append(words)
        if "--list" in words:
            on_line({"jobs": [{"op": "o", "backend": "triton", "dtype": "float32", "checks": ["large"], "large": True},
                              {"op": "o", "backend": "cuda", "dtype": "float32", "checks": ["chosen"]}]})  # fmt: skip
        return Ended(None, "")

    monkeypatch.setattr(gpu_run.shutil, "which", lambda name: None)
    one = session(tmp_path, run)
    gpu_run.check(one, workers=2)
    assert {tuple(words[2:7]) for words in asked[1:]} == {
        ("o", "float32", "large", "--backend", "triton"),
        ("o", "float32", "chosen", "--backend", "cuda"),
    }
    beside = [(tool, "triton", "float32") for tool in ("memcheck", "racecheck")]
    for tool in ("memcheck", "racecheck", "synccheck"):
        beside += [(tool, "cuda", dtype) for dtype in ("bfloat16", "float32")]
    found = one.record.data["sanitizers"]
    assert sorted((s["tool"], s["backend"], s["dtype"]) for s in found) == sorted(beside)
    assert {s["what"] for s in found} == {"no compute-sanitizer here"}


def test_sanitizers_run_the_backend_that_they_name(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run.shutil, "which", lambda name: "/a/compute-sanitizer")
    passed = {"verdict": "passed", "what": ""}
    script = Script(([passed], Ended(0, "ERROR SUMMARY: 0 errors")))
    one = session(tmp_path, script)
    asked = {"op": "o", "backend": "cuda", "dtype": "bfloat16", "tool": "synccheck"}
    gpu_run.sanitized(one, asked, time.time() + 100)
    words = script.asked[0][0]
    assert words[:3] == ["/a/compute-sanitizer", "--tool", "synccheck"]
    assert words[-5:] == ["o", "bfloat16", "smallest", "--backend", "cuda"]
    (entry,) = one.record.data["sanitizers"]
    assert entry == {**asked, "verdict": "passed", "what": entry["what"]}


def test_the_card_is_compiled_for():
    assert [gpu_run.architecture(one) for one in ([8, 0], [8, 9], [9, 0], [10, 0], [12, 0])] == [
        *("8.0", "8.9", "9.0a", "10.0a", "12.0a")
    ]


def test_verdicts_of_sanitizers():
    passed = [{"verdict": "passed", "what": ""}]
    clean = Ended(0, "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n")
    assert gpu_run.verdict_of("memcheck", clean, passed)["verdict"] == "passed"
    assert gpu_run.verdict_of("memcheck", clean, [])["verdict"] == "failed"
    errors = Ended(0, "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 10 errors\n")
    assert gpu_run.verdict_of("memcheck", errors, passed)["verdict"] == "failed"
    hazards = "========= RACECHECK SUMMARY: {} hazards displayed (0 errors, 0 warnings)\n"
    assert gpu_run.verdict_of("racecheck", Ended(0, hazards.format(0)), passed)["verdict"] == "passed"
    assert gpu_run.verdict_of("racecheck", Ended(0, hazards.format(10)), passed)["verdict"] == "failed"
    refused = Ended(1, "========= Error: Device not supported.")
    assert gpu_run.verdict_of("memcheck", refused, [])["verdict"] == "not run"
    assert gpu_run.verdict_of("memcheck", Ended(None, ""), [])["verdict"] == "not run"


STATES = {"cpp": "available", "cuda": "available"}


def test_install_falls_back_and_says_so():
    said = []
    script = Script(([], Ended(0, "")), ([STATES], Ended(0, "")))
    what, environment = install.install(time.time() + 100, said.append, "9.0a", script)
    assert (what, environment) == ("installed with all that compiles; cpp available, cuda available", {})
    assert script.asked[0][0][1:3] == ["-m", "pip"]
    assert {"--no-deps", "--no-build-isolation", "-e"} <= set(script.asked[0][0])
    assert script.asked[0][1]["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    assert "FASTNEST_NO_CUDA" not in script.asked[0][1]
    fails = ([], Ended(1, "no compiler"))
    script = Script(fails, ([], Ended(0, "")), ([STATES | {"cuda": "not built"}], Ended(0, "")))
    what, environment = install.install(time.time() + 100, said.append, "9.0a", script)
    assert (what, environment) == ("installed without its CUDA C++ kernels; cpp available, cuda not built", {})
    assert script.asked[1][1]["FASTNEST_NO_CUDA"] == "1"
    script = Script(fails, fails, ([], Ended(0, "")), ([STATES], Ended(0, "")))
    what, environment = install.install(time.time() + 100, said.append, "9.0a", script)
    assert (what[:32], environment) == ("installed without its C++ kernel", {})
    assert script.asked[2][1] == {"FASTNEST_NO_EXT": "1"}
    assert said[0] == "not installed with all that compiles: ended with 1; no compiler"
    assert len(said) == 3


def test_without_pip_the_checkout_runs_as_it_lies(tmp_path):
    what, environment = install.install(time.time() + 100, print, "8.0", Script(*[([], Ended(1, "no pip"))] * 3))
    assert what.startswith("not installed")
    code = (
        "import fastnest, fastnest.kernels, fastnest.benchmarks.gpu.record as r; print(fastnest.__file__, r.__file__)"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = environment["PYTHONPATH"].split(os.pathsep)[0]
    assert all(path.startswith(site) for path in done.stdout.split())


def test_stages_in_order(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(
        gpu_run,
        "install",
        lambda end, say, architecture: (order.append(f"install {architecture}"), ("installed", {}))[1],
    )
    monkeypatch.setattr(gpu_run, "check", lambda session, workers: order.append("checks"))
    monkeypatch.setattr(gpu_run, "benchmark", lambda session, what, only: order.append(what))
    monkeypatch.setattr(
        gpu_run.Session, "ask", lambda self, words, until: {"rates": RATES, "device": {"driver": "580"}}
    )
    arguments = argparse.Namespace(seconds=10.0, out=tmp_path, stages=list(gpu_run.SHARES), workers=1, only="")
    found = gpu_run.run(arguments, dict(FACTS), time.time())
    assert order == ["install 9.0a", "checks", "first", "compiled"]
    data = json.loads((tmp_path / "stand-in-r-5.json").read_text())
    assert data == found.data
    assert [stage["name"] for stage in data["stages"]] == ["install", "checks", "first", "compiled"]
    assert data["rates"] == RATES
    assert record.complete(data)


def test_without_a_gpu_a_plain_sentence(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_run.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gpu: no GPU that torch can use with ")
    assert said.endswith("; nothing was run\n")


def result() -> dict:
    one = {**FACTS, "rates": RATES, "device": {"driver": "580.1"}, "stages": [], "rows": [row("a"), row("b", own=5.0)]}
    test = {"op": "o", "backend": "cuda", "check": "graphs", "dtype": "float32", "verdict": "passed"}
    test |= {"done": 3, "of": 3, "failed": 0}
    failed = {**test, "verdict": "failed", "failed": 1, "what": "dx is off"}
    sanitizer = {
        "op": "o",
        "backend": "cuda",
        "dtype": "float32",
        "tool": "memcheck",
        "verdict": "not run",
        "what": "?",
    }
    one |= {"tests": [test, failed], "sanitizers": [sanitizer]}
    return one | {"failures": [{"name": "c", "what": "wrong numbers"}], "not_measured": [{"name": "d", "what": "late"}]}


def test_table():
    said = table.markdown(result())
    assert "Stand In (R) 5, driver 580.1, torch 2.11, triton 3.6" in said
    assert "copy 1.00 TB/s (read and written), torch's product 100 TFLOP/s bfloat16" in said
    assert "| o | cuda | graphs | float32 | 6/6 | 1 | passed 1, failed 1 |" in said
    assert "| o | cuda | compute-sanitizer memcheck | float32 |  |  | not run |" in said
    head = (
        "| N | M | graph | called | of roofline | x eager, called | x eager, graph | MiB fastnest | MiB eager | runs |"
    )
    assert head in said
    # The roofline: 5e6 bytes at 1e12 take 5 us, 1e8 flops at 1e14 take 1 us.
    assert "| 8 | 4 | 10.0 us | 20.0 us | 50% | 2.00 | 2.50 | 1.00 | 4.00 | 1 x residual_chain on triton |" in said
    assert "| 8 | 4 | 5.0 us | 10.0 us | 100% | 4.00 | 5.00 |" in said
    assert "FAILED o cuda graphs: dx is off" in said
    assert "FAILED c: wrong numbers" in said
    assert "d: late" in said
    assert "a: no CUDA graph of max-autotune-no-cudagraphs: RuntimeError: no" in said
    assert table.share(row("x", flops=10**10), RATES) == pytest.approx(10.0)  # then the product bounds it, 100 us


def test_table_of_a_run_that_was_cut_off_at_once():
    data = {**FACTS, "rates": {}, **{name: [] for name in ("tests", "sanitizers", "rows", "failures", "not_measured")}}
    assert "rates not measured" in table.markdown(data)
    data["rows"] = [row("c", backend="cuda")]
    assert "training step (forward, backward, every gradient), bfloat16, forced on cuda**" in table.markdown(data)
    data["rows"] = [row("a", graph_us={}, ratios={"call": {"eager": 2.0}, "graph": {}})]
    assert "| 8 | 4 | - | 20.0 us | - | 2.00 | 1.00 | 4.00 |" in table.markdown(data)


def test_bench_shows_it_beside_its_own(tmp_path, capsys):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(result()))
    assert cli.main(["bench", "--show", str(path)]) == 0
    assert "Stand In (R) 5" in capsys.readouterr().out


def test_bench_draws_only_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "RESULTS", tmp_path)
    (tmp_path / "cpu.json").write_text(json.dumps({"date": "2025-01-01", "conditions": {}}))
    (tmp_path / "card.json").write_text(json.dumps(result()))
    drawn = []
    monkeypatch.setattr(pictures, "draw", lambda stem, one, folder: drawn.append(stem) or [])
    assert cli.main(["bench", "--show", "--pictures", str(tmp_path)]) == 0
    assert drawn == ["cpu"]
