"""Checks and sanitizers as stages: what is begun, in which processes, and what becomes of deaths and lack of time."""

import sys
import time

import pytest
from gpu.result import Ended, Script, soon

from fastnest.benchmarks.gpu import checking, record, sanitizers


def job(check: str, backend: str = "cuda", dtype: str = "float32") -> dict:
    return {"op": "o", "backend": backend, "dtype": dtype, "check": check, "part": "0/1"}


def passes(job: dict) -> tuple[list, Ended | None]:
    told = {"verdict": "passed", "done": 2, "of": 2, "failed": 0, "what": "", "seconds": 1}
    return [{key: job[key] for key in record.KEYS["tests"]} | told], None


def test_every_check_is_begun_and_those_that_fill_memory_have_a_process_of_their_own(session):
    jobs = [job("first"), job("large"), job("graphs"), job("large", "triton")]
    one = session(passes, Script(([{"jobs": jobs}], Ended(0, ""))), workers=2)
    checking.check(one, soon())
    assert len(one.record.data["tests"]) == 4
    assert {test["verdict"] for test in one.record.data["tests"]} == {"passed"}
    assert one.listen.asked[0][0][-1] == "--list"
    by_worker = [{asked["check"] for asked in worker.asked} for worker in one.begin.workers]
    assert len(by_worker) == 3
    assert {"large"} in by_worker
    assert not any("large" in checks and len(checks) > 1 for checks in by_worker)
    assert all(words[2:] == ["--serve"] for words in one.begin.words)
    assert {worker.environment["OMP_NUM_THREADS"] for worker in one.begin.workers} == {"1"}
    assert {worker.environment["KEPT"] for worker in one.begin.workers} == {"1"}


def test_checks_by_name(session):
    jobs = [job("first"), job("graphs"), job("first", "triton")]
    one = session(passes, Script(([{"jobs": jobs}], Ended(0, ""))), only="cuda .*first")
    checking.check(one, soon())
    assert [(t["backend"], t["check"]) for t in one.record.data["tests"]] == [("cuda", "first")]


def test_checks_that_die_say_where_and_the_others_go_on(session):
    def replies(job):
        return ([], Ended(-6, "illegal access")) if job["check"] == "graphs" else passes(job)

    jobs = [job(name) for name in ("chosen", "graphs", "streams")]
    one = session(replies, Script(([{"jobs": jobs}], Ended(0, ""))))
    checking.check(one, soon())
    found = {test["check"]: test for test in one.record.data["tests"]}
    assert {name: test["verdict"] for name, test in found.items()} == {
        "chosen": "passed",
        "graphs": "failed",
        "streams": "passed",
    }
    assert "illegal access" in found["graphs"]["what"]
    assert not record.complete(one.record.data)


def test_a_fault_behind_a_check_that_passed_is_its_failure(session):
    one = session(lambda job: (passes(job)[0], Ended(1, "CUDA error")))
    checking.check_one(one, one.worker(()), job("graphs"), soon())
    assert [test["verdict"] for test in one.record.data["tests"]] == ["failed"]


def test_checks_there_is_no_time_for(session):
    one = session(passes)
    checking.check_one(one, one.worker(()), job("graphs"), soon(5))
    late = session(lambda job: ([], Ended(None, "")))
    checking.check_one(late, late.worker(()), job("graphs"), soon(30))
    for found in (one, late):
        assert [test["verdict"] for test in found.record.data["tests"]] == ["not run"]
        assert record.complete(found.record.data)


def test_a_check_that_hangs_is_a_failure(session):
    one = session(lambda job: ([], Ended(None, "")))
    worker, start = one.worker(()), time.time()
    checking.check_one(one, worker, job("graphs"), soon())
    (test,) = one.record.data["tests"]
    assert (test["verdict"], test["what"]) == ("failed", f"does not end within {checking.LIMIT} s: its time was up")
    assert worker.limits[0] - start == pytest.approx(checking.LIMIT, abs=5)
    assert worker.asked[0]["until"] < worker.limits[0]  # it is told to stop by itself before


