"""The CPU's operators in a process without torch: compiled by any compiler, run by any emulator, called from here."""

import os
import re
import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastnest.testing import Case, Results, check_kernels
from fastnest.testing import run as run_case

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # by number, as in torch/csrc/stable/library.h here


def build(folder: Path, compiler: str, *flags: str) -> Path:
    """Compiles the operators into folder, as many files at a time as there are cores: the path of the executable.

    flags come behind those of setup.py. Files that are newer than all sources are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = re.search(r'^FLAGS = "(.*)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)[1].split()
    command = [compiler, *own, *flags, f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
    headers = [*(ROOT / "csrc").rglob("*.h"), *HERE.rglob("*.h"), ROOT / "setup.py"]
    newest = max(path.stat().st_mtime for path in headers)

    def compiled(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        if not made.exists() or made.stat().st_mtime < max(newest, source.stat().st_mtime):
            run([*command, "-c", str(source), "-o", str(made)])
        return made

    slow_first = sorted((ROOT / "csrc/cpu").glob("*.cpp"), key=lambda path: "each_target.h" not in path.read_text())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*slow_first, HERE / "main.cpp"]))
    run([*command, *map(str, objects), "-o", str(folder / "operators")])
    return folder / "operators"


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}")


class Elsewhere(TorchDispatchMode):
    """Inside, every operator of the library on the CPU runs in the executable, which `close` ends.

    Args:
        command: what starts it.
        instruction_set: the one it runs on.
        threads: as many as torch would give.
    """

    def __init__(self, command: Sequence[str | Path], instruction_set: str, threads: int = 1):
        super().__init__()
        self.command, self.instruction_set, self.threads = " ".join(map(str, command)), instruction_set, threads
        self.calls = 0
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(list(map(str, command)), stdin=pipe, stdout=pipe, stderr=pipe)

    def close(self) -> None:
        """Raises AssertionError where it did not end well: a sanitizer's words, a signal."""
        self.process.stdin.close()
        complaint = self.process.stderr.read().decode(errors="replace")
        assert self.process.wait() == 0, complaint

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace != "fastnest":
            return function(*args, **(kwargs or {}))
        self.calls += 1
        words = (function._schema.name.partition("::")[2], self.instruction_set, self.threads)
        types = [str(argument.type) for argument in function._schema.arguments]
        call = [written(word) for word in words]
        call += [written(arg, optional="Optional" in kind) for arg, kind in zip(args, types, strict=True)]
        try:
            self.process.stdin.write(b"".join(call))
            self.process.stdin.flush()
            returns = [self._read(str(result.type)) for result in function._schema.returns]
        except (BrokenPipeError, struct.error):
            raise RuntimeError(f"the executable ended:\n{self.process.stderr.read().decode()}") from None
        return returns[0] if len(returns) == 1 else tuple(returns)

    def _numbers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"={count}q", self.process.stdout.read(8 * count))

    def _read(self, kind: str) -> Tensor | list[Tensor]:
        if kind.startswith("List"):
            return [self._tensor() for _ in range(*self._numbers(1))]
        return self._tensor()

    def _tensor(self) -> Tensor:
        dtype, dimensions = self._numbers(2)
        sizes, strides = self._numbers(dimensions), self._numbers(dimensions)
        values = torch.empty(reach(sizes, strides), dtype=DTYPES[dtype])
        read = self.process.stdout.read(values.nbytes)
        if values.nbytes:
            values = torch.frombuffer(bytearray(read), dtype=values.dtype)
        return values.as_strided(sizes, strides)


def reach(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last one."""
    return 0 if 0 in sizes else 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def written(value, optional: bool = False) -> bytes:
    """One argument as wire.h reads it."""
    if optional:
        return struct.pack("=q", value is not None) + (written(value) if value is not None else b"")
    if isinstance(value, Tensor):
        sizes, strides = value.shape, value.stride()
        elements = value.detach().as_strided((reach(sizes, strides),), (1,)).contiguous().view(torch.uint8).numpy()
        numbers = struct.pack(f"={2 + 2 * value.dim()}q", DTYPES.index(value.dtype), value.dim(), *sizes, *strides)
        return numbers + elements.tobytes()
    if isinstance(value, list | tuple):
        return struct.pack("=q", len(value)) + b"".join(map(written, value))
    if isinstance(value, str):
        return struct.pack("=q", len(value)) + value.encode()
    return struct.pack("=d", value) if isinstance(value, float) else struct.pack("=q", value)


def check(elsewhere: Elsewhere, op: str, dtype: torch.dtype, cases: Sequence[Case]) -> None:
    """Every output and gradient of these cases, computed there, is as near to float64 as a kernel's has to be."""
    for one in cases:

        def results(backend: str, compute: torch.dtype | None, nudge: int, one: Case = one) -> Results:
            with nullcontext() if backend == "reference" else elsewhere:
                return run_case(one, backend, compute, nudge, dtype=dtype)

        check_kernels(results, ["cpp"], dtype, f"{elsewhere.instruction_set} in {elsewhere.command}: {one!r}")
