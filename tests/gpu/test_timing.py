"""Compiling, measuring and profiling as stages: what is begun, and what becomes of deaths and lack of time."""

import time

import pytest
from gpu.result import RATES, Ended, profile, row, soon

from fastnest.benchmarks.gpu import record, timing
from fastnest.benchmarks.gpu.session import Session, caches

CASES = {"a": ["eager"], "b": ["eager", "memory-efficient"]}
PAIRS = [
    {"name": "a", "peer": "compile", "limit": 90, "network": False, "tuned": False},
    {"name": "a", "peer": "max-autotune", "limit": 90, "network": False, "tuned": True},
    {"name": "b", "peer": "compile", "limit": 300, "network": True, "tuned": False},
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


def compiled(one: Session) -> dict:
    return {(entry["name"], entry["peer"]): entry["what"] for entry in one.record.data["compiled"]}


def test_everything_is_compiled_by_many_processes_networks_by_one(session):
    one = session(works, workers=3)
    timing.compile_first(one, soon(), ["compile", "measure", "peers"])
    assert list(compiled(one).values()) == [""] * 5
    # Behind the one that was asked for the list: three each for what is not tuned and what is, one each for networks.
    plain, tuned, networks = one.begin.workers[1:4], one.begin.workers[4:7], one.begin.workers[7:]
    assert len(networks) == 2
    assert {worker.environment.get("TORCHINDUCTOR_COMPILE_THREADS") for worker in (*plain, *tuned)} == {"1"}
    assert not any("TORCHINDUCTOR_COMPILE_THREADS" in worker.environment for worker in networks)
    begun = [
        [(job["name"], job["peers"][0]) for worker in of for job in worker.asked] for of in (plain, tuned, networks)
    ]
    assert [sorted(of) for of in begun] == [
        [("a", "compile"), ("a", "fastnest"), ("b", "fastnest")],
        [("a", "max-autotune")],
        [("b", "compile")],
    ]


def test_what_is_compiled_is_found_but_no_choice_among_kernels(session, tmp_path):
    """Where several processes share the GPU, a time says nothing."""
    cache = tmp_path / "cache"
    kept, choice = cache / "ab" / "kernel.py", cache / "ab" / "kernel.best_config"
    kept.parent.mkdir(parents=True)
    for path in (kept, choice):
        path.write_text("")
    one = session(works, caches={"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": str(cache)})
    timing.compile_first(one, soon(), ["peers"])
    timing.measure(one, soon())
    assert {worker.environment["TRITON_CACHE_DIR"] for worker in one.begin.workers} == {"triton"}
    of = {
        worker.environment["TORCHINDUCTOR_CACHE_DIR"]: job["peers"][0]
        for worker in one.begin.workers
        for job in worker.asked
        if job["do"] == "compile"
    }
    assert of == {str(cache): "compile", str(one.folder / "tuned"): "max-autotune"}
    assert one.begin.workers[-1].environment["TORCHINDUCTOR_CACHE_DIR"] == str(cache)  # the one that times
    assert kept.exists()
    assert not choice.exists()


def test_caches_have_one_place(monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/a/cache")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    found = caches()
    assert found["TRITON_CACHE_DIR"] == "/a/cache"
    assert found["TORCHINDUCTOR_CACHE_DIR"].endswith("fastnest-gpu-inductor")


def test_of_peers_alone_a_case_is_compiled_with_its_own_kernels(session):
    one = session(works)
    jobs = timing.jobs_to_compile(one, soon(), ["peers"])
    assert [(job["name"], job["peer"]) for job in jobs] == [
        *(("a", "fastnest"), ("a", "compile"), ("a", "max-autotune")),
        *(("b", "fastnest"), ("b", "compile")),
    ]


@pytest.mark.parametrize(("asked", "peers"), [(["measure"], []), (["profile"], []), (["compile"], None)])
def test_only_what_will_be_timed_is_compiled(session, asked, peers):
    one = session(works)
    timing.compile_first(one, soon(), ["compile", *asked])
    assert set(compiled(one)) == (set() if peers is None else {("a", "fastnest"), ("b", "fastnest")})


def test_a_peer_that_takes_minutes_waits_until_it_is_asked_for_or_time_is_left(session):
    one = session(works)
    timing.compile_first(one, soon(100), ["peers"])
    assert compiled(one)["b", "compile"].startswith("no time left: it may take 300 s, ")
    assert compiled(one)["a", "compile"] == ""
    asked = session(works, peers=["compile"])
    timing.compile_first(asked, soon(100), ["peers"])
    assert compiled(asked)["b", "compile"] == ""


def test_every_peer_has_a_limit_of_its_own(session):
    one = session(lambda job: ([], Ended(None, "")) if job["do"] == "compile" else works(job))
    start = time.time()
    timing.compile_first(one, soon(), ["peers"])
    assert compiled(one)["a", "compile"] == "its time was up; limit 90 s"
    limits = [until - start for worker in one.begin.workers[1:] for until in worker.limits]
    assert limits == pytest.approx([timing.LIMIT, 90, timing.LIMIT, 90, 300], abs=5)
    assert record.complete(one.record.data)  # no failure of fastnest's


def test_cases_are_measured_one_after_the_other(session):
    one = session(works)
    one.record.put("rates", {})
    timing.measure(one, soon())
    assert [r["name"] for r in one.record.data["rows"]] == ["a", "b"]
    assert one.record.data["rates"] == RATES
    assert one.record.data["device"] == {"driver": "580"}
    worker = one.begin.workers[-1]
    jobs = [{"do": "measure", "name": name, "peers": peers} for name, peers in CASES.items()]
    assert worker.asked == [{"do": "rates"}, *jobs]
    assert all(worker.closed for worker in one.begin.workers)


def test_measuring_goes_on_behind_a_case_that_died(session):
    def replies(job):
        died = job.get("name") == "a" and job["do"] == "measure"
        return ([], Ended(-11, "fault")) if died else works(job)

    one = session(replies)
    timing.measure(one, soon())
    assert [r["name"] for r in one.record.data["rows"]] == ["b"]
    assert one.record.data["failures"] == [{"stage": "measure", "name": "a", "what": "ended with -11; fault"}]


def test_what_time_cuts_off_is_no_failure(session):
    one = session(lambda job: ([], Ended(None, "")) if job["do"] == "measure" else works(job))
    timing.measure(one, soon(30))
    assert [n["what"] for n in one.record.data["not_measured"]] == ["its time was up"] * 2
    late = session(works)
    timing.measure(late, soon(5))
    assert [(n["name"], n["what"]) for n in late.record.data["not_measured"]] == [
        ("a", "no time left"),
        ("b", "no time left"),
    ]
    assert record.complete(late.record.data)


def test_a_case_that_hangs_is_a_failure_but_not_a_peer_that_compiles(session):
    one = session(lambda job: ([], Ended(None, "")) if job["do"] == "measure" else works(job))
    timing.measure(one, soon())
    hangs = f"does not end within {timing.LIMIT} s: its time was up"
    assert [f["what"] for f in one.record.data["failures"]] == [hangs] * 2
    two = session(lambda job: ([], Ended(None, "")) if job["do"] == "measure" else works(job))
    timing.compile_first(two, soon(), ["peers"])
    timing.time_peers(two, soon())
    assert {n["name"]: n["what"] for n in two.record.data["not_measured"]} == dict.fromkeys("ab", "its time was up")
    assert record.complete(two.record.data)


def test_wrong_numbers_are_a_failure_and_have_no_peers(session):
    wrong = {"failures": {"name": "a", "what": "wrong numbers"}}
    one = session(lambda job: ([wrong], None) if (job["do"], job.get("name")) == ("measure", "a") else works(job))
    timing.measure(one, soon())
    assert one.record.data["failures"] == [{"stage": "measure", "name": "a", "what": "wrong numbers"}]
    timing.compile_first(one, soon(), ["peers"])
    timing.time_peers(one, soon())
    assert [job["name"] for job in one.begin.workers[-1].asked] == ["b"]
    assert {n["name"]: n["what"] for n in one.record.data["not_measured"]} == {
        "a beside compile": "its numbers were wrong",
        "a beside max-autotune": "its numbers were wrong",
    }


def test_a_process_that_never_begins_is_told_once(session):
    one = session(lambda job: ([], Ended(1, "ImportError")) if job["do"] == "measure" else works(job))
    begin = one.begin
    one.begin = lambda *words, **options: never_ready(begin(*words, **options))
    timing.measure(one, soon())
    assert one.record.data["failures"] == [{"stage": "measure", "name": "a", "what": "ended with 1; ImportError"}]
    assert [(n["name"], n["what"]) for n in one.record.data["not_measured"]] == [("b", "the process does not begin")]


def test_a_list_of_cases_that_does_not_come_is_a_failure_of_the_stage(session):
    one = session(lambda job: ([], Ended(1, "ImportError")))
    timing.profile(one, soon())
    assert one.record.data["failures"] == [
        {"stage": "profile", "name": "profile", "what": "list: ended with 1; ImportError"}
    ]


def never_ready(worker):
    worker.ready = False
    return worker


def test_peers_are_timed_that_were_compiled(session):
    def replies(job):
        slow = job["do"] == "compile" and job["peers"] == ["max-autotune"]
        return ([], Ended(None, "")) if slow else works(job)

    one = session(replies)
    timing.compile_first(one, soon(), ["peers"])
    timing.time_peers(one, soon())
    asked = {job["name"]: job["peers"] for job in one.begin.workers[-1].asked}
    assert asked == {"a": ["eager", "compile"], "b": ["eager", "memory-efficient", "compile"]}
    assert one.record.data["not_measured"] == [
        {"stage": "peers", "name": "a beside max-autotune", "what": "its time was up; limit 90 s"}
    ]


def test_profiles(session):
    one = session(works)
    timing.profile(one, soon())
    assert [p["name"] for p in one.record.data["profiles"]] == ["a", "b"]
    assert one.record.data["profiles"][0]["of"]["eager"]["launches"] == 3


def test_a_fault_behind_a_row_is_a_failure(session):
    one = session(lambda job: (works(job)[0], Ended(3, "CUDA error")) if job["do"] == "measure" else works(job))
    timing.measure(one, soon())
    assert [f["what"] for f in one.record.data["failures"]] == ["ended with 3; CUDA error"] * 2
