"""What each stage of `make gpu` runs, and what becomes of answers, of deaths and of lack of time."""

import sys
import time

import pytest
from gpu.result import FACTS, RATES, Ended, Office, Script, profile, row

from fastnest.benchmarks.gpu import record, sanitizers, stages


@pytest.fixture
def session(tmp_path):
    """One whose workers reply as a test says: session(replies, ...)."""

    def make(replies, listen=None, **options) -> stages.Session:
        one = record.Record(tmp_path / "card.json", FACTS)
        one.put("rates", RATES)
        return stages.Session(one, listen=listen, begin=Office(replies), environment={"KEPT": "1"}, **options)

    return make


def soon(seconds: float = 1000) -> float:
    return time.time() + seconds


# Of checks.


def job(check: str, backend: str = "cuda", dtype: str = "float32") -> dict:
    return {"op": "o", "backend": backend, "dtype": dtype, "check": check, "part": "0/1"}


def passes(job: dict) -> tuple[list, Ended | None]:
    told = {"verdict": "passed", "done": 2, "of": 2, "failed": 0, "what": "", "seconds": 1}
    return [{key: job[key] for key in record.KEYS["tests"]} | told], None


def test_every_check_is_begun_and_those_that_fill_memory_have_a_process_of_their_own(session):
    jobs = [job("first"), job("large"), job("graphs"), job("large", "triton")]
    one = session(passes, Script(([{"jobs": jobs}], Ended(0, ""))), workers=2)
    stages.check(one, soon())
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
    stages.check(one, soon())
    assert [(t["backend"], t["check"]) for t in one.record.data["tests"]] == [("cuda", "first")]


def test_checks_that_die_say_where_and_the_others_go_on(session):
    def replies(job):
        return ([], Ended(-6, "illegal access")) if job["check"] == "graphs" else passes(job)

    jobs = [job(name) for name in ("chosen", "graphs", "streams")]
    one = session(replies, Script(([{"jobs": jobs}], Ended(0, ""))))
    stages.check(one, soon())
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
    stages.checked(one, one.worker(()), job("graphs"), soon())
    assert [test["verdict"] for test in one.record.data["tests"]] == ["failed"]


def test_checks_there_is_no_time_for(session):
    one = session(passes)
    stages.checked(one, one.worker(()), job("graphs"), soon(5))
    slow = session(lambda job: ([], Ended(None, "")))
    stages.checked(slow, slow.worker(()), job("graphs"), soon())
    assert [test["verdict"] for test in one.record.data["tests"]] == ["not run"]
    assert [test["verdict"] for test in slow.record.data["tests"]] == ["not run"]


def test_a_list_of_checks_that_does_not_come_is_a_failure(session):
    one = session(passes, Script(([], Ended(1, "ImportError"))))
    stages.check(one, soon())
    assert one.record.data["failures"][0]["what"] == "ended with 1; ImportError"


# Of what is compiled and timed.

CASES = {"a": ["eager"], "b": ["eager", "memory-efficient"]}
PAIRS = [
    {"name": "a", "peer": "compile", "limit": 90, "alone": False},
    {"name": "a", "peer": "max-autotune", "limit": 90, "alone": False},
    {"name": "b", "peer": "compile", "limit": 300, "alone": True},
]


def works(job: dict) -> tuple[list, Ended | None]:
    """A worker in which everything succeeds."""
    if job["do"] == "list":
        return [{"cases": CASES, "compiled": PAIRS}], None
    if job["do"] == "rates":
        return [{"rates": RATES, "device": {"driver": "580"}}], None
    if job["do"] == "compile":
        return [{"compiled": {"name": job["name"], "peer": job["peers"][0], "seconds": 7.0, "what": ""}}], None
    return [{"rows": row(job["name"])} if job["do"] == "measure" else {"profiles": profile(job["name"])}], None


def compiled(one: stages.Session) -> dict:
    return {(entry["name"], entry["peer"]): entry["what"] for entry in one.record.data["compiled"]}


