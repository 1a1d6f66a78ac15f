"""The stages that ask whether the kernels are right: checks, by several processes at once, and sanitizers."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

from . import sanitizers
from .children import Ended, Worker, share
from .install import ROOT
from .session import LEAST, Session, say

CHECKS = ROOT / "tests" / "gpu" / "checks.py"
NOT_BEGUN = Ended(None, "not begun")


def check(session: Session, until: float) -> None:
    """Every check, by risk; those that fill the memory one by one beside the others."""
    jobs = [
        job for job in _checks(session, until) if session.wants(job["op"], job["backend"], job["dtype"], job["check"])
    ]
    large = [job for job in jobs if job["check"] == "large"]
    others = [job for job in jobs if job["check"] != "large"]
    # One thread each: the processes are as many as cores.
    workers = [
        session.worker((CHECKS, "--serve"), OMP_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1")
        for _ in range(session.workers + 1)
    ]

    def do(worker: Worker, job: dict) -> None:
        checked(session, worker, job, until)

    with ThreadPoolExecutor(2) as lanes:
        for lane in [lanes.submit(share, others, workers[1:], do), lanes.submit(share, large, workers[:1], do)]:
            lane.result()


def _checks(session: Session, until: float) -> list[dict]:
    found: dict = {}
    ended = session.listen([sys.executable, CHECKS, "--list"], found.update, until=until, folder=session.folder,
                           environment=session.environment)  # fmt: skip
    if "jobs" not in found:
        session.record.add("failures", {"stage": "checks", "name": "list of checks", "what": str(ended)})
    return found.get("jobs", [])


def checked(session: Session, worker: Worker, job: dict, until: float) -> None:
    """One check; a process that dies is its failure."""
    found: list[dict] = []
    ended: Ended | None = NOT_BEGUN
    if time.time() < until - LEAST:
        ended = worker.do({**job, "until": until - LEAST / 2}, found.append, until=until)
    if ended is None or (found and ended.status is None):
        entry = found[-1]
    else:
        crashed = ended.status is not None
        entry = {**job, "verdict": "failed" if crashed else "not run", "what": str(ended)}
        entry |= {"done": 0, "of": 0, "failed": int(crashed), "seconds": 0}
    session.record.add("tests", entry)
    if ended == NOT_BEGUN:
        return
    said = f"{entry['verdict']} {entry['done']}/{entry['of']} {entry['what'].splitlines()[:1] or ''}"
    say(f"{entry['op']} {entry['backend']} {entry['dtype']} {entry['check']} {entry['part']}: {said}")


def sanitize(session: Session, until: float) -> None:
    """compute-sanitizer, several at a time."""
    found = dict.fromkeys((job["op"], job["backend"]) for job in _checks(session, until))
    jobs = [job for job in sanitizers.jobs(list(found)) if session.wants(job["op"], job["backend"], job["tool"])]
    with ThreadPoolExecutor(max(1, session.workers // 2)) as pool:
        for _ in pool.map(lambda job: sanitized(session, job, until), jobs):
            pass


def sanitized(session: Session, job: dict, until: float) -> None:
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
