"""Tables from a JSON, and the README's."""

import json
from pathlib import Path

import pytest

from fastnest import cli
from fastnest.benchmarks import report, roofline, run, speedup

README = Path(__file__).parents[2] / "README.md"


def test_tables(tmp_path, capsys, result):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    assert cli.main(["bench", "--show", str(path)]) == 0
    said = capsys.readouterr().out
    assert "| N | M | fastnest | share of peak | x eager | x compile | **x best** |" in said
    times = "500 us [490, 520] / 500 us [490, 520]"
    assert f"| 64 | 8 | {times} | 50% / 50% | 8.00 / 4.00 | 4.00 / 2.00 | **4.00 / 2.00** † |" in said
    assert "medians of interleaved rounds, 15 in 3 processes, between brackets their quartiles" in said
    assert "| memory | of eager's | of compile's |" in said
    assert "1.00 MiB | 0.12 | 0.25 |" in said
    assert "FAILED" not in said
    assert run.complete(result)


def test_rewrites_only_between_the_marks(tmp_path, result):
    path, readme = tmp_path / "result.json", tmp_path / "README.md"
    path.write_text(json.dumps(result))
    readme.write_text("before\n<!-- benchmarks: begin -->\nstale figures\n<!-- benchmarks: end -->\nafter\n")
    assert cli.main(["bench", "--show", str(path), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale figures" not in text
    assert report.between(text, "benchmarks") == report.markdown(result)
    readme.write_text("no marks")
    with pytest.raises(ValueError, match=r"README.md must contain <!-- a: begin --> and <!-- a: end --> or"):
        report.rewrite(readme, {"a": "text", "b": "text"})
    readme.write_text("<!-- b: begin -->\n<!-- b: end -->")
    assert report.rewrite(readme, {"a": "text", "b": "text"}) == ["b"]
    assert readme.read_text() == "<!-- b: begin -->\n\ntext\n<!-- b: end -->"


def test_failures_and_what_was_not_run_are_shown(result):
    result["conditions"]["fair"]["failures"].append("a case is off by 1e-3")
    result["conditions"]["as_shipped"]["not_run"].append("another case")
    assert "FAILED, no speed reported: a case is off by 1e-3" in report.markdown(result)
    result["conditions"]["as_shipped"]["died"].append("a third case: the process ended with -11")
    assert "NOT RUN (as shipped): another case" in report.markdown(result)
    assert "DIED: a third case: the process ended with -11" in report.markdown(result)
    assert not run.complete(result)
    del result["conditions"]["fair"]
    result["not_begun"].append("fair")
    assert "NOT RUN: every case, fair" in report.markdown(result)


def test_times_are_in_one_unit_with_their_quartiles(result):
    row = result["conditions"]["fair"]["rows"][0]
    assert report.time_with_quartiles(row) == "500 us [490, 520]"
    row["median_us"]["fastnest"], row["quartiles_us"]["fastnest"] = 1230.0, [990.0, 1310.0]
    assert report.time_with_quartiles(row) == "1.23 ms [0.99, 1.31]"


def test_a_ratio_that_differs_between_conditions_is_marked(result):
    for row in result["conditions"]["as_shipped"]["rows"]:
        row["median_us"].update(compile=1240.0)
    assert "†" not in report.table(result, "residual_chain", "forward", "float32")
    for row in result["conditions"]["as_shipped"]["rows"]:
        row["median_us"].update(compile=1260.0)
    assert report.table(result, "residual_chain", "forward", "float32").count(" † |") == 2


def test_what_was_measured_under_one_condition_is_shown_alone(result):
    """As images are."""
    fair = result["conditions"]["fair"]
    fair["rows"] = [row for row in fair["rows"] if row["mode"] == "train"]
    said = report.table(result, "residual_chain", "forward", "float32")
    assert said.startswith("**residual_chain, forward, no grad, float32, as shipped only**")
    assert "| 500 us [490, 520] | 50% | 8.00 | 4.00 | **4.00** |" in said
    assert "only" not in report.table(result, "residual_chain", "train", "float32").splitlines()[0]
    assert "| residual_chain forward float32 | 2 | 4.00 | 4.00 | 50% |" in report.summary(result)
    assert len(roofline.shown(result)["panels"]["float32"]["points"]) == 2
    lines = speedup.shown(result)["lines"]
    assert {line["label"]: line["best"]["fair"] for line in lines}["residual_chain forward fp32"] == []
    assert speedup.said(speedup.shown(result)).endswith("median 3.00 (fair where it was measured).")


def test_rows_of_torchs_own_forward_are_marked_and_not_counted(result):
    for condition in result["conditions"].values():
        train = [row for row in condition["rows"] if row["mode"] == "train"]
        train[0]["ran"] = {"ops": {}, "blocks": 1, "own": {"float32 under autocast": 1}}
        train[1]["ran"] = {"ops": {"cpp": 12}, "blocks": 16, "own": {"hooks": 3, "restored": 1}}
        for row in condition["rows"]:
            if row["mode"] == "forward":
                row["ran"] = {"ops": {"reference": 2}, "blocks": 0, "own": {}}
    said = report.table(result, "residual_chain", "train", "float32")
    assert "| torch's own |" in said
    assert "| 50% / 50% (12 of 16 blocks) |" in said
    lines = report.summary(result).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| residual_chain train float32 | 1 |")


def test_pages_have_the_tables_of_the_stored_results():
    """Of CPUs and of GPUs: `make pages` writes them, nobody by hand."""
    found = report.parts(report.load().values())
    pages = {"benchmarks": README, "gpu": README, "gpu tables": README.parent / "docs" / "gpu.md"}
    for what, page in pages.items():
        assert report.between(page.read_text(), what) == found[what], f"{page.name}: make pages"


def test_results_of_one_kind_leave_the_pages_of_the_other(tmp_path, result):
    path, page = tmp_path / "result.json", tmp_path / "page.md"
    path.write_text(json.dumps(result))
    page.write_text(
        "<!-- benchmarks: begin -->\n<!-- benchmarks: end -->\n<!-- gpu: begin -->\nkept\n<!-- gpu: end -->"
    )
    assert cli.main(["bench", "--show", str(path), "--readme", str(page)]) == 0
    assert report.between(page.read_text(), "gpu") == "kept\n"


def test_the_first_results_of_a_gpu_are_shown_with_their_losses():
    said = report.tables(report.load([report.RESULTS / "nvidia-h200.json"]).values())
    assert "Measured on one NVIDIA H200" in said
    assert "fastnest 0.1.0, commit a67cebf24c9e, 2026-11-27" in said
    assert "| 16384 | 512 | 64 | 16 | 5.42 ms | 5.95 ms | 2% | 0.99 | 0.33 |" in said
    assert "FAILED DenseNet-121-train-bfloat16-n64-px224 (measure): wrong numbers" in said
    assert "| fastnest | `_input_kernel` | 116 | 15.8 ms | 39% |" in said
