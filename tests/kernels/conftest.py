"""Checks of the Triton kernels, each in a process of its own."""

import subprocess
from concurrent.futures import Future
from pathlib import Path

import pytest
from processes import start, together

HERE = Path(__file__).parent


def run(script: str, *words: str) -> subprocess.CompletedProcess:
    """One script of this folder; with TRITON_INTERPRET=1, which Triton reads once, for interpret.py."""
    return start(HERE / script, *words, TRITON_INTERPRET="1" if script == "interpret.py" else "0")


@pytest.fixture(scope="session")
def processes(request) -> dict[tuple[str, ...], Future]:
    yield from together(request, HERE, run)
