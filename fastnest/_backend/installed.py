"""What can run here: the C++ kernels where they are built, the Triton kernels where Triton and a GPU are."""

import os
from importlib.util import find_spec

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
TRITON_IS_INSTALLED = find_spec("triton") is not None
# What Triton itself reads, once, when its kernels are imported: they then run on the CPU, step by step, for tests.
TRITON_IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
OLDEST_GPU = (8, 0)  # compute capability: the first with bfloat16


def backends() -> dict[str, str]:
    """Every backend by name: "available", or why it cannot run here and what to do about it."""
    return {
        "reference": "available",
        "cpp": "available" if CPP_IS_BUILT else CPP_MISSING,
        "triton": _triton_missing() or "available",
        "cuda": "not built yet: this version has no kernels in CUDA C++; GPU tensors run triton or the reference",
    }


def _triton_missing() -> str | None:
    if not TRITON_IS_INSTALLED:
        return 'not installed: pip install "fastnest-torch[triton]"'
    if TRITON_IS_INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "no GPU that torch can use; install a torch built for CUDA, on a machine with an NVIDIA GPU"
    reason: str | None = why_no_gpu(torch.cuda.current_device())
    return reason


@torch.compiler.assume_constant_result
def why_no_gpu(index: int) -> str | None:
    """Why a GPU runs no kernels, whatever the call."""
    if not TRITON_IS_INSTALLED:
        return _triton_missing()
    if torch.version.hip is not None:
        return "no kernels for AMD GPUs yet: they compile for them, but none has run there"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_GPU:
        return "no kernels for GPUs older than compute capability 8.0, got {}.{}".format(*capability)
    return None
