"""Installs the checkout into the Python at hand, without a network: all of it, part of what compiles, or nothing.

Or makes beforehand, on a machine without a GPU, the extension that a rented one then takes as it lies:
`python -m benchmarks.gpu.install PYTHON ARCHITECTURE`, which is `make gpu-build`.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .children import Ended, listen

ROOT = Path(__file__).resolve().parents[2]
BESIDE = ("kernels", "benchmarks")  # of fastnest, by pyproject's package-dir
PIP = "-m pip --disable-pip-version-check install --no-build-isolation --no-deps -e".split()
WORKS = "import json, fastnest.kernels, fastnest.benchmarks; print(json.dumps(fastnest.backends()))"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
OF_PYTHON = "import sysconfig as s; print(s.get_path('include'), s.get_config_var('EXT_SUFFIX'), sep='\\n')"


class NotBuilt(Exception):
    """What was to be there already is not, or does not load."""


def architecture(capability: Sequence[int]) -> str:
    """Of this card alone, with what only it has (such as sm_90a), which compiles in a fraction of the time of all."""
    major, minor = capability
    return f"{major}.{minor}{'a' if major >= 9 else ''}"


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
            return f"{what}; {_in_words(states)}", {}
        say(f"not {what}: {ended}")
    return "not installed: run from the checkout as it lies", linked(folder / "site")


def prebuilt(
    until: float, say: Callable[[str], None], architecture: str, run: Callable[..., Ended] = listen, root: Path = ROOT
) -> tuple[str, dict[str, str]]:
    """The same with the checkout as it lies, in which `make gpu-build` has left the extension; raises NotBuilt."""
    extension = root / "fastnest" / f"_C{SUFFIX}"
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    again = f"`make gpu-build GPU_PYTHON={python} GPU_ARCH={architecture}` makes it"
    if not extension.exists():
        raise NotBuilt(f"--prebuilt needs {extension}, which is not there; {again}")
    if not extension.read_bytes().endswith(digest(root)):
        raise NotBuilt(f"--prebuilt: {extension} was not built of the sources in csrc as they are now; {again}")
    folder = Path(tempfile.mkdtemp(prefix="fastnest-gpu-"))
    environment, states = linked(folder / "site", root), {}
    ended = run([sys.executable, "-c", WORKS], states.update, until=until, folder=folder, environment=environment)
    wrong = [f"{name} {state}" for name, state in states.items() if name in ("cpp", "cuda") and state != "available"]
    if ended.status != 0 or wrong:
        raise NotBuilt(f"--prebuilt: {extension} does not run here ({'; '.join(wrong) or ended}); {again}")
    say(f"prebuilt: {extension}")
    return f"prebuilt; {_in_words(states)}", environment


def digest(root: Path) -> bytes:
    """Of all that is compiled: gpu-build writes it behind the extension, where no loader looks."""
    files = [path for path in sorted((root / "csrc").rglob("*")) if path.suffix in (".cpp", ".h", ".cu")]
    of = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    return b"fastnest csrc " + of.hexdigest().encode()


def _in_words(states: dict[str, str]) -> str:
    return f"cpp {states.get('cpp')}, cuda {states.get('cuda')}"


def _ignore(entry: dict) -> None:
    pass


def linked(site: Path, root: Path = ROOT) -> dict[str, str]:
    """Makes a folder in which the checkout is a package as pip would have it; the environment that finds it."""
    package = site / "fastnest"
    package.mkdir(parents=True)
    for path in (root / "fastnest").iterdir():
        if path.name not in BESIDE:
            (package / path.name).symlink_to(path)
    for name in BESIDE:
        (package / name).symlink_to(root / name)
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))}


def build(python: str, architecture: str) -> int:
    """Compiles fastnest/_C in place for another Python and a GPU that is not here; setup.py's exit status.

    torch's stable ABI leaves two things that belong to one Python: its headers, put in front of those of the Python
    that compiles, and the file's ending.
    """
    try:
        asked = subprocess.run([python, "-c", OF_PYTHON], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"gpu-build: GPU_PYTHON must be the GPU machine's Python, got {python} ({error})", file=sys.stderr)
        return 2
    headers, suffix = asked.stdout.split("\n")[:2]
    if not Path(headers, "Python.h").exists():
        print(f"gpu-build: {python} has no headers here: {headers}/Python.h is not there", file=sys.stderr)
        return 2
    chosen = {"FASTNEST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture, "SETUPTOOLS_EXT_SUFFIX": suffix}
    flags = f"-I{headers} -DNDEBUG {os.environ.get('CFLAGS', '')}"
    words = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--build-temp", "build/gpu"]
    status = subprocess.run(words, cwd=ROOT, env={**os.environ, **chosen, "CFLAGS": flags}).returncode
    if status == 0:
        extension, of = ROOT / "fastnest" / f"_C{suffix}", digest(ROOT)
        if not extension.read_bytes().endswith(of):
            with extension.open("ab") as file:
                file.write(of)
        print(f"gpu-build: fastnest/_C{suffix} for compute capability {architecture}; make gpu GPU=--prebuilt uses it")
    return status


if __name__ == "__main__":
    sys.exit(build(*sys.argv[1:]))
