"""Checks of the CUDA kernels without a GPU, each in a process of its own."""

import subprocess
from concurrent.futures import Future
from pathlib import Path
from threading import Lock

import on_host
import pytest
from processes import start, together

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def processes(request) -> dict[tuple[str, ...], Future]:
    building = Lock()

    def run(script: str, *words: str) -> subprocess.CompletedProcess:
        if script == "machine_code.py":
            return start(HERE / script, *words)
        with building:  # the first one builds it, the others find it
            library = on_host.build_library()
        return start(HERE / "on_host" / script, *words, library, **on_host.preloaded())

    yield from together(request, HERE, run)