def test_everything_is_compiled_by_many_processes_networks_by_one(session):
    one = session(works, workers=3)
    stages.compile_first(one, soon(), ["compile", "measure", "peers"])
    assert list(compiled(one).values()) == [""] * 5
    parallel, alone = one.begin.workers[1:4], one.begin.workers[4]  # behind the one that was asked for the list
    assert {worker.environment.get("TORCHINDUCTOR_COMPILE_THREADS") for worker in parallel} == {"1"}
    assert "TORCHINDUCTOR_COMPILE_THREADS" not in alone.environment
    assert [job["name"] for job in alone.asked] == ["b"]
    begun = [(job["name"], job["peers"][0]) for worker in parallel for job in worker.asked]
    assert sorted(begun) == [("a", "compile"), ("a", "fastnest"), ("a", "max-autotune"), ("b", "fastnest")]


@pytest.mark.parametrize(("asked", "peers"), [(["measure"], []), (["profile"], []), (["compile"], None)])
def test_only_what_will_be_timed_is_compiled(session, asked, peers):
    one = session(works)
    stages.compile_first(one, soon(), ["compile", *asked])
    assert set(compiled(one)) == (set() if peers is None else {("a", "fastnest"), ("b", "fastnest")})


def test_a_peer_that_takes_minutes_waits_until_it_is_asked_for_or_time_is_left(session):
    one = session(works)
    stages.compile_first(one, soon(100), ["peers"])
    assert compiled(one)["b", "compile"].startswith("no time left: it may take 300 s, ")
    assert compiled(one)["a", "compile"] == ""
    asked = session(works, peers=["compile"])
    stages.compile_first(asked, soon(100), ["peers"])
    assert compiled(asked)["b", "compile"] == ""


def test_every_peer_has_a_limit_of_its_own(session):
    one = session(lambda job: ([], Ended(None, "")) if job["do"] == "compile" else works(job))
    start = time.time()
    stages.compile_first(one, soon(), ["peers"])
    assert compiled(one)["a", "compile"] == "its time was up; limit 90 s"
    limits = [until - start for worker in one.begin.workers[1:] for until in worker.limits]
    assert limits == pytest.approx([60, 60, 90, 90, 300], abs=5)
    assert record.complete(one.record.data)  # no failure of fastnest's


def test_cases_are_measured_one_after_the_other(session):
    one = session(works)
    one.record.put("rates", {})
    stages.measure(one, soon())
    assert [r["name"] for r in one.record.data["rows"]] == ["a", "b"]
    assert one.record.data["rates"] == RATES
    assert one.record.data["device"] == {"driver": "580"}
    timing = one.begin.workers[-1]
    assert timing.asked == [{"do": "measure", "name": name, "peers": peers} for name, peers in CASES.items()]
    assert all(worker.closed for worker in one.begin.workers)


def test_measuring_goes_on_behind_a_case_that_died(session):
    def replies(job):
        died = job.get("name") == "a" and job["do"] == "measure"
        return ([], Ended(-11, "fault")) if died else works(job)

    one = session(replies)
    stages.measure(one, soon())
    assert [r["name"] for r in one.record.data["rows"]] == ["b"]
    assert one.record.data["failures"] == [{"stage": "measure", "name": "a", "what": "ended with -11; fault"}]


def test_what_time_cuts_off_is_no_failure(session):
    one = session(lambda job: ([], Ended(None, "")) if job["do"] == "measure" else works(job))
    stages.measure(one, soon())
    assert [n["what"] for n in one.record.data["not_measured"]] == ["its time was up"] * 2
    late = session(works)
    stages.measure(late, soon(5))
    assert [(n["name"], n["what"]) for n in late.record.data["not_measured"]] == [
        ("a", "no time left"),
        ("b", "no time left"),
    ]
    assert record.complete(late.record.data)


