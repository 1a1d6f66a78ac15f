"""A child process of a run: times every case it is ordered to, one after the other, under one condition.

What it has found stands in its file after every case, so that a process that dies loses the case it died of only.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fastnest._optional import optional

from . import contest, machine, run
from .problem import Case


class OutOfTime(KeyboardInterrupt):
    """Raised in the midst of a case when time is up; no broad `except Exception` of a compiler swallows it."""


def measure(chosen: Sequence[Case], order: dict, keep: Callable[[dict], object] = lambda found: None) -> dict:
    """The machine's rates, and every case until time is up or Ctrl-C; keep gets what there is after every case.

    order: "condition", "title" of the bar, "full", "first" (contest.measure), "until" (seconds since 1970, or None).
    """
    tqdm = optional("tqdm", "bench").tqdm
    found = {
        "rows": [],
        "failures": {},
        "stopped": "",
        "not_run": [case.name for case in chosen],
        "peak_gflops": {},
        **machine.rates(),
        "threads": torch.get_num_threads(),
    }
    keep(found)
    progress = tqdm(chosen, desc=order["title"], unit="case", dynamic_ncols=True)
    if order["until"] is not None:
        signal.signal(signal.SIGALRM, _out_of_time)
        signal.setitimer(signal.ITIMER_REAL, max(0.1, order["until"] - time.time()))
    try:
        for case in progress:
            progress.set_postfix_str(case.name)
            _measure(case, order, found)
            del found["not_run"][0]
            keep(found)
    except KeyboardInterrupt as why:
        found["stopped"] = "time is up" if isinstance(why, OutOfTime) else "interrupted"
        done = len(chosen) - len(found["not_run"])
        tqdm.write(f"{found['stopped']} after {done} of {len(chosen)} cases, which are kept")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    keep(found)
    return found


def _measure(case: Case, order: dict, found: dict) -> None:
    """Adds a case's row, or that its numbers are wrong, to what was found."""
    peaks = found["peak_gflops"]
    peaks[case.dtype] = max(peaks.get(case.dtype, 0.0), machine.peak_gflops(case.dtype))
    how = {"budget": run.BUDGET, "first": order["first"], "tag": order["condition"]}
    try:
        found["rows"].append(contest.measure(run.problem(case), case, **how))
    except AssertionError as error:  # wrong numbers: no speed from this case
        found["failures"][case.name] = str(error)
        optional("tqdm", "bench").tqdm.write(f"FAILED {error}")


def _out_of_time(*_) -> None:
    raise OutOfTime


def main(order: dict, path: Path) -> None:
    """Measures the named cases and keeps in a file what `measure` finds."""
    every = {case.name: case for case in run.cases(order["full"], (".",))}

    def keep(found: dict) -> None:
        whole = path.with_suffix(".part")
        whole.write_text(json.dumps(found))
        whole.replace(path)

    measure([every[name] for name in order["names"]], order, keep)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
    sys.stderr.flush()
    os._exit(0)  # an ordinary end would wait for the threads of a compilation that was given up
