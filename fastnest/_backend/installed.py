"""What can run here: the C++ kernels where they are built; on a GPU, those in Triton and those built in CUDA C++."""

import os
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch

CPP_MISSING = ""
try:
    from .. import _C as _C
except ImportError as error:
    _C = None  # type: ignore[assignment]  # a module that may be missing
    CPP_MISSING = f"built but not loadable ({error}); build it again for torch {torch.__version__}"
    if error.name == "fastnest._C" or "cannot import name" in str(error):
        CPP_MISSING = "not built: installed without a C++ compiler; install g++ >= 11, then install fastnest again"

CPP_IS_BUILT = _C is not None
# What machine code of the CUDA C++ kernels was built ("sm_90a"), and PTX ("compute_90"); () where none was.
CUDA_BUILD = _C.build_info()["cuda"] if CPP_IS_BUILT else None
CUDA_CODES = tuple(CUDA_BUILD["architectures"]) if CUDA_BUILD else ()
TRITON_IS_INSTALLED = find_spec("triton") is not None
# What Triton itself reads, once, when its kernels are imported: they then run on the CPU, step by step, for tests.
TRITON_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
OLDEST_GPU = (8, 0)  # compute capability: the first with bfloat16
KEYS = {"cpp": "CPU", "cuda": "CUDA"}


class Room(NamedTuple):
    """What kernels in CUDA C++ find on a GPU: bytes of shared memory a block, and whether several blocks share theirs.

    hopper: whether kernels for compute capability 9.0 alone (TMA, wgmma) run: on such a GPU, and built for it.
    """

    shared_bytes: int
    clusters: bool
    hopper: bool = False


def backends() -> dict[str, str]:
    """Every backend by name: "available", or why it cannot run here and what to do about it."""
    return {
        "reference": "available",
        "cpp": "available" if CPP_IS_BUILT else CPP_MISSING,
        "triton": _triton_missing() or "available",
        "cuda": _cuda_missing() or "available",
    }


def _triton_missing() -> str | None:
    if not TRITON_IS_INSTALLED:
        return 'not installed: pip install "fastnest-torch[triton]"'
    return None if TRITON_IS_INTERPRETED else _no_gpu() or why_no_triton(torch.cuda.current_device())


def _cuda_missing() -> str | None:
    if not CUDA_CODES:
        return _not_built()
    return _no_gpu() or why_no_cuda(torch.cuda.current_device())


def _not_built() -> str:
    return "not built: install fastnest again beside a CUDA toolkit and a torch for CUDA, or with FASTNEST_CUDA=1"


def _no_gpu() -> str | None:
    if torch.cuda.is_available():
        return None
    return "no GPU that torch can use; install a torch built for CUDA, on a machine with an NVIDIA GPU"


@torch.compiler.assume_constant_result
def why_no_triton(index: int) -> str | None:
    """Why a GPU runs no kernels in Triton, whatever the call."""
    return _triton_missing() if not TRITON_IS_INSTALLED else _why_not_this_gpu(index)


@torch.compiler.assume_constant_result
def why_no_cuda(index: int, op: str | None = None) -> str | None:
    """Why a GPU runs no kernels in CUDA C++, or none of an op, whatever the call."""
    if not CUDA_CODES:
        return _not_built()
    # An op whose kernels have no backward says so itself, as a limit of the calls that it takes.
    if op is not None and "cuda" not in registered(f"{op}_forward"):
        return f"no kernels in CUDA C++ for {op}"
    return _why_not_this_gpu(index) or _why_no_code(torch.cuda.get_device_capability(index))


@torch.compiler.assume_constant_result
def room_on_gpu(index: int) -> Room:
    """What kernels in CUDA C++ find on a GPU."""
    properties = torch.cuda.get_device_properties(index)
    # torch's stub does not have the first.
    shared_bytes: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    capability = torch.cuda.get_device_capability(index)
    hopper = capability == (9, 0) and not {"sm_90a", "compute_90a"}.isdisjoint(CUDA_CODES)
    return Room(shared_bytes, properties.major >= 9, hopper)


def _why_not_this_gpu(index: int) -> str | None:
    if torch.version.hip is not None:
        return "no kernels for AMD GPUs yet: they compile for them, but none has run there"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_GPU:
        return "no kernels for GPUs older than compute capability 8.0, got {}.{}".format(*capability)
    return None


def _why_no_code(capability: tuple[int, int]) -> str | None:
    """Machine code runs on later GPUs of its major version, PTX on all later ones; with "a", both only on their own."""
    major, minor = capability
    for code in CUDA_CODES:
        kind, _, name = code.partition("_")
        number = name.rstrip("af")
        only, built = name[len(number) :], divmod(int(number), 10)
        later = built < capability and only != "a" and (built[0] == major or (kind == "compute" and only == ""))
        if built == capability or later:
            return None
    codes = ", ".join(CUDA_CODES)
    return f"built for {codes}, not for this GPU; install fastnest again with TORCH_CUDA_ARCH_LIST={major}.{minor}"


@torch.compiler.assume_constant_result
def registered(name: str) -> tuple[str, ...]:
    """The backends for which fastnest._C has a kernel of the operator `name`."""
    return _registered(name)


@cache  # asking takes 36 us
def _registered(name: str) -> tuple[str, ...]:
    try:
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        return tuple(backend for backend, key in KEYS.items() if has(f"fastnest::{name}", key))
    except RuntimeError:  # no such operator
        return ()