def test_a_second_part_of_a_run_begins_with_what_the_first_left(session):
    jobs = [job(name) for name in ("chosen", "graphs", "streams")]
    listed = ([{"jobs": jobs}], Ended(0, ""))
    one = session(lambda job: ([], Ended(-6, "")) if job["check"] == "graphs" else passes(job), Script(listed, listed))
    for name in ("chosen", "graphs"):
        checking.check_one(one, one.worker(()), job(name), soon())
    checking.check(one, soon())
    assert [asked["check"] for asked in one.begin.workers[-1].asked] == ["streams", "chosen", "graphs"]


def test_a_list_of_checks_that_does_not_come_is_a_failure(session):
    one = session(passes, Script(([], Ended(1, "ImportError"))))
    checking.check(one, soon())
    assert one.record.data["failures"] == [
        {"stage": "checks", "name": "checks", "what": "list of checks: ended with 1; ImportError"}
    ]


def test_every_kernel_is_sanitized(session, monkeypatch):
    monkeypatch.setattr(sanitizers, "program", lambda: None)
    jobs = [job("first", "triton"), job("graphs", "triton"), job("first", "cuda")]
    one = session(passes, Script(([{"jobs": jobs}], Ended(0, ""))), workers=2)
    checking.sanitize(one, soon())
    expected = [(tool, "triton", "float32") for tool in ("memcheck", "racecheck")]
    for tool in ("memcheck", "racecheck", "synccheck"):
        expected += [(tool, "cuda", dtype) for dtype in ("bfloat16", "float32")]
    found = one.record.data["sanitizers"]
    assert sorted((s["tool"], s["backend"], s["dtype"]) for s in found) == sorted(expected)
    assert {s["what"] for s in found} == {"no compute-sanitizer here"}


def test_float32_is_sanitized_as_it_is_taken():
    found = sanitizers.jobs([job("first", dtype=dtype) for dtype in ("bfloat16", "tf32")])
    assert [one["dtype"] for one in found if one["tool"] == "memcheck"] == ["bfloat16", "tf32"]


def test_sanitizers_run_the_backend_that_they_name(session, monkeypatch):
    monkeypatch.setattr(sanitizers, "program", lambda: "/a/compute-sanitizer")
    passed = {"verdict": "passed", "what": ""}
    one = session(passes, Script(([passed], Ended(0, "ERROR SUMMARY: 0 errors"))))
    asked = {"op": "o", "backend": "cuda", "dtype": "bfloat16", "tool": "synccheck"}
    checking.sanitize_one(one, asked, soon())
    words, environment = one.listen.asked[0]
    assert words[:3] == ["/a/compute-sanitizer", "--tool", "synccheck"]
    assert sys.executable in words
    assert words[-5:] == ["o", "bfloat16", "smallest", "--backend", "cuda"]
    assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert one.record.data["sanitizers"] == [{**asked, "verdict": "passed", "what": "ERROR SUMMARY: 0 errors"}]
    checking.sanitize_one(one, {**asked, "dtype": "float32"}, soon(5))
    assert one.record.data["sanitizers"][1]["what"] == "no time left"


def test_verdicts_of_sanitizers():
    passed = [{"verdict": "passed", "what": ""}]
    clean = Ended(0, "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n")
    assert sanitizers.verdict("memcheck", clean, passed)["verdict"] == "passed"
    assert sanitizers.verdict("memcheck", clean, [])["verdict"] == "failed"
    errors = Ended(0, "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 10 errors\n")
    assert sanitizers.verdict("memcheck", errors, passed)["verdict"] == "failed"
    hazards = "========= RACECHECK SUMMARY: {} hazards displayed (0 errors, 0 warnings)\n"
    assert sanitizers.verdict("racecheck", Ended(0, hazards.format(0)), passed)["verdict"] == "passed"
    assert sanitizers.verdict("racecheck", Ended(0, hazards.format(10)), passed)["verdict"] == "failed"
    refused = Ended(1, "========= Error: Device not supported.")
    assert sanitizers.verdict("memcheck", refused, [])["verdict"] == "not run"
    assert sanitizers.verdict("memcheck", Ended(None, ""), [])["verdict"] == "not run"
