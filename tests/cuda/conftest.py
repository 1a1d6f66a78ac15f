"""Checks of the CUDA kernels without a GPU, each in a process of its own."""

import subprocess
from concurrent.futures import Future
from pathlib import Path

import on_host
import pytest
from processes import start, together

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def processes(request) -> dict[tuple[str, ...], Future]:
    library, preloaded = on_host.build_library(), on_host.preloaded()

    def run(script: str, *words: str) -> subprocess.CompletedProcess:
        return start(HERE / "on_host" / script, *words, library, **preloaded)

    yield from together(request, HERE, run)
