"""The stages that ask whether the kernels are right: checks, by several processes at once, and sanitizers."""

import sys
import time

from . import sanitizers
from .children import Ended, Worker, share
from .install import ROOT
from .session import LEAST, Session, say

CHECKS = ROOT / "tests" / "gpu" / "checks.py"
LIMIT = 120  # seconds of a check; one that goes on hangs
NOT_BEGUN = Ended(None, "not begun")


def check(session: Session, until: float) -> None:
    """Every check, by risk; those that fill the memory one by one beside the others.

    What an earlier part of the run has found comes last.
    """
    known = {_name(test) for test in session.record.data["tests"] if test["verdict"] in ("passed", "failed")}
    jobs = [job for job in _jobs(session, "checks", until) if session.wants(_name(job))]
    jobs.sort(key=lambda job: _name(job) in known)
    large = [job for job in jobs if job["check"] == "large"]
    others = [job for job in jobs if job["check"] != "large"]
    # One thread each: the processes are as many as cores.
    workers = [
        session.worker((CHECKS, "--serve"), OMP_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1")
        for _ in range(session.workers + 1)
    ]

    def do(worker: Worker, job: dict) -> None:
        check_one(session, worker, job, until)

    share([(others, workers[1:]), (large, workers[:1])], do)


def _name(job: dict) -> str:
    return " ".join(job[key] for key in ("op", "backend", "dtype", "check", "part"))


def _jobs(session: Session, stage: str, until: float) -> list[dict]:
    """All there are; a failure of the stage if none is listed."""
    found: dict = {}
    ended = session.listen([sys.executable, CHECKS, "--list"], found.update, until=until, folder=session.folder,
                           environment=session.environment)  # fmt: skip
    if "jobs" not in found:
        session.record.add("failures", {"stage": stage, "name": stage, "what": f"list of checks: {ended}"})
    return found.get("jobs", [])


def check_one(session: Session, worker: Worker, job: dict, until: float) -> None:
    """One check; a process that dies, or does not end, is its failure."""
    found: list[dict] = []
    ended: Ended | None = NOT_BEGUN
    limit = min(until, time.time() + LIMIT)
    if time.time() < until - LEAST:
        ended = worker.do({**job, "until": limit - LEAST / 2}, found.append, until=limit)
    entry = {**job, "verdict": "not run", "what": str(ended), "done": 0, "of": 0, "failed": 0, "seconds": 0}
    if ended is None or (found and ended.status is None):
        entry = found[-1]
    elif ended.status is not None or limit < until:
        hangs = "" if ended.status is not None else f"does not end within {LIMIT} s: "
        entry |= {"verdict": "failed", "what": f"{hangs}{ended}", "failed": 1}
    session.record.add("tests", entry)
    if ended != NOT_BEGUN:
        what = entry["what"].splitlines()[:1] or ""
        say(f"{_name(entry)}: {entry['verdict']} {entry['done']}/{entry['of']} {what}")


def sanitize(session: Session, until: float) -> None:
    """compute-sanitizer, several at a time."""
    found = sanitizers.jobs(_jobs(session, "sanitize", until))
    jobs = [job for job in found if session.wants(job["op"], job["backend"], job["tool"])]

    def do(worker: Worker, job: dict) -> None:
        sanitize_one(session, job, until)

    # These begin a process a job: the workers stand for how many at a time.
    share([(jobs, [session.worker(()) for _ in range(max(1, session.workers // 2))])], do)


def sanitize_one(session: Session, job: dict, until: float) -> None:
    """One tool on an op's smallest case. Without torch's cache, every tensor ends where its memory does."""
    program, found = sanitizers.program(), []
    if program is None or time.time() > until - 2 * LEAST:
        what = "no compute-sanitizer here" if program is None else "no time left"
        return session.record.add("sanitizers", {**job, "verdict": "not run", "what": what})
    words = [*sanitizers.prefix(program, job["tool"]), sys.executable, CHECKS, job["op"], job["dtype"], "smallest"]
    ended = session.listen(
        [*words, "--backend", job["backend"]],
        found.append,
        until=until,
        folder=session.folder,
        environment={**session.environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    entry = {**job, **sanitizers.verdict(job["tool"], ended, found)}
    session.record.add("sanitizers", entry)
    return say(f"{entry['op']} {entry['backend']} {entry['dtype']} {entry['tool']}: {entry['verdict']}")
