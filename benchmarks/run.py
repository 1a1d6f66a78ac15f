"""The paired run: every case in two child processes, as shipped and fair, into one JSON.

"As shipped" is torch from the package index. torch's MKL picks its float32 code by the CPU's vendor, which on some AMD
CPUs costs most of their speed; "fair" answers yes to that question (a preloaded stub of mkl_serv_intel_cpu_true,
compiled on the fly) and lets torch's allocator use huge pages, so that a ratio says what the kernel does and not what
MKL does not.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import torch

from fastnest._optional import optional

from . import bench_dense_chain, bench_images, bench_models, bench_residual_chain, contest

FILES = {
    module.__name__.rpartition(".")[2]: module
    for module in (bench_residual_chain, bench_dense_chain, bench_models, bench_images)
}
RESULTS = Path(__file__).parent / "results"
CONDITIONS = ("as_shipped", "fair")
STUB = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
BUDGET = {True: 1.2, False: 0.8}  # seconds of timing a case; slow cases take at least five rounds


def cases(full: bool, only: str = "") -> list[contest.Case]:
    every = [(name, case) for name, module in FILES.items() for case in module.cases()]
    return [case for name, case in every if (full or case.quick) and re.search(only, f"{name} {case.name}")]


def problem(case: contest.Case, device: str = "cpu") -> contest.Problem:
    built = next(module for module in FILES.values() if case.subject in module.SUBJECTS).problem(case, device)
    return contest.step_off_kinks(built) if case.mode == "train" and built.exact is None else built


def condition_of(environment: dict[str, str], condition: str, folder: Path) -> dict[str, str] | None:
    """The child's environment, or None where the stub cannot be compiled."""
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


def machine() -> dict:
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


def peak_gflops(dtype: str) -> float:
    """Of all threads torch uses: the kernels' multiply-add loop on one core, times the threads."""
    from fastnest import _C

    return _C.peak_gflops(dtype, 0.05) * torch.get_num_threads()


def child(names: list[str], full: bool, path: Path) -> None:
    """One condition: measures the named cases in this process and writes {"rows": [...], ...}."""
    tqdm = optional("tqdm", "bench").tqdm
    every = {case.name: case for case in cases(full=True)}
    chosen = [every[name] for name in names]
    rows, failures, peaks, interrupted = [], [], {case.dtype: [] for case in chosen}, False
    progress = tqdm(chosen, desc=path.stem.replace("_", " "), unit="case", dynamic_ncols=True)
    for case in progress:
        progress.set_postfix_str(case.name)
        peaks[case.dtype].append(peak_gflops(case.dtype))
        try:
            rows.append(contest.measure(problem(case), case, budget=BUDGET[full]))
        except AssertionError as error:  # wrong numbers: no speed from this case
            failures.append(str(error))
            tqdm.write(f"FAILED {error}")
        except KeyboardInterrupt:
            tqdm.write(f"interrupted in {case.name}: what was measured before it is kept")
            interrupted = True
            break
    result = {
        "rows": rows,
        "failures": failures,
        "peak_gflops": {dtype: max(samples) for dtype, samples in peaks.items() if samples},
        "matmul_gflops": None if interrupted else matmul_gflops(),  # what was interrupted may still be running
        "threads": torch.get_num_threads(),
    }
    path.write_text(json.dumps(result))


def run(out: Path | None, *, full: bool, only: str = "", conditions: Sequence[str] = CONDITIONS) -> dict:
    """Runs the chosen cases under the conditions; writes the JSON (of a full run by default in results/)."""
    optional("tqdm", "bench")
    import fastnest

    state = fastnest.backends()["cpp"]
    if state != "available":
        raise ValueError(f"there is nothing to compare: the cpp backend is {state}")
    chosen = [case.name for case in cases(full, only)]
    if not chosen:
        raise ValueError(f"no case has {only!r} in its name")
    facts = machine()
    result = {
        "machine": facts,
        "versions": versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "conditions": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for condition in conditions:
            environment = condition_of(dict(os.environ), condition, Path(folder))
            if environment is None:
                print("fair: skipped, no C compiler for the stub (set CC)", file=sys.stderr)
                continue
            path = Path(folder) / f"{condition}.json"
            arguments = [str(path), "full" if full else "quick", *chosen]
            subprocess.run([sys.executable, "-m", __spec__.name, *arguments], env=environment, check=True)
            result["conditions"][condition] = json.loads(path.read_text())
    if out is None and full and not only:
        out = RESULTS / f"{slug(facts)}.json"
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {out}")
    return result


def complete(result: dict) -> bool:
    """Whether every case passed its comparison with float64."""
    return not any(condition["failures"] for condition in result["conditions"].values())


if __name__ == "__main__":
    child(sys.argv[3:], sys.argv[2] == "full", Path(sys.argv[1]))
