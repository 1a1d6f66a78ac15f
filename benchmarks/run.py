"""The paired run: every case in child processes, as shipped and fair, into one JSON.

A full run takes three processes per condition, in turn, and pools their rounds: a median over processes is not one of
where a process happened to put its memory, and a slow spell of the machine is shared by the conditions.

"As shipped" is torch from the package index. torch's MKL picks its float32 code by the CPU's vendor, which on some AMD
CPUs costs most of their speed; "fair" answers yes to that question (a preloaded stub of mkl_serv_intel_cpu_true,
compiled on the fly) and lets torch's allocator use huge pages, so that a ratio says what the kernel does and not what
MKL does not. Images are measured as shipped only: their convolutions are oneDNN's, which asks for no vendor.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from fastnest._optional import optional

from . import bench_dense_chain, bench_images, bench_models, bench_residual_chain, contest, gate, machine
from .pool import Pool, moved
from .problem import Case, Problem

FILES = {
    module.__name__.rpartition(".")[2]: module
    for module in (bench_residual_chain, bench_dense_chain, bench_models, bench_images)
}
RESULTS = Path(__file__).parent / "results"
CHILD = f"{__package__}.child"
CONDITIONS = ("as_shipped", "fair")
STUB = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
BUDGET = 0.6  # seconds of timing a case in a process; slow cases take at least five rounds
PROCESSES = 3  # of a full run, per condition
SECONDS = 105  # that a run may take which is not full; the rest of two minutes starts and ends processes


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


def names_under(condition: str, chosen: Sequence[Case]) -> list[str]:
    """The cases that are measured under a condition."""
    return [case.name for case in chosen if condition == "as_shipped" or case.subject not in bench_images.SUBJECTS]


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


@contextmanager
def _left_to_the_child(number: int):
    """Ctrl-C reaches both processes; the one that measures ends, the other writes what was measured.

    Yields a list that is no longer empty once it was pressed.
    """
    pressed = []
    before = signal.signal(number, lambda *_: pressed.append(number))
    try:
        yield pressed
    finally:
        signal.signal(number, before)


def measure(order: dict, environment: dict[str, str], path: Path, pool: Pool) -> None:
    """One process, into the pool. Where it dies in the midst of a case, another goes on behind that case."""
    names = order["names"]
    while names:
        path.unlink(missing_ok=True)
        words = [sys.executable, "-m", CHILD, json.dumps({**order, "names": names}), str(path)]
        with _left_to_the_child(signal.SIGINT) as pressed:
            code = subprocess.run(words, env=environment).returncode
        found = json.loads(path.read_text()) if path.exists() else None
        if found is not None:
            pool.add(found)
        if code == 0:
            return
        if pressed:
            pool.stopped = "interrupted"
            return
        if found is None:
            raise ChildProcessError(f"a process ended with {code} before its first case")
        died, *names = found["not_run"] or [""]
        pool.died.append(f"{died or 'the end'}: the process ended with {code} there ({order['title']})")


def processes(pools: dict[str, Pool], full: bool) -> Iterator[tuple[str, str, list[str]]]:
    """(condition, title, names of cases) of every process, in order; later ones take what the first could measure."""
    count = PROCESSES if full else 1
    for i in range(count):
        for condition, pool in pools.items():
            title = condition.replace("_", " ") + (f" {i + 1}/{count}" if count > 1 else "")
            yield condition, title, pool.measured() if i else pool.names
    if full and len(pools) > 1:
        again = moved(pools.values())
        for condition in pools:
            yield condition, f"{condition.replace('_', ' ')} again", again


def run(
    out: Path | None,
    *,
    full: bool,
    names: Sequence[str] = (),
    conditions: Sequence[str] = CONDITIONS,
    seconds: float | None = None,
) -> dict:
    """Runs the chosen cases under the conditions, for at most so many seconds, and writes the JSON.

    It is written after every process. A run of everything is written to results/ where `out` does not say otherwise.
    """
    start = time.time()
    optional("tqdm", "bench")
    import fastnest

    state = fastnest.backends()["cpp"]
    if state != "available":
        raise ValueError(f"there is nothing to compare: the cpp backend is {state}")
    chosen = cases(full, names)
    if not chosen:
        raise ValueError(f"no case has any of {', '.join(names)} in its name")
    if not any(names_under(condition, chosen) for condition in conditions):
        raise ValueError("images are measured as shipped only (--condition as_shipped)")
    facts = machine.facts()
    result = {
        "machine": facts,
        "versions": machine.versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "conditions": {},
        "not_begun": [],
    }
    if out is None and full and not names:
        out = RESULTS / f"{machine.slug(facts)}.json"
    with tempfile.TemporaryDirectory() as folder:
        environments = _environments(conditions, Path(folder))
        pools = {condition: Pool(names_under(condition, chosen)) for condition in environments}
        pools = {condition: pool for condition, pool in pools.items() if pool.names}
        count = len(pools) * (PROCESSES if full else 1)
        for i, (condition, title, those) in enumerate(processes(pools, full), 1):
            until = None if seconds is None else start + seconds * min(1, i / count)
            order = {"condition": condition, "title": title, "names": those, "full": full, "until": until}
            order["first"] = i <= len(pools)
            measure(order, environments[condition], Path(folder) / "found.json", pools[condition])
            result["conditions"] = {name: pool.result() for name, pool in pools.items() if pool.rates}
            result["not_begun"] = [name for name, pool in pools.items() if not pool.rates]
            _write(result, out)
            if pools[condition].stopped == "interrupted":
                break
    if out is not None:
        print(f"written to {out}")
    return result


def _environments(conditions: Sequence[str], folder: Path) -> dict[str, dict[str, str]]:
    """The environment of each condition that can be had here."""
    found = {condition: condition_of(dict(os.environ), condition, folder) for condition in conditions}
    if found.get("fair", {}) is None:
        print("fair: skipped, no C compiler for the stub (set CC)", file=sys.stderr)
    return {condition: environment for condition, environment in found.items() if environment is not None}


def _write(result: dict, out: Path | None) -> None:
    """Whole or not at all: what is there already is not lost to an interrupt."""
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(out)


def complete(result: dict) -> bool:
    """Whether something was measured, every case passed its comparison, no process died and nobody interrupted it."""
    conditions = result["conditions"].values()
    bad = any(one["failures"] or one["died"] or one["stopped"] == "interrupted" for one in conditions)
    return any(one["rows"] for one in conditions) and not bad
