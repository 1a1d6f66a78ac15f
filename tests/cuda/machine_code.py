"""The CUDA kernels compiled for GPUs that are not here, and what the machine code needs.

    machine_code.py [FILE.cu|all] [TARGET ...]

prints a table in Markdown with a line for every kernel, and ends with 1 where a kernel spills registers, has more
shared memory than the part, leaves its products to other units than tensor cores, or, on Hopper's layer, loads without
TMA or waits for each of its products. A FILE of csrc/cuda and one TARGET
are what test_machine_code.py takes; several are compiled two at a time.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc/cuda"
# KiB of shared memory that a block may have; the system's own 1 KiB, which is counted as static, is beside it.
TARGETS = {"sm_80": 163, "sm_90a": 227, "sm_100a": 227, "sm_120": 99}
OF_SYSTEM = 1
# Those of an installation, and every warning an error.
FLAGS = f"{runpy.run_path(str(ROOT / 'csrc/toolkit.py'))['FLAGS']} -Werror all-warnings -Xptxas -Werror".split()
# Which instruction multiplies tiles, by the product in a kernel's name (mma.h).
TENSOR_CORE = {
    "HalfProduct<fastnest::BFloat16>": "HMMA.16816.F32.BF16",
    "HalfProduct<fastnest::Half>": "HMMA.16816.F32 ",
    "Tf32Product": "HMMA.1688.F32.TF32",
    "Float32Product": "HMMA.16816.F32.BF16",
}
# Kernels on csrc/cuda/hopper take tensor maps. They are for this target alone; compiled for others they only trap.
HOPPER, TENSOR_MAP = "sm_90a", "CUtensorMap"
COLUMNS = ("target", "kernel", "registers", "stack", "spills", "static shared", "tensor core", "TMA", "serialized")


class Kernel(NamedTuple):
    name: str
    registers: int
    stack: int  # bytes, of a thread: spilled, or an array that is indexed by what only runs know
    spills: int  # instructions that read or write local memory
    shared: int  # bytes, static
    tensor_core: int  # instructions
    tma: int  # loads
    serialized: int  # warnings that a product waits for the one before (C7510 and on)
    on_hopper: bool  # takes tensor maps

    def wrong(self, target: str) -> list[str]:
        reasons = []
        if self.stack or self.spills:
            reasons.append("spills")
        if self.shared > (TARGETS[target] + OF_SYSTEM) * 1024:
            reasons.append(f"more shared memory than {TARGETS[target]} KiB")
        multiplies = target == HOPPER if self.on_hopper else "Product" in self.name
        if multiplies and not self.tensor_core:
            reasons.append("no tensor cores")
        if self.on_hopper and target == HOPPER and not self.tma:
            reasons.append("no TMA")
        if self.serialized:
            reasons.append("products wait for each other")
        return reasons


def home() -> Path:
    """Of the toolkit."""
    return Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")


def sources() -> list[str]:
    return sorted(path.name for path in SOURCES.glob("*.cu"))


def tool(name: str) -> str:
    """A program of the toolkit, or of the part of it that comes with Triton."""
    if (home() / "bin" / name).exists():
        return str(home() / "bin" / name)
    try:
        import triton
    except ImportError:
        raise SystemExit(f"{name} is neither in {home()}/bin nor is Triton installed, which has one") from None
    return str(Path(triton.__file__).parent / "backends/nvidia/bin" / name)


def said_by(*command: object, given: str | None = None) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, input=given)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def compiled(source: str | Path, target: str) -> list[Kernel]:
    """The kernels of a file of csrc/cuda, in the order of their names."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.o"
        arch = f"-gencode=arch={target.replace('sm', 'compute')},code={target}"
        said = said_by(home() / "bin/nvcc", *FLAGS, f"-I{ROOT / 'csrc'}", arch, "-c", SOURCES / source, "-o", file)
        usage = said_by(tool("cuobjdump"), "--dump-resource-usage", file)
        code = said_by(tool("cuobjdump"), "-sass", file)
    return sorted(_kernels(usage, code, said))


def _kernels(usage: str, code: str, said: str) -> list[Kernel]:
    instructions = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function :|\Z)", code, re.DOTALL))
    found = []
    for mangled, used in re.findall(r"Function (\w+):\s*(REG:.*)", usage):
        numbers = {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", used)}
        name, body = _plain(mangled), instructions[mangled]
        on_hopper = TENSOR_MAP in mangled
        wanted = "HGMMA" if on_hopper else next((one for key, one in TENSOR_CORE.items() if key in name), "HMMA")
        spills = len(re.findall(r"\b(?:LDL|STL)\b", body))
        stack = numbers["STACK"] + numbers["LOCAL"]
        counts = body.count(wanted), body.count("UTMALDG"), len(re.findall(rf"\(C75\d\d\).*{mangled}", said))
        found.append(Kernel(name, numbers["REG"], stack, spills, numbers["SHARED"], *counts, on_hopper))
    return found


def _plain(mangled: str) -> str:
    """A kernel's name and template arguments, without those of its parameters."""
    name = said_by(shutil.which("c++filt") or tool("cu++filt"), mangled).strip()
    return re.sub(r"^void |fastnest::cuda::|\(anonymous namespace\)::", "", name[: _end_of_name(name)])


def _end_of_name(name: str) -> int:
    """Where the list of parameters begins: the first bracket outside of template arguments."""
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and not depth and not name.startswith("(anonymous", i):
            return i
    return len(name)


def table(kernels: list[tuple[str, Kernel]]) -> str:
    lines = [COLUMNS, tuple("---" if column in COLUMNS[:2] else "--:" for column in COLUMNS)]
    lines += [(target, f"`{kernel.name}`", *map(str, kernel[1:-1])) for target, kernel in kernels]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(words: list[str]) -> int:
    files = [word for word in words if word.endswith(".cu")] or sources()
    targets = [word for word in words if word in TARGETS] or list(TARGETS)
    jobs = list(product(files, targets))
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda job: compiled(*job), jobs))
    kernels = [(target, kernel) for (_, target), found in zip(jobs, done, strict=True) for kernel in found]
    print(table(kernels))
    wrong = [(target, kernel.name, reasons) for target, kernel in kernels if (reasons := kernel.wrong(target))]
    for target, name, reasons in wrong:
        print(f"FAILED: {name} on {target}: {', '.join(reasons)}")
    return int(bool(wrong) or not kernels)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
