"""The stages that ask how fast, and where the time goes: compiling first, then one case after the other."""

import time
from collections.abc import Sequence
from pathlib import Path

from . import table
from .children import Worker, share
from .session import LEAST, WORK, Session, say

LIMIT = 90  # seconds of a job that compiles nothing
ONE_CORE = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def compile_first(session: Session, until: float, stages: Sequence[str]) -> None:
    """Puts on disk what the stages will time: fastnest's kernels, and what torch.compile makes of peers.

    By as many processes as there are cores, each on one of them; then whole networks, one at a time by all cores.
    Here several processes share the GPU, so that no choice among kernels by their time is kept: the process that times
    finds Triton's kernels compiled, and chooses among them alone.
    """
    jobs = jobs_to_compile(session, until, stages)

    def do(worker: Worker, job: dict) -> None:
        compile_one(session, worker, job, until)

    for network in (False, True):
        for tuned in (False, True):
            these = [job for job in jobs if (job["network"], job["tuned"]) == (network, tuned)]
            environment = {} if network else ONE_CORE
            if tuned:
                environment = {**environment, "TORCHINDUCTOR_CACHE_DIR": str(session.folder / "tuned")}
            workers = [session.worker(WORK, **environment) for _ in range(1 if network else session.workers)]
            share([(these, workers)], do)
    forget_choices(Path(session.caches["TORCHINDUCTOR_CACHE_DIR"]))


def jobs_to_compile(session: Session, until: float, stages: Sequence[str]) -> list[dict]:
    """Contestants of cases. Where only peers will be timed, a case's own kernels come right before its first peer."""
    listed = session.cases("compile", until)
    own = {
        name: {"name": name, "peer": "fastnest", "limit": LIMIT, "network": False, "tuned": False}
        for name in listed["cases"]
    }
    jobs = list(own.values()) if {"measure", "profile"} & set(stages) else []
    if "peers" in stages:
        for pair in listed["compiled"]:
            jobs += [job for job in (own[pair["name"]],) if job not in jobs]
            jobs.append(pair)
    return jobs


def compile_one(session: Session, worker: Worker, job: dict, until: float) -> None:
    """One contestant of a case; a network only if its limit is left, or if its peer is asked for."""
    name, peer, limit, now = job["name"], job["peer"], job["limit"], time.time()
    entry = {"name": name, "peer": peer, "seconds": 0.0}

    def on_line(line: dict) -> None:
        entry.update(line.get("compiled") or {"what": line["failures"]["what"]})

    if now + (limit if job["network"] and session.peers is None else LEAST) > until:
        entry["what"] = f"no time left: it may take {limit:.0f} s, {max(0, until - now):.0f} s are left"
    else:
        ended = worker.do({"do": "compile", "name": name, "peers": [peer]}, on_line, until=min(until, now + limit))
        entry.setdefault("what", f"{ended}; limit {min(limit, until - now):.0f} s")
    session.record.add("compiled", entry)
    took = f"compiled in {entry['seconds']} s"
    say(f"{name}: {peer} {entry['what'] or took}")


def forget_choices(cache: Path) -> None:
    """Takes out of torch.compile's cache which kernels were the fastest."""
    for path in cache.rglob("*.best_config"):
        path.unlink(missing_ok=True)


def measure(session: Session, until: float) -> None:
    """Every case beside what need not be compiled."""
    of = session.cases("measure", until)["cases"]
    jobs = [{"do": "measure", "name": name, "peers": peers} for name, peers in of.items()]
    _one_by_one(session, "measure", jobs, until)


def time_peers(session: Session, until: float) -> None:
    """Cases again, beside the peers that were compiled; not those whose numbers were wrong."""
    listed, data = session.cases("peers", until), session.record.data
    wrong = {one["name"] for one in data["failures"] if one["stage"] == "measure"}
    jobs: dict[str, dict] = {}
    for pair in listed["compiled"]:
        name, peer = pair["name"], pair["peer"]
        found = [one for one in data["compiled"] if (one["name"], one["peer"]) == (name, peer)]
        why_not = "its numbers were wrong" if name in wrong else found[0]["what"] if found else "not compiled"
        if why_not:
            session.record.add("not_measured", {"stage": "peers", "name": f"{name} beside {peer}", "what": why_not})
            continue
        job = jobs.setdefault(name, {"do": "measure", "name": name, "peers": [*listed["cases"][name]], "limit": LIMIT})
        job["peers"].append(peer)
        job["limit"] += pair["limit"]  # a tuned peer is tuned by the process that times
    _one_by_one(session, "peers", list(jobs.values()), until)


def profile(session: Session, until: float) -> None:
    """Where the time goes."""
    jobs = [{"do": "profile", "name": name} for name in session.cases("profile", until)["cases"]]
    _one_by_one(session, "profile", jobs, until)


def time_convolutions(session: Session, until: float) -> None:
    """Convolutions of dense_block2d one by one, and all of a network's at once, where their kernels run."""
    listed = session.cases("convolutions", until)
    if listed["no_convolutions"]:
        what = {"stage": "convolutions", "name": "convolutions", "what": listed["no_convolutions"]}
        session.record.add("not_measured", what)
    jobs = [{"do": "convolutions", "name": name} for name in listed["convolutions"]]
    _one_by_one(session, "convolutions", jobs, until)


def _one_by_one(session: Session, stage: str, jobs: list[dict], until: float) -> None:
    """All jobs in one process, which has the GPU to itself; the others go on where one dies or does not end."""
    record, worker = session.record, session.worker(WORK)
    try:
        if jobs and not record.data["rates"]:
            for name, value in session.ask(stage, worker, {"do": "rates"}, until).items():
                record.put(name, value)
        why_not = ""
        for job in jobs:
            if time.time() > until - LEAST:
                why_not = "no time left"
            if why_not:
                record.add("not_measured", {"stage": stage, "name": job["name"], "what": why_not})
                continue
            for what, entry in _one(worker, job, until).items():
                record.add(what, {"stage": stage, **entry} if what in ("failures", "not_measured") else entry)
                say(f"{stage}: {table.line_of(what, entry, record.data)}")
            if not worker.ready:
                why_not = "the process does not begin"
    finally:
        worker.close()


def _one(worker: Worker, job: dict, until: float) -> dict:
    """What a job found, by the list that it belongs to."""
    found: dict = {}
    limit = min(until, time.time() + job.get("limit", LIMIT))
    ended = worker.do(job, found.update, until=limit)
    if ended is not None and ended.status is not None:  # even behind an answer: the GPU had a fault then
        found["failures"] = {"name": job["name"], "what": str(ended)}
    elif not found and limit < until and "limit" not in job:
        found["failures"] = {"name": job["name"], "what": f"does not end within {LIMIT} s: {ended}"}
    elif not found:
        found["not_measured"] = {"name": job["name"], "what": str(ended)}
    return found
