"""Running a case by a kernel or backend: outputs and every gradient, by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _backend
from .case import Case

Results = dict[str, Tensor]


def devices() -> list[str]:
    """The kinds of devices that kernels are tested on here."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def kernels(device: str = "cpu", op: str = "") -> list[str]:
    """What `kernel` can force for tensors of a device, other than the reference.

    On a CPU the C++ kernels on every instruction set, none where they are not built. On a GPU Triton, and CUDA C++ if
    the op has such kernels in this build, forward and backward; whether they can run there is for `kernel` to say.
    """
    if device != "cpu":
        both = all("cuda" in _backend.registered(f"{op}_{way}") for way in ("forward", "backward"))
        return ["triton", *(["cuda"] if both else [])]
    return [f"cpp {name}" for name in _backend._C.instruction_sets()] if _backend.CPP_IS_BUILT else []


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """The C++ kernels run on this instruction set (one of `fastnest._C.instruction_sets()`) inside the block."""
    _backend._C.force_instruction_set(name)
    try:
        yield
    finally:
        _backend._C.force_instruction_set("")


@contextmanager
def kernel(name: str) -> Iterator[None]:
    """Forces one of `kernels()`, or a backend, inside the block."""
    backend, _, on = name.partition(" ")
    with _backend.backend(backend), instruction_set(on) if on else nullcontext():
        yield


def flat(tensors: dict[str, Any]) -> Results:
    """A case's tensors by name, those in lists as name[i]."""
    leaves: Results = {}
    for name, value in tensors.items():
        leaves |= {f"{name}[{i}]": one for i, one in enumerate(value)} if isinstance(value, list) else {name: value}
    return leaves


def unflat(leaves: Results) -> dict[str, Any]:
    """The inverse of `flat`: arguments for `Case.call`."""
    tensors: dict[str, Any] = {}
    for name, value in leaves.items():
        if name.endswith("]"):
            tensors.setdefault(name[: name.index("[")], []).append(value)
        else:
            tensors[name] = value
    return tensors


@dataclass
class Call:
    """A case with its arguments by name and the gradients of its outputs, to be run by a kernel or backend."""

    case: Case
    name: str
    leaves: Results
    gradients: list[Tensor]

    def forward(self) -> tuple[Tensor, ...]:
        """The outputs, no gradients asked for."""
        with kernel(self.name), torch.no_grad():
            return as_tuple(self.case.call(unflat(self.leaves)))

    def step(self) -> Results:
        """Every output and every gradient, by name."""
        learned = {leaf: tensor for leaf, tensor in self.leaves.items() if tensor.requires_grad}
        with kernel(self.name):
            outputs = as_tuple(self.case.call(unflat(self.leaves)))
            gradients = torch.autograd.grad(outputs, list(learned.values()), self.gradients, materialize_grads=True)
        results = {output: value.detach() for output, value in zip(("y", "features"), outputs, strict=False)}
        return results | {f"d{leaf}": gradient for leaf, gradient in zip(learned, gradients, strict=True)}


def with_value(value: float) -> Callable[[Results, list[Tensor]], None]:
    """A change for `run` and `prepare`: x[1, -1] and x[-1, 0] are value, of images in the last and first pixel."""

    def change(leaves: Results, gradients: list[Tensor]) -> None:
        x = leaves["x"].movedim(1, -1)
        x[(1, *[-1] * (x.dim() - 1))] = x[(-1, *[0] * (x.dim() - 1))] = value

    return change


def prepare(
    case: Case,
    name: str,
    compute: torch.dtype | None = None,
    nudge: int = 0,
    *,
    dtype: torch.dtype,
    change: Callable[[Results, list[Tensor]], None] | None = None,
    device: str = "cpu",
) -> Call:
    """A case with the arguments of `Case.tensors` and random gradients of its outputs.

    change(leaves, gradients) may alter the arguments by name, and the gradients of the outputs, in place.
    """
    call = Call(case, name, flat(case.tensors(dtype, compute, nudge, device)), [])
    generator = torch.Generator().manual_seed(1)
    for output in call.forward():
        gradient = torch.randn(output.shape, generator=generator).to(dtype)
        call.gradients.append(gradient.to(device, compute or dtype))
    if change is not None:
        with torch.no_grad():
            change(call.leaves, call.gradients)
    return call


def run(
    case: Case, name: str, compute: torch.dtype | None = None, nudge: int = 0, *, dtype: torch.dtype, **options: Any
) -> Results:
    """Every output of a case and every gradient (for random gradients of the outputs), by a kernel or backend.

    Arguments and options (change, device) as for `prepare`.
    """
    return prepare(case, name, compute, nudge, dtype=dtype, **options).step()


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """What an op returned: y, or y and the features; mean and variance."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
