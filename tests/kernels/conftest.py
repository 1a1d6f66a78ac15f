"""Checks of kernels run in processes of their own, as many at a time as there are cores."""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def start(script: str, *words: str) -> subprocess.CompletedProcess:
    """One script of this folder on one thread; with TRITON_INTERPRET=1, which Triton reads once, for interpret.py."""
    interpreted = {"TRITON_INTERPRET": "1" if script == "interpret.py" else "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / script), *words]
    return subprocess.run(command, env=os.environ | interpreted, capture_output=True, text=True)


@pytest.fixture(scope="session")
def processes(request) -> dict[tuple[str, ...], Future]:
    """What every selected test here waits for, by its `words`; started together when the first of them runs."""
    selected = [item.callspec.params["words"] for item in request.session.items if item.path.parent == HERE]
    pool = ThreadPoolExecutor(os.cpu_count())
    yield {words: pool.submit(start, *words) for words in selected}
    pool.shutdown(cancel_futures=True)