def test_wrong_numbers_are_a_failure_and_have_no_peers(session):
    wrong = {"failures": {"name": "a", "what": "wrong numbers"}}
    one = session(lambda job: ([wrong], None) if (job["do"], job.get("name")) == ("measure", "a") else works(job))
    stages.measure(one, soon())
    assert one.record.data["failures"] == [{"stage": "measure", "name": "a", "what": "wrong numbers"}]
    stages.compile_first(one, soon(), ["peers"])
    stages.beside_compiled(one, soon())
    assert [job["name"] for job in one.begin.workers[-1].asked] == ["b"]
    assert {n["name"]: n["what"] for n in one.record.data["not_measured"]} == {
        "a beside compile": "its numbers were wrong",
        "a beside max-autotune": "its numbers were wrong",
    }


def test_a_process_that_never_begins_is_told_once(session):
    one = session(lambda job: ([], Ended(1, "ImportError")) if job["do"] == "measure" else works(job))
    begin = one.begin
    one.begin = lambda *words, **options: never_ready(begin(*words, **options))
    stages.measure(one, soon())
    assert one.record.data["failures"] == [{"stage": "measure", "name": "a", "what": "ended with 1; ImportError"}]


def never_ready(worker):
    worker.ready = False
    return worker


def test_peers_are_timed_that_were_compiled(session):
    def replies(job):
        slow = job["do"] == "compile" and job["peers"] == ["max-autotune"]
        return ([], Ended(None, "")) if slow else works(job)

    one = session(replies)
    stages.compile_first(one, soon(), ["peers"])
    stages.beside_compiled(one, soon())
    asked = {job["name"]: job["peers"] for job in one.begin.workers[-1].asked}
    assert asked == {"a": ["eager", "compile"], "b": ["eager", "memory-efficient", "compile"]}
    assert one.record.data["not_measured"] == [
        {"stage": "peers", "name": "a beside max-autotune", "what": "its time was up; limit 90 s"}
    ]


def test_profiles(session):
    one = session(works)
    stages.profile(one, soon())
    assert [p["name"] for p in one.record.data["profiles"]] == ["a", "b"]
    assert one.record.data["profiles"][0]["of"]["eager"]["launches"] == 3


# Of sanitizers.


def test_every_kernel_is_sanitized(session, monkeypatch):
    monkeypatch.setattr(sanitizers, "program", lambda: None)
    jobs = [job("first", "triton"), job("graphs", "triton"), job("first", "cuda")]
    one = session(passes, Script(([{"jobs": jobs}], Ended(0, ""))), workers=2)
    stages.sanitize(one, soon())
    expected = [(tool, "triton", "float32") for tool in ("memcheck", "racecheck")]
    for tool in ("memcheck", "racecheck", "synccheck"):
        expected += [(tool, "cuda", dtype) for dtype in ("bfloat16", "float32")]
    found = one.record.data["sanitizers"]
    assert sorted((s["tool"], s["backend"], s["dtype"]) for s in found) == sorted(expected)
    assert {s["what"] for s in found} == {"no compute-sanitizer here"}


def test_sanitizers_run_the_backend_that_they_name(session, monkeypatch):
    monkeypatch.setattr(sanitizers, "program", lambda: "/a/compute-sanitizer")
    passed = {"verdict": "passed", "what": ""}
    one = session(passes, Script(([passed], Ended(0, "ERROR SUMMARY: 0 errors"))))
    asked = {"op": "o", "backend": "cuda", "dtype": "bfloat16", "tool": "synccheck"}
    stages.sanitized(one, asked, soon())
    words, environment = one.listen.asked[0]
    assert words[:3] == ["/a/compute-sanitizer", "--tool", "synccheck"]
    assert sys.executable in words
    assert words[-5:] == ["o", "bfloat16", "smallest", "--backend", "cuda"]
    assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert one.record.data["sanitizers"] == [{**asked, "verdict": "passed", "what": "ERROR SUMMARY: 0 errors"}]
    stages.sanitized(one, asked, soon(5))
    assert one.record.data["sanitizers"][0]["what"] == "no time left"


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
