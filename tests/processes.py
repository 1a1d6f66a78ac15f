"""Checks of kernels run in processes of their own, as many at a time as there are cores."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).parent


def start(script: Path, *words: object, **environment: str) -> subprocess.CompletedProcess:
    """One script on one thread; it can import what lies here."""
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(script), *map(str, words)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def together(request, folder: Path, run: Callable) -> Iterator[dict[tuple[str, ...], Future]]:
    """run(*words) of every selected test in a folder, by the test's `words`; all are begun when this is."""
    waiting = [item for item in request.session.items if "processes" in item.fixturenames]
    selected = [item.callspec.params["words"] for item in waiting if item.path.parent == folder]
    pool = ThreadPoolExecutor(os.cpu_count())
    yield {words: pool.submit(run, *words) for words in selected}
    pool.shutdown(cancel_futures=True)


def succeeds(words: tuple[str, ...], processes: dict[tuple[str, ...], Future]) -> str:
    """What a process has printed that ended with 0."""
    done = processes[words].result()
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
