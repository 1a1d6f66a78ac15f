"""The kernels of csrc/cuda compiled for the CPU by the layer in cuda/on_host, under AddressSanitizer and UBSan.

What is built lies in build/on_host under names that hold the hash of what it is made of, so that nothing is compiled
twice.
"""

import dataclasses
import hashlib
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
CUDA, LAYER = ROOT / "csrc/cuda", ROOT / "tests/cuda/on_host"
BUILT = ROOT / "build/on_host"
CXX = shlex.split(os.environ.get("CXX", "g++"))
SANITIZE = "-fsanitize=address,undefined"
TORCH = Path(torch.__file__).parent
PLAIN = [
    *"-std=c++20 -O1 -fPIC -fvisibility=hidden -Wall -Wno-unknown-pragmas".split(),
    "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
    # The layer's cuda/device.h before that of csrc.
    *(f"-I{folder}" for folder in (LAYER, ROOT / "csrc", TORCH / "include")),
]
FLAGS = [*PLAIN, *f"-g1 {SANITIZE} -fno-sanitize-recover=undefined -fno-omit-frame-pointer".split()]


OF_LIBRARY = [LAYER / name for name in ("blocks.cpp", "hopper.cpp", "library.cpp")]
AGAINST_TORCH = ("-shared", f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10")


@dataclasses.dataclass(frozen=True)
class Fault:
    """A mistake put into a file of csrc/cuda, of which a source there is compiled: old becomes new, once."""

    file: str
    source: str
    old: str
    new: str

    def overlay(self) -> Path:
        """A folder of includes, to be searched first, in which the file is as it should not be."""
        text = (CUDA / self.file).read_text()
        assert text.count(self.old) == 1, f"{self.file} has {text.count(self.old)} times: {self.old}"
        folder = BUILT / f"fault-{_hash(self, text)}"
        changed = folder / "cuda" / self.file
        changed.parent.mkdir(parents=True, exist_ok=True)
        changed.write_text(text.replace(self.old, self.new))
        return folder


def build_library() -> Path:
    """A library that torch loads: the kernels in place of the CPU's, and the device that they find (library.cpp)."""
    sources = [*sorted(CUDA.glob("*.cu")), *sorted(CUDA.glob("*_host.cpp")), *OF_LIBRARY]
    return _link("kernels.so", sources, *AGAINST_TORCH)


def build_dense_block2d(fault: Fault | None = None) -> Path:
    """The same of dense_block2d alone, without sanitizers, and with a mistake."""
    sources = [*sorted(CUDA.glob("norm_conv*.cu")), CUDA / "dense_block2d_host.cpp", *OF_LIBRARY]
    return _link("dense_block2d.so", sources, *AGAINST_TORCH, flags=PLAIN, fault=fault)


def build_layer() -> Path:
    """A program of small kernels: layer CHECK ORDER."""
    return _link("layer", [LAYER / "blocks.cpp", LAYER / "hopper.cpp", *sorted(LAYER.glob("layer*.cpp"))])


def preloaded() -> dict[str, str]:
    """The environment of a process that loads the library; what is allocated and not written is NaN."""

    def path_of(library: str) -> str:
        return _run([*CXX, f"-print-file-name={library}"]).strip()

    options = "detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=1000000000"
    return {"LD_PRELOAD": f"{path_of('libasan.so')} {path_of('libstdc++.so.6')}", "ASAN_OPTIONS": options}


def _run(command: list) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _hash(*parts: object) -> str:
    text = [part.read_bytes() if isinstance(part, Path) else repr(part).encode() for part in parts]
    return hashlib.sha256(b"\0".join(text)).hexdigest()[:16]


def _make(file: Path, command: list) -> Path:
    """The file, by a command that ends with its name, where it is not there yet."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        _run([*command, unfinished])
        unfinished.rename(file)
    return file


def _compile(source: Path, common: str, flags: list[str], fault: Fault | None) -> Path:
    if fault is not None and source.name == fault.source:
        overlay = fault.overlay()
        flags = [f"-I{overlay}", *flags]
        if fault.file == fault.source:
            source = overlay / "cuda" / source.name
    file = BUILT / f"{source.name}-{_hash(common, flags, source)}.o"
    return _make(file, [*CXX, *flags, "-x", "c++", "-c", source, "-o"])


def _link(
    name: str, sources: list[Path], *libraries: str, flags: list[str] = FLAGS, fault: Fault | None = None
) -> Path:
    headers = [*(ROOT / "csrc").rglob("*.h"), *LAYER.rglob("*.h")]
    common = _hash(_run([*CXX, "--version"]), torch.__version__, *sorted(headers))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(source, common, flags, fault), sources))
    file = BUILT / f"{_hash(*(one.name for one in objects), libraries)}-{name}"
    # Libraries go behind the objects that need them.
    sanitize = [SANITIZE] if flags is FLAGS else []
    return _make(file, [*CXX, *sanitize, *objects, *libraries, "-o"])
