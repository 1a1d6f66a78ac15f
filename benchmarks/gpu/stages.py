"""The stages of `make gpu` behind the installation: what each runs, in which processes, and what becomes of answers."""

import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import sanitizers, table
from .children import Ended, Worker, listen, share
from .install import ROOT
from .record import Record

CHECKS = (ROOT / "tests" / "gpu" / "checks.py", "--serve")
WORK = ("-m", "fastnest.benchmarks.gpu.work")
LEAST = 10  # seconds that a job needs to be worth beginning
LONGEST = 60  # seconds of a job that compiles nothing
NOT_BEGUN = Ended(None, "not begun")


def say(text: str) -> None:
    print(f"gpu: {text}", file=sys.stderr, flush=True)


@dataclass
class Session:
    """A run: where it writes, what it is asked for, and how it starts what it runs."""

    record: Record
    workers: int = 1
    only: str = ""  # a regular expression: cases and checks in whose name it is found
    peers: Sequence[str] | None = None  # that are asked for; None: those that there is time for
    environment: dict[str, str] = field(default_factory=dict)
    listen: Callable[..., Ended] = listen
    begin: Callable[..., Worker] = Worker
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="fastnest-gpu-")))

    def worker(self, words: Sequence[object], **environment: str) -> Worker:
        return self.begin([sys.executable, *words], folder=self.folder, environment={**self.environment, **environment})

    def ask(self, job: dict, until: float) -> dict:
        """What one job of a worker finds; a failure if that is nothing."""
        found: dict = {}
        worker = self.worker(WORK)
        ended = worker.do(job, found.update, until=until)
        worker.close()
        if not found:
            self.record.add("failures", {"stage": job["do"], "name": job["do"], "what": str(ended)})
        return found

    def wants(self, *words: str) -> bool:
        return re.search(self.only, " ".join(words)) is not None


def check(session: Session, until: float) -> None:
    """Every check, by risk; those that fill the memory one by one beside the others."""
    jobs = [
        job for job in _checks(session, until) if session.wants(job["op"], job["backend"], job["dtype"], job["check"])
    ]
    large = [job for job in jobs if job["check"] == "large"]
    others = [job for job in jobs if job["check"] != "large"]
    # One thread each: the processes are as many as cores.
    workers = [
        session.worker(CHECKS, OMP_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1")
        for _ in range(session.workers + 1)
    ]

    def do(worker: Worker, job: dict) -> None:
        checked(session, worker, job, until)

    with ThreadPoolExecutor(2) as lanes:
        for lane in [lanes.submit(share, others, workers[1:], do), lanes.submit(share, large, workers[:1], do)]:
            lane.result()


def _checks(session: Session, until: float) -> list[dict]:
    found: dict = {}
    ended = session.listen([sys.executable, CHECKS[0], "--list"], found.update, until=until, folder=session.folder,
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
    words = [*sanitizers.prefix(program, job["tool"]), sys.executable, CHECKS[0], job["op"], job["dtype"], "smallest"]
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


def compile_first(session: Session, until: float, stages: Sequence[str]) -> None:
    """Puts on disk what the stages will time: fastnest's kernels, and what torch.compile makes of peers.

    By as many processes as there are cores, each on one of them. Whole networks come last and one at a time, by all
    cores, if their limit is left or they are asked for.
    """
    listed = session.ask({"do": "list", "only": session.only, "peers": session.peers}, until)
    own = [{"name": name, "peer": "fastnest", "limit": LONGEST, "alone": False} for name in listed.get("cases", {})]
    pairs = listed.get("compiled", []) if "peers" in stages else []
    jobs = [*own, *pairs] if set(stages) & {"measure", "profile", "peers"} else []

    def do(worker: Worker, job: dict) -> None:
        name, peer, now = job["name"], job["peer"], time.time()
        entry = {"name": name, "peer": peer, "seconds": 0.0}

        def on_line(line: dict) -> None:
            entry.update(line.get("compiled") or {"what": line["failures"]["what"]})

        needed = job["limit"] if job["alone"] and session.peers is None else LEAST
        if now + needed > until:
            entry["what"] = f"no time left: it may take {job['limit']:.0f} s, {max(0, until - now):.0f} s are left"
        else:
            ended = worker.do(
                {"do": "compile", "name": name, "peers": [peer]}, on_line, until=min(until, now + job["limit"])
            )
            entry.setdefault("what", f"{ended}; limit {job['limit']:.0f} s")
        session.record.add("compiled", entry)
        took = f"compiled in {entry['seconds']} s"
        say(f"{name}: {peer} {entry['what'] or took}")

    one_core = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    beside = [job for job in jobs if not job["alone"]]
    share(beside, [session.worker(WORK, **one_core) for _ in range(session.workers)], do)
    share([job for job in jobs if job["alone"]], [session.worker(WORK)], do)


def measure(session: Session, until: float) -> None:
    """Every case beside what need not be compiled."""
    listed = session.ask({"do": "list", "only": session.only, "peers": session.peers}, until)
    jobs = [{"do": "measure", "name": name, "peers": peers} for name, peers in listed.get("cases", {}).items()]
    _timed(session, "measure", jobs, until)


def beside_compiled(session: Session, until: float) -> None:
    """Cases again, beside the peers that were compiled; not those whose numbers were wrong."""
    listed = session.ask({"do": "list", "only": session.only, "peers": session.peers}, until)
    of, data = listed.get("cases", {}), session.record.data
    wrong = {one["name"] for one in data["failures"] if one["stage"] == "measure"}
    jobs: dict[str, dict] = {}
    for pair in listed.get("compiled", []):
        name, peer = pair["name"], pair["peer"]
        found = [one for one in data["compiled"] if (one["name"], one["peer"]) == (name, peer)]
        why_not = "its numbers were wrong" if name in wrong else found[0]["what"] if found else "not compiled"
        if why_not:
            session.record.add("not_measured", {"stage": "peers", "name": f"{name} beside {peer}", "what": why_not})
            continue
        job = jobs.setdefault(name, {"do": "measure", "name": name, "peers": [*of[name]], "limit": LONGEST})
        job["peers"].append(peer)
        job["limit"] += pair["limit"]  # what is tuned is tuned by the process that times
    _timed(session, "peers", list(jobs.values()), until)


def profile(session: Session, until: float) -> None:
    """Where the time goes."""
    listed = session.ask({"do": "list", "only": session.only, "peers": session.peers}, until)
    _timed(session, "profile", [{"do": "profile", "name": name} for name in listed.get("cases", {})], until)


def _timed(session: Session, stage: str, jobs: list[dict], until: float) -> None:
    """Jobs one after the other in one process, alone on the GPU; the others go on where one dies or does not end."""
    record = session.record
    if not record.data["rates"]:
        for name, value in session.ask({"do": "rates"}, until).items():
            record.put(name, value)
    worker = session.worker(WORK)
    for number, job in enumerate(jobs):
        name, now = job["name"], time.time()
        if now > until - LEAST:
            for late in jobs[number:]:
                record.add("not_measured", {"stage": stage, "name": late["name"], "what": "no time left"})
            break
        found: dict = {}
        ended = worker.do(job, found.update, until=min(until, now + job.get("limit", LONGEST)))
        if not found:
            found = {"failures" if ended.status is not None else "not_measured": {"name": name, "what": str(ended)}}
        for what, entry in found.items():
            record.add(what, {"stage": stage, **entry} if what in ("failures", "not_measured") else entry)
            say(f"{stage}: {table.line_of(what, entry, record.data)}")
        if ended is not None and not worker.ready:
            break  # it would never begin, whatever the job
    worker.close()
