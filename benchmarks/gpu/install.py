"""Installs the checkout into the Python at hand, without a network: all of it, part of what compiles, or nothing."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .children import Ended, listen

ROOT = Path(__file__).resolve().parents[2]
BESIDE = ("kernels", "benchmarks")  # of fastnest, by pyproject's package-dir
PIP = "-m pip --disable-pip-version-check install --no-build-isolation --no-deps -e".split()
WORKS = "import json, fastnest.kernels, fastnest.benchmarks; print(json.dumps(fastnest.backends()))"


def install(
    until: float, say: Callable[[str], None], architecture: str, run: Callable[..., Ended] = listen
) -> tuple[str, dict[str, str]]:
    """What was installed, in words, and the environment in which children find it.

    Compiled for GPUs of one architecture ("9.0a"). What does not build in its share of the time is left out: the
    kernels in CUDA C++ first, then those for CPUs too; where pip fails even so, the checkout is used as it lies.
    """
    folder = Path(tempfile.mkdtemp(prefix="fastnest-gpu-"))
    build = {"MAX_JOBS": str(os.cpu_count() or 1), "TORCH_CUDA_ARCH_LIST": architecture}
    for what, extra, share in (
        ("installed with all that compiles", build, 0.6),
        ("installed without its CUDA C++ kernels", {**build, "FASTNEST_NO_CUDA": "1"}, 0.7),
        ("installed without its C++ kernels (which a GPU does not need)", {"FASTNEST_NO_EXT": "1"}, 1.0),
    ):
        states: dict[str, str] = {}
        limit = time.time() + (until - time.time()) * share
        ended = run([sys.executable, *PIP, ROOT], _ignore, until=limit, folder=folder, environment=extra)
        if ended.status == 0:
            ended = run([sys.executable, "-c", WORKS], states.update, until=limit, folder=folder)
        if ended.status == 0:
            return f"{what}; cpp {states.get('cpp')}, cuda {states.get('cuda')}", {}
        say(f"not {what}: {ended}")
    linked(folder / "site")
    path = os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH"))))
    return "not installed: run from the checkout as it lies", {"PYTHONPATH": path}


def _ignore(entry: dict) -> None:
    pass


def linked(site: Path) -> None:
    """A folder in which the checkout is a package as pip would have it."""
    package = site / "fastnest"
    package.mkdir(parents=True)
    for path in (ROOT / "fastnest").iterdir():
        if path.name not in BESIDE:
            (package / path.name).symlink_to(path)
    for name in BESIDE:
        (package / name).symlink_to(ROOT / name)
