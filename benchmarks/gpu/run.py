"""The stages of `make gpu`, each with its share of the time: install, checks and sanitizers, benchmarks, the table.

benchmarks/results/<card>.json is written after every entry, so that a run that is cut off has lost nothing.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from itertools import accumulate
from pathlib import Path

from . import table
from .children import Ended, listen
from .install import ROOT, install
from .record import Record, complete, slug

RESULTS = ROOT / "benchmarks" / "results"
CHECKS = ROOT / "tests" / "gpu" / "checks.py"
MEASURE = ("-m", "fastnest.benchmarks.gpu.measure")
# Of the time; what a stage leaves, the later ones have. The rest is for the table.
SHARES = {"install": 0.2, "checks": 0.35, "first": 0.23, "compiled": 0.18}
REST = 0.04
# Of compute-sanitizer: how a tool is called, and what it says where it finds nothing. What torch asks the driver and is
# refused is no error of a kernel.
TOOLS = {
    "memcheck": ("--tool memcheck --report-api-errors no", "ERROR SUMMARY: 0 errors"),
    "racecheck": ("--tool racecheck", "RACECHECK SUMMARY: 0 hazards"),
    "synccheck": ("--tool synccheck", "ERROR SUMMARY: 0 errors"),
}
# By backend: in which dtypes it is sanitized, by which tools. Triton's compiler places barriers itself.
SANITIZED = {
    "triton": (("float32",), ("memcheck", "racecheck")),
    "cuda": (("bfloat16", "float32"), tuple(TOOLS)),
}
FACTS = """
import json, platform, sys
try:
    import torch
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} finds no GPU")
    torch.ones(1, device="cuda").add_(1).item()
    card = torch.cuda.get_device_name(0)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
try:
    from triton import __version__ as triton
except ImportError:
    triton = ""
capability = list(torch.cuda.get_device_capability(0))
print(json.dumps({"card": card, "capability": capability, "torch": torch.__version__, "triton": triton,
                  "python": platform.python_version()}))
"""


class Session:
    """A run: where it writes, how it starts what it runs, and until when."""

    def __init__(self, record: Record, ends: dict[str, float], environment: dict[str, str], run=listen):
        self.record, self.ends, self.environment, self._run = record, ends, environment, run
        self.folder = Path(tempfile.mkdtemp(prefix="fastnest-gpu-"))

    def python(self, words: Sequence, on_line: Callable[[dict], None], until: float, prefix=(), **environment) -> Ended:
        environment = {**self.environment, **environment}
        words = [*prefix, sys.executable, *words]
        return self._run(words, on_line, until=until, folder=self.folder, environment=environment)

    def ask(self, words: Sequence, until: float) -> dict:
        """The last object that a process says."""
        found = {}
        ended = self.python(words, found.update, until)
        if not found:
            self.record.add("failures", {"name": " ".join(map(str, words)), "what": str(ended)})
        return found


def ends(start: float, seconds: float, stages: Sequence[str]) -> dict[str, float]:
    """When each of the stages has to have ended."""
    whole = sum(SHARES[stage] for stage in stages)
    reached = accumulate(SHARES[stage] / whole * seconds * (1 - REST) for stage in stages)
    return {stage: start + at for stage, at in zip(stages, reached, strict=True)}


def say(text: str) -> None:
    print(f"gpu: {text}", file=sys.stderr, flush=True)


def check(session: Session, workers: int) -> None:
    """Every job of tests/gpu/checks.py, several at a time; those that fill the memory one by one; sanitizers beside."""
    until = session.ends["checks"]
    jobs = session.ask([CHECKS, "--list"], until).get("jobs", [])
    kernels = list(dict.fromkeys((job["op"], job["backend"]) for job in jobs))
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(3) as beside, ThreadPoolExecutor(1) as memory:
        waiting = [
            beside.submit(sanitized, session, {"op": op, "backend": backend, "dtype": dtype, "tool": tool}, until)
            for tool in TOOLS
            for op, backend in kernels
            for dtype in SANITIZED[backend][0]
            if tool in SANITIZED[backend][1]
        ]
        waiting += [(memory if job.get("large") else pool).submit(checked, session, job, until) for job in jobs]
    for task in waiting:
        task.result()


def checked(session: Session, job: dict, until: float) -> None:
    """One process; what it died of is the failure of the check that it was at."""
    left = list(job["checks"])

    def on_line(entry: dict) -> None:
        left.remove(entry["check"])
        session.record.add("tests", entry)
        told = f"{entry['verdict']} {entry['done']}/{entry['of']} {entry['what'].splitlines()[:1] or ''}"
        say(f"{entry['op']} {entry['backend']} {entry['dtype']} {entry['check']} {entry['part']}: {told}")

    words = [CHECKS, job["op"], job["dtype"], *left, "--backend", job["backend"]]
    words += ["--part", job.get("part", "0/1"), "--until", until - 5]
    ended = Ended(None, "not begun")
    if time.time() < until - 10:
        ended = session.python(words, on_line, until, OMP_NUM_THREADS="1")
    for i, name in enumerate(left):
        crashed = ended.status is not None and i == 0
        entry = {key: job.get(key, "0/1") for key in ("op", "backend", "dtype", "part")}
        entry |= {"check": name, "verdict": "failed" if crashed else "not run", "what": str(ended)}
        session.record.add("tests", {**entry, "done": 0, "of": 0, "failed": int(crashed), "seconds": 0})
        say(f"{job['op']} {job['backend']} {job['dtype']} {name}: {entry['verdict']}, {ended}")


def sanitized(session: Session, entry: dict[str, str], until: float) -> None:
    """compute-sanitizer on an op's smallest case. Without torch's cache, every tensor ends where its memory does.

    entry: op, backend, dtype and tool; recorded with what was found.
    """
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    found, tool = [], entry["tool"]
    if program is None:
        return session.record.add("sanitizers", {**entry, "verdict": "not run", "what": "no compute-sanitizer here"})
    if time.time() > until - 20:
        return session.record.add("sanitizers", {**entry, "verdict": "not run", "what": "no time left"})
    options = f"{TOOLS[tool][0]} --target-processes application-only --print-limit 5"
    prefix = [program, *options.split()]
    words = [CHECKS, entry["op"], entry["dtype"], "smallest", "--backend", entry["backend"]]
    ended = session.python(words, found.append, until, prefix, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    entry |= verdict_of(tool, ended, found)
    session.record.add("sanitizers", entry)
    return say(f"{entry['op']} {entry['backend']} {entry['dtype']} {tool}: {entry['verdict']}")


def verdict_of(tool: str, ended: Ended, found: list[dict]) -> dict:
    """What a sanitizer's words mean. It has to have seen the check pass, too."""
    passed = bool(found) and found[-1]["verdict"] == "passed"
    if ended.status is None or re.search("not supported|Unable to find|LibraryNotLoaded", ended.said):
        return {"verdict": "not run", "what": str(ended)}
    clean = TOOLS[tool][1]
    if passed and clean in ended.said:
        return {"verdict": "passed", "what": clean}
    return {"verdict": "failed", "what": f"{ended.said} {found[-1]['what'] if found else ''}"}


