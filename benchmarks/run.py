"""The paired run: every case in two child processes, as shipped and fair, into one JSON.

"As shipped" is torch from the package index. torch's MKL picks its float32 code by the CPU's vendor, which on some AMD
CPUs costs most of their speed; "fair" answers yes to that question (a preloaded stub of mkl_serv_intel_cpu_true,
compiled on the fly) and lets torch's allocator use huge pages, so that a ratio says what the kernel does and not what
MKL does not.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from fastnest._optional import optional

from . import bench_dense_chain, bench_images, bench_models, bench_residual_chain, contest, gate, machine
from .problem import Case, Problem

FILES = {
    module.__name__.rpartition(".")[2]: module
    for module in (bench_residual_chain, bench_dense_chain, bench_models, bench_images)
}
RESULTS = Path(__file__).parent / "results"
CONDITIONS = ("as_shipped", "fair")
STUB = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
BUDGET = {True: 1.2, False: 0.6}  # seconds of timing a case; slow cases take at least five rounds
SECONDS = 105  # that a run may take which is not full; the rest of two minutes starts and ends processes


class OutOfTime(KeyboardInterrupt):
    """Raised in the midst of a case when time is up; no broad `except Exception` of a compiler swallows it."""


def cases(full: bool, names: Sequence[str] = ()) -> list[Case]:
    """The cases of a run: all, the subset, or those with one of the regular expressions in their file and name.

    Where it is not full, tuned peers are left out and cases are in the order in which time is best spent: the subset,
    then the first of every subject, mode and dtype, the second, and so on.
    """
    every = [(file, case) for file, module in FILES.items() for case in module.cases()]
    chosen = [case for file, case in every if not names or any(_found(name, f"{file} {case.name}") for name in names)]
    if full:
        return chosen
    chosen = sorted((case for case in chosen if names or case.quick), key=lambda case: not case.quick)
    seen: Counter = Counter()
    ranks = {}
    for case in chosen:
        group = (case.subject, case.mode, case.dtype)
        ranks[case.name] = (not case.quick, seen[group])
        seen[group] += 1
    chosen.sort(key=lambda case: ranks[case.name])
    return [replace(case, peers=tuple(peer for peer in case.peers if peer not in contest.TUNED)) for case in chosen]


def _found(expression: str, text: str) -> bool:
    try:
        return re.search(expression, text) is not None
    except re.error as error:
        raise ValueError(f"{expression!r} is no regular expression: {error}") from None


def problem(case: Case, device: str = "cpu") -> Problem:
    built = next(module for module in FILES.values() if case.subject in module.SUBJECTS).problem(case, device)
    return gate.step_off_kinks(built) if case.mode == "train" and built.exact is None else built


def condition_of(environment: dict[str, str], condition: str, folder: Path) -> dict[str, str] | None:
    """The child's environment, or None where the stub cannot be compiled."""
    environment = {"KINETO_LOG_LEVEL": "6", **environment}  # else the profiler's notes tear the bar
    if condition == "as_shipped":
        return environment
    compiler = shlex.split(environment.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        return None
    source, stub = folder / "stub.c", folder / "stub.so"
    source.write_text(STUB)
    subprocess.run([*compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(stub)], check=True)
    preload = " ".join(filter(None, (str(stub), environment.get("LD_PRELOAD"))))
    return {**environment, "LD_PRELOAD": preload, "THP_MEM_ALLOC_ENABLE": "1"}


def measure(chosen: Sequence[Case], full: bool, until: float | None = None, title: str = "") -> dict:
    """One condition in this process: the machine's rates, and every case until time is up or Ctrl-C."""
    tqdm = optional("tqdm", "bench").tqdm
    rates = machine.rates()
    rows, failures, peaks = [], [], {case.dtype: [] for case in chosen}
    progress = tqdm(chosen, desc=title, unit="case", dynamic_ncols=True)
    done, stopped = 0, ""
    if until is not None:
        signal.signal(signal.SIGALRM, _out_of_time)
        signal.setitimer(signal.ITIMER_REAL, max(0.1, until - time.time()))
    try:
        for case in progress:
            progress.set_postfix_str(case.name)
            peaks[case.dtype].append(machine.peak_gflops(case.dtype))
            try:
                rows.append(contest.measure(problem(case), case, budget=BUDGET[full]))
            except AssertionError as error:  # wrong numbers: no speed from this case
                failures.append(str(error))
                tqdm.write(f"FAILED {error}")
            done += 1
    except KeyboardInterrupt as why:
        stopped = "time is up" if isinstance(why, OutOfTime) else "interrupted"
        tqdm.write(f"{stopped} after {done} of {len(chosen)} cases, which are kept")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        "rows": rows,
        "failures": failures,
        "stopped": stopped,
        "not_run": [case.name for case in chosen[done:]],
        "peak_gflops": {dtype: max(samples) for dtype, samples in peaks.items() if samples},
        **rates,
        "threads": torch.get_num_threads(),
    }


def _out_of_time(*_) -> None:
    raise OutOfTime


@contextmanager
def _left_to_the_child(number: int):
    """Ctrl-C reaches both processes; the one that measures ends, the other writes what was measured."""
    before = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(number, before)


def child(order: dict, path: Path) -> None:
    """Measures the named cases and writes what `measure` returns."""
    every = {case.name: case for case in cases(order["full"], (".",))}
    chosen = [every[name] for name in order["names"]]
    path.write_text(json.dumps(measure(chosen, order["full"], order["until"], path.stem.replace("_", " "))))


def run(
    out: Path | None,
    *,
    full: bool,
    names: Sequence[str] = (),
    conditions: Sequence[str] = CONDITIONS,
    seconds: float | None = None,
) -> dict:
    """Runs the chosen cases under the conditions, for at most so many seconds, and writes the JSON.

    A run of everything is written to results/ where `out` does not say otherwise.
    """
    start = time.time()
    optional("tqdm", "bench")
    import fastnest

    state = fastnest.backends()["cpp"]
    if state != "available":
        raise ValueError(f"there is nothing to compare: the cpp backend is {state}")
    chosen = [case.name for case in cases(full, names)]
    if not chosen:
        raise ValueError(f"no case has any of {', '.join(names)} in its name")
    facts = machine.facts()
    result = {
        "machine": facts,
        "versions": machine.versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "conditions": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for i, condition in enumerate(conditions, 1):
            environment = condition_of(dict(os.environ), condition, Path(folder))
            if environment is None:
                print("fair: skipped, no C compiler for the stub (set CC)", file=sys.stderr)
                continue
            until = None if seconds is None else start + seconds * i / len(conditions)
            path = Path(folder) / f"{condition}.json"
            order = json.dumps({"names": chosen, "full": full, "until": until})
            words = [sys.executable, "-m", __spec__.name, order, str(path)]
            with _left_to_the_child(signal.SIGINT):
                subprocess.run(words, env=environment, check=True)
            result["conditions"][condition] = measured = json.loads(path.read_text())
            if measured["stopped"] == "interrupted":
                break
    if out is None and full and not names:
        out = RESULTS / f"{machine.slug(facts)}.json"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {out}")
    return result


def complete(result: dict) -> bool:
    """Whether something was measured and every case passed its comparison with float64."""
    conditions = result["conditions"].values()
    return any(one["rows"] for one in conditions) and not any(one["failures"] for one in conditions)


if __name__ == "__main__":
    child(json.loads(sys.argv[1]), Path(sys.argv[2]))
    sys.stderr.flush()
    os._exit(0)  # an ordinary end would wait for the threads of a compilation that was given up
