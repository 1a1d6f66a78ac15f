"""`make gpu`: its options, its stages with their shares of the time, the table at the end.

The JSON is written after every entry, so that a run that is cut off has lost nothing.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import accumulate
from pathlib import Path

from . import checking, install, table, timing
from .children import end_all
from .install import ROOT
from .record import Record, complete, continues, slug
from .session import Session, say

RESULTS, PARTIAL = ROOT / "benchmarks" / "results", ROOT / "out" / "gpu"
# Of the time; what a stage leaves, the later ones have. The rest is for the table.
SHARES = {
    **{"install": 0.1, "checks": 0.22, "convolutions": 0.05, "compile": 0.18, "measure": 0.15},
    **{"profile": 0.07, "sanitize": 0.06, "peers": 0.14},
}
REST = 0.03
SECONDS = 840
TIMED = {"measure", "profile", "peers"}  # which need what is compiled first
PEERS = ("memory-efficient", "triton", "compile", "max-autotune-no-cudagraphs", "max-autotune")
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


# install has an environment to give, compile wants to know for which stages.
STAGES = {
    "checks": checking.check,
    "convolutions": timing.time_convolutions,
    "measure": timing.measure,
    "profile": timing.profile,
    "sanitize": checking.sanitize,
    "peers": timing.time_peers,
}


def ends(start: float, seconds: float, asked: Sequence[str]) -> dict[str, float]:
    """When each of the stages has to have ended."""
    whole = sum(SHARES[stage] for stage in asked)
    reached = accumulate(SHARES[stage] / whole * seconds * (1 - REST) for stage in asked)
    return {stage: start + at for stage, at in zip(asked, reached, strict=True)}


def in_order(asked: Sequence[str], prebuilt: bool = False) -> list[str]:
    """The stages that are asked for, with the one that compiles before what is timed, and looking for what is built."""
    wanted = {*asked, *(["compile"] if TIMED & set(asked) else []), *(["install"] if prebuilt else [])}
    return [stage for stage in SHARES if stage in wanted]


def commit() -> str:
    """The commit of the checkout, "+changes" if tracked files differ from it, "" outside of one.

    Results do not count, or the first part of a run would change what the second one is of.
    """

    def git(*words: str) -> str:
        words = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *words]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return ""


def version() -> str:
    return re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]


def run(arguments: argparse.Namespace, facts: dict, start: float) -> Record:
    """Every stage; the record of what was found."""
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts |= {"fastnest": version(), "commit": commit(), "date": began, "limit_s": arguments.seconds}
    asked = in_order(arguments.stages, arguments.prebuilt)
    every = asked == list(SHARES) and not arguments.only and arguments.peers is None
    whole = every and arguments.seconds >= SECONDS
    path = (arguments.out or (RESULTS if whole else PARTIAL)) / f"{slug(facts['card'])}.json"
    record = Record(path, facts, None if every else continues(path, facts), asked, arguments.only)
    session = Session(record, arguments.workers, arguments.only, arguments.peers)
    if "install" not in asked:
        session.environment = install.linked(session.folder / "site")
    for stage, end in ends(start, arguments.seconds, asked).items():
        what = ""
        if stage == "install":
            make = install.prebuilt if arguments.prebuilt else install.install
            what, session.environment = make(end, say, install.architecture(facts["capability"]))
        elif stage == "compile":
            timing.compile_first(session, end, asked)
        else:
            STAGES[stage](session, end)
        record.add("stages", {"name": stage, "what": what, "at_s": round(time.time() - start, 1)})
        say(f"{stage} ended after {time.time() - start:.0f} s{what and ': ' + what}")
    return record


def expression(text: str) -> str:
    """An option that is a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def parser() -> argparse.ArgumentParser:
    one = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    one.add_argument("--seconds", type=float, default=SECONDS, help=f"for all of it (default: {SECONDS})")
    where = "folder of <card>.json (default: benchmarks/results; of a part of a run, or a shorter one, out/gpu)"
    one.add_argument("--out", type=Path, help=where)
    order = "default: all, in this order; what is timed is compiled before"
    one.add_argument("--stages", nargs="+", choices=SHARES, default=list(SHARES), metavar="STAGE",
                     help=f"some of {', '.join(SHARES)} ({order})")  # fmt: skip
    one.add_argument(
        "--only", type=expression, default="", metavar="REGEX", help="cases and checks in whose name it is found"
    )
    slow = "default: all, but whole networks only if there is time to compile them"
    one.add_argument("--peers", nargs="+", choices=PEERS, metavar="PEER",
                     help=f"besides eager, some of {', '.join(PEERS)}, of whole networks, too ({slow})")  # fmt: skip
    built = "use fastnest/_C as it lies, from make gpu-build, and compile no C++ or CUDA here"
    one.add_argument("--prebuilt", action="store_true", help=built)
    workers = max(1, min(32, os.cpu_count() or 1))
    one.add_argument(
        "--workers",
        type=int,
        default=workers,
        help="processes at once that check or compile (default here: %(default)s)",
    )
    return one


def main(words: Sequence[str] | None = None) -> int:
    start = time.time()
    arguments = parser().parse_args(words)
    asked = subprocess.run([sys.executable, "-c", FACTS], capture_output=True, text=True)
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"gpu: no GPU that torch can use with {sys.executable} ({reason}); nothing was run", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as timeout(1) does: what was begun ends, too
    try:
        record = run(arguments, json.loads(asked.stdout.splitlines()[-1]), start)
    except install.NotBuilt as error:
        print(f"gpu: {error}; nothing was run", file=sys.stderr)
        return 2
    finally:
        end_all()
    print(table.markdown(record.data))
    print(f"written to {record.path.resolve()} after {time.time() - start:.0f} s")
    return 0 if complete(record.data) else 1