def benchmark(session: Session, what: str, only: str = "") -> None:
    """Measures the cases; a process that dies is begun again behind the case that it died in."""
    until, data = session.ends[what], session.record.data
    left, behind = [f"benchmarks ({what})"], ""
    while left and time.time() < until - 15:
        begun: list[str] = []
        found: set[str] = set()

        def on_line(entry: dict, begun=begun, found=found) -> None:
            nonlocal left
            if "cases" in entry:
                left = entry["cases"]
            elif "begin" in entry:
                begun.append(entry["begin"])
                left = left[1:]
            elif "row" in entry:
                found.add(entry["row"]["name"])
                session.record.row(entry["row"])
                say(table.line_of(entry["row"], data))
            else:
                found.add(entry["failure"]["name"])
                session.record.add("failures", entry["failure"])
                say(f"{entry['failure']['name']}: {entry['failure']['what']}")

        words = [*MEASURE, what, until - 10, only, *([behind] if behind else [])]
        ended = session.python(words, on_line, until)
        for name in [name for name in begun if name not in found]:
            kind = "not_measured" if ended.status is None else "failures"
            session.record.add(kind, {"name": name, "what": f"not measured ({what}): {ended}"})
        if not begun and ended.status:
            session.record.add("failures", {"name": left[0], "what": str(ended)})
            break
        if not begun or ended.status is None:
            break
        behind = begun[-1]
    for name in left:
        session.record.add("not_measured", {"name": name, "what": f"not measured ({what}): no time left"})


def architecture(capability: Sequence[int]) -> str:
    """Of this card alone, with what only it has (such as sm_90a), which compiles in a fraction of the time of all."""
    major, minor = capability
    return f"{major}.{minor}{'a' if major >= 9 else ''}"


def commit() -> str:
    """The commit of the checkout, "+changes" if tracked files differ from it, "" outside of one."""

    def git(*words: str) -> str:
        words = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *words]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def run(arguments: argparse.Namespace, facts: dict, start: float) -> Record:
    """Every stage; the record of what was found."""
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts |= {"commit": commit(), "date": began, "limit_s": arguments.seconds}
    record = Record(arguments.out / f"{slug(facts['card'])}.json", facts)
    until = ends(start, arguments.seconds, arguments.stages)
    session = Session(record, until, {})
    for stage, end in until.items():
        what = ""
        if stage == "install":
            what, session.environment = install(end, say, architecture(facts["capability"]))
        elif stage == "checks":
            check(session, arguments.workers)
        else:
            if not record.data["rates"]:
                for name, value in session.ask([*MEASURE, "rates", end], end).items():
                    record.put(name, value)
            benchmark(session, stage, arguments.only)
        record.add("stages", {"name": stage, "what": what, "at_s": round(time.time() - start, 1)})
        say(f"{stage} ended after {time.time() - start:.0f} s{what and ': ' + what}")
    return record


def main(words: Sequence[str] | None = None) -> int:
    start = time.time()
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=480, help="for all of it (default: 480)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of <card>.json (default: benchmarks/results)")
    parser.add_argument("--stages", nargs="+", choices=SHARES, default=list(SHARES), help="default: all, in this order")
    parser.add_argument("--only", default="", metavar="REGEX", help="only benchmarks in whose name it is found")
    workers = max(1, min(8, (os.cpu_count() or 2) // 2))
    parser.add_argument("--workers", type=int, default=workers, help="checks at once (default here: %(default)s)")
    arguments = parser.parse_args(words)
    asked = subprocess.run([sys.executable, "-c", FACTS], capture_output=True, text=True)
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"gpu: no GPU that torch can use with {sys.executable} ({reason}); nothing was run", file=sys.stderr)
        return 2
    record = run(arguments, json.loads(asked.stdout.splitlines()[-1]), start)
    print(table.markdown(record.data))
    print(f"written to {record.path.resolve()} after {time.time() - start:.0f} s")
    return 0 if complete(record.data) else 1
