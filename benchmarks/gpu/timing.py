"""The stages that ask how fast, and where the time goes: compiling first, then one case after the other."""

import time
from collections.abc import Sequence

from . import table
from .children import Worker, share
from .session import LEAST, WORK, Session, say

LONGEST = 90  # seconds of a job that compiles nothing


def compile_first(session: Session, until: float, stages: Sequence[str]) -> None:
    """Puts on disk what the stages will time: fastnest's kernels, and what torch.compile makes of peers.

    By as many processes as there are cores, each on one of them. Whole networks come last and one at a time, by all
    cores.
    """
    listed = session.cases(until)
    own = [{"name": name, "peer": "fastnest", "limit": LONGEST, "alone": False} for name in listed["cases"]]
    pairs = listed["compiled"] if "peers" in stages else []
    jobs = [*own, *pairs] if set(stages) & {"measure", "profile", "peers"} else []

    def do(worker: Worker, job: dict) -> None:
        compiled(session, worker, job, until)

    one_core = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    beside = [job for job in jobs if not job["alone"]]
    share(beside, [session.worker(WORK, **one_core) for _ in range(session.workers)], do)
    share([job for job in jobs if job["alone"]], [session.worker(WORK)], do)


def compiled(session: Session, worker: Worker, job: dict, until: float) -> None:
    """One contestant of a case; a network if its limit is left, or if it is asked for."""
    name, peer, limit, now = job["name"], job["peer"], job["limit"], time.time()
    entry = {"name": name, "peer": peer, "seconds": 0.0}

    def on_line(line: dict) -> None:
        entry.update(line.get("compiled") or {"what": line["failures"]["what"]})

    if now + (limit if job["alone"] and session.peers is None else LEAST) > until:
        entry["what"] = f"no time left: it may take {limit:.0f} s, {max(0, until - now):.0f} s are left"
    else:
        ended = worker.do({"do": "compile", "name": name, "peers": [peer]}, on_line, until=min(until, now + limit))
        entry.setdefault("what", f"{ended}; limit {limit:.0f} s")
    session.record.add("compiled", entry)
    took = f"compiled in {entry['seconds']} s"
    say(f"{name}: {peer} {entry['what'] or took}")


def measure(session: Session, until: float) -> None:
    """Every case beside what need not be compiled."""
    of = session.cases(until)["cases"]
    jobs = [{"do": "measure", "name": name, "peers": peers} for name, peers in of.items()]
    _timed(session, "measure", jobs, until)


def beside_compiled(session: Session, until: float) -> None:
    """Cases again, beside the peers that were compiled; not those whose numbers were wrong."""
    listed, data = session.cases(until), session.record.data
    wrong = {one["name"] for one in data["failures"] if one["stage"] == "measure"}
    jobs: dict[str, dict] = {}
    for pair in listed["compiled"]:
        name, peer = pair["name"], pair["peer"]
        found = [one for one in data["compiled"] if (one["name"], one["peer"]) == (name, peer)]
        why_not = "its numbers were wrong" if name in wrong else found[0]["what"] if found else "not compiled"
        if why_not:
            session.record.add("not_measured", {"stage": "peers", "name": f"{name} beside {peer}", "what": why_not})
            continue
        job = jobs.setdefault(
            name, {"do": "measure", "name": name, "peers": [*listed["cases"][name]], "limit": LONGEST}
        )
        job["peers"].append(peer)
        job["limit"] += pair["limit"]  # what is tuned is tuned by the process that times
    _timed(session, "peers", list(jobs.values()), until)


def profile(session: Session, until: float) -> None:
    """Where the time goes."""
    _timed(session, "profile", [{"do": "profile", "name": name} for name in session.cases(until)["cases"]], until)


def _timed(session: Session, stage: str, jobs: list[dict], until: float) -> None:
    """Jobs one after the other in one process, alone on the GPU; the others go on where one dies or does not end."""
    record, worker = session.record, session.worker(WORK)
    if jobs and not record.data["rates"]:
        for name, value in session.ask(worker, {"do": "rates"}, until).items():
            record.put(name, value)
    for number, job in enumerate(jobs):
        name, now = job["name"], time.time()
        if now > until - LEAST:
            for late in jobs[number:]:
                record.add("not_measured", {"stage": stage, "name": late["name"], "what": "no time left"})
            break
        found: dict = {}
        ended = worker.do(job, found.update, until=min(until, now + job.get("limit", LONGEST)))
        if ended is not None and ended.status is not None:  # even if it had an answer: the GPU had a fault behind it
            found["failures"] = {"name": name, "what": str(ended)}
        elif not found:
            found["not_measured"] = {"name": name, "what": str(ended)}
        for what, entry in found.items():
            record.add(what, {"stage": stage, **entry} if what in ("failures", "not_measured") else entry)
            say(f"{stage}: {table.line_of(what, entry, record.data)}")
        if ended is not None and not worker.ready:
            break  # it would never begin, whatever the job
    worker.close()
