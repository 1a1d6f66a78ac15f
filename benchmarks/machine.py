"""The machine that benchmarks run on: what it is, which versions run on it, and what it can."""

import os
import platform
import re
import subprocess
from pathlib import Path
from statistics import median

import torch

from . import contest


def facts() -> dict:
    """CPU model, cores and caches, as Linux tells them."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", cpuinfo, re.MULTILINE))
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        caches[f"L{level} {kind.lower()}"] = size
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "family": fields.get("cpu family", ""),
        "model": fields.get("model", ""),
        "cores": os.cpu_count(),
        "caches": caches,
        "system": f"{platform.system()} {platform.machine()}",
    }


def slug(facts: dict) -> str:
    text = f"{facts['cpu']} {facts['family']} {facts['model']} {facts['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def commit() -> str:
    """The commit of the source tree, "+changes" if tracked files differ from it, "" outside of one."""

    def git(*words):
        words = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def versions() -> dict:
    import fastnest
    from fastnest import _C

    return {
        "fastnest": fastnest.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": {name: str(value) for name, value in _C.build_info().items()},
        "instruction_set": _C.instruction_set(),
    }


def matmul_gflops(size: int = 1024) -> float:
    """What torch's own float32 matrix product reaches, which tells the two conditions apart."""
    a = torch.randn(size, size)
    times = contest.seconds({"mm": lambda: a @ a}, budget=0.5)["mm"]
    return 2 * size**3 / median(times) / 1e9


def copy_gbytes_per_second(size: int = 2**28) -> float:
    """Of all threads torch uses: bytes read and written by a copy of more than caches hold."""
    a = torch.zeros(size, dtype=torch.uint8)
    b = torch.empty_like(a)
    times = contest.seconds({"copy": lambda: b.copy_(a)}, budget=0.5)["copy"]
    return 2 * size / median(times) / 1e9


def peak_gflops(dtype: str) -> float:
    """Of all threads torch uses: the kernels' multiply-add loop on one core, times the threads."""
    from fastnest import _C

    return _C.peak_gflops(dtype, 0.05) * torch.get_num_threads()


def rates() -> dict[str, float]:
    """What torch's own code reaches in this process."""
    return {"matmul_gflops": matmul_gflops(), "copy_gbytes_per_second": copy_gbytes_per_second()}
