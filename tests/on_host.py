"""The kernels of csrc/cuda compiled for the CPU by the layer in cuda/on_host, under AddressSanitizer and UBSan.

What is built lies in build/on_host under names that hold the hash of what it is made of, so that nothing is compiled
twice.
"""

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
FLAGS = [
    *f"-std=c++20 -O1 -g1 {SANITIZE} -fno-sanitize-recover=undefined -fno-omit-frame-pointer -fPIC".split(),
    *"-fvisibility=hidden -Wall -Wno-unknown-pragmas -DTORCH_TARGET_VERSION=0x020a000000000000ULL".split(),
    # The layer's cuda/device.h before that of csrc.
    *(f"-I{folder}" for folder in (LAYER, ROOT / "csrc", TORCH / "include")),
]


def ops() -> list[str]:
    """Those that have kernels in CUDA C++."""
    return sorted(path.stem.removesuffix("_host") for path in CUDA.glob("*_host.cpp"))


def build_library() -> Path:
    """A library that torch loads: the kernels in place of the CPU's, and the device that they find (library.cpp)."""
    layer = [LAYER / name for name in ("blocks.cpp", "hopper.cpp", "library.cpp")]
    sources = [*sorted(CUDA.glob("*.cu")), *sorted(CUDA.glob("*_host.cpp")), *layer]
    return _link("kernels.so", sources, "-shared", f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10")


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


def _compile(source: Path, common: str) -> Path:
    file = BUILT / f"{source.name}-{_hash(common, source)}.o"
    return _make(file, [*CXX, *FLAGS, "-x", "c++", "-c", source, "-o"])


def _link(name: str, sources: list[Path], *flags: str) -> Path:
    headers = [*(ROOT / "csrc").rglob("*.h"), *LAYER.rglob("*.h")]
    common = _hash(_run([*CXX, "--version"]), torch.__version__, FLAGS, *sorted(headers))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(source, common), sources))
    file = BUILT / f"{_hash(*(one.name for one in objects), flags)}-{name}"
    # Libraries go behind the objects that need them.
    return _make(file, [*CXX, SANITIZE, *objects, *flags, "-o"])
