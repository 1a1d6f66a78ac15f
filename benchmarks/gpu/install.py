"""Installs the checkout into the Python at hand, without a network: all of it, without the C++, or not at all."""

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
WORKS = "import fastnest.kernels, fastnest.benchmarks; print(fastnest.backends())"


def install(until: float, say: Callable[[str], None], run: Callable[..., Ended] = listen) -> tuple[str, dict[str, str]]:
    """What was installed, in words, and the environment in which children find it.

    Without a compiler, and where building fails or takes longer than half the time there is, the kernels for CPUs are
    left out; where pip fails too, the checkout is used as it lies.
    """
    folder = Path(tempfile.mkdtemp(prefix="fastnest-gpu-"))
    jobs = str(os.cpu_count() or 1)
    half = time.time() + (until - time.time()) / 2
    for what, extra, limit in (
        ("installed with its C++ kernels", {"MAX_JOBS": jobs}, half),
        ("installed without its C++ kernels (which a GPU does not need)", {"FASTNEST_NO_EXT": "1"}, until),
    ):
        ended = run([sys.executable, *PIP, ROOT], _ignore, until=limit, folder=folder, environment=extra)
        if ended.status == 0:
            ended = run([sys.executable, "-c", WORKS], _ignore, until=limit, folder=folder)
        if ended.status == 0:
            return what, {}
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
