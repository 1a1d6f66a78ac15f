"""The JSON of a run as tables, and in pages."""

import json

import pytest
from gpu.result import FACTS, RATES, RUNS, result, row

from fastnest import cli
from fastnest.benchmarks import pictures
from fastnest.benchmarks import report as reports
from fastnest.benchmarks.gpu import record, table


def test_table():
    said = table.markdown(result())
    assert "Measured on one Stand In (R) 5, driver 580.1, torch 2.11, triton 3.6, Python 3.12, fastnest 0.1.0" in said
    assert "commit abc, 2026-01-01. In the same run: copy 1.00 TB/s (read and written), torch's product 100" in said
    assert "| o | cuda | graphs | float32 | 6/6 | 1 | passed 1, failed 1 |" in said
    assert "| o | cuda | compute-sanitizer memcheck | float32 |  |  | not run |" in said
    head = (
        "| N | M | graph | called | of roofline | x eager, called | x eager, graph | MiB fastnest | MiB eager | runs |"
    )
    assert head in said
    # The roofline: 5e6 bytes at 1e12 take 5 us, 1e8 flops at 1e14 take 1 us.
    assert "| 8 | 4 | 10.0 us | 20.0 us | 50% | 2.00 | 2.50 | 1.00 | 4.00 | 1 x residual_chain on triton |" in said
    assert "| 8 | 4 | 5.0 us | 10.0 us | 100% | 4.00 | 5.00 |" in said
    assert "FAILED o cuda float32 graphs: dx is off" in said
    assert "FAILED c (measure): wrong numbers" in said
    assert "Not run in measure, late: d." in said
    assert "a: no CUDA graph of max-autotune-no-cudagraphs: RuntimeError: no" in said
    assert "a: compile computes something else: off by 1" in said
    assert "b: not compiled in advance: its time was up" in said
    assert "a: not compiled" not in said
    assert table.share(row("x", flops=10**10), RATES) == pytest.approx(10.0)  # then the product bounds it, 100 us


def test_where_the_time_goes():
    said = table.markdown(result())
    assert (
        "fastnest: 60.0 us of kernels in 20 launches, host 30.0 us, both 70.0 us. "
        "eager: 6.0 us of kernels in 3 launches, host 1.5 ms, both 1.6 ms.\n" in said
    )
    assert "| fastnest | `kernel_0<int\\|x>(float*)` | 2 | 10.0 us | 17% |" in said
    # 6 kernels are told, of 10, 9, ... 5 us, 2 launches each.
    assert "| fastnest | all others | 8 | 15.0 us | 25% |" in said
    assert "| eager | `kernel_7<int\\|x>(float*)` | 2 | 3.0 us | 50% |" in said
    assert "were wrong" not in said
    alone = result() | {"rows": []}
    assert "host 1.5 ms, both 1.6 ms. Its results were not compared in this run, or were wrong." in table.markdown(
        alone
    )


def test_a_line_a_case_for_a_readme():
    data = result()
    data["rows"].append(row("a-cuda", own=4.0, backend="cuda"))
    said = table.short(data)
    assert "|  | eager | fastnest | its CUDA C++ | **x eager** | of roofline |" in said
    line = "| residual_chain train bfloat16, N 8 M 4 | 25.0 us / 40.0 us | 10.0 us / 20.0 us | 4.0 us / 8.0 us |"
    assert f"{line} 2.50 / 2.00 | 50% |" in said
    assert said.count("residual_chain train") == 2  # not a line of its own for what is forced on CUDA C++
    assert "Checks: against float64 1 passed, 1 failed; by compute-sanitizer 1 not run." in said
    assert "c: wrong numbers" in said


def test_several_runs_are_told_apart():
    data = result()
    data["runs"] = [*RUNS, {"date": "2026-01-02", "limit_s": 60, "stages": ["profile"]}]
    assert "2026-01-01 and 2026-01-02, in 2 runs (checks, measure; profile). In them: copy" in table.markdown(data)


def test_lines_as_they_are_found():
    data = result()
    assert table.line_of("rows", data["rows"][0], data).startswith("a: 10.0 us, 50% of roofline, x eager 2.00 (called)")
    assert table.line_of("profiles", data["profiles"][0], data).startswith(
        "a: fastnest 60.0 us of kernels in 20 launches"
    )
    assert table.line_of("failures", {"name": "c", "what": "wrong"}, data) == "c: wrong"


def test_table_of_a_run_that_was_cut_off_at_once():
    data = {**FACTS, "rates": {}, **{name: [] for name in record.KEYS}, "runs": RUNS}
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
    of_cpu = {"date": "2025-01-01", "machine": {}, "versions": {}, "conditions": {}, "not_begun": []}
    (tmp_path / "cpu.json").write_text(json.dumps(of_cpu))
    (tmp_path / "card.json").write_text(json.dumps(result()))
    drawn = []
    monkeypatch.setattr(pictures, "draw", lambda stem, one, folder: drawn.append(stem) or [])
    assert cli.main(["bench", "--show", "--pictures", str(tmp_path)]) == 0
    assert drawn == ["cpu"]
