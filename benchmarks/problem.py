"""What is compared: a case, and the ways to compute it on the same tensors."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Peers that are fastnest, forced on that backend.
BACKENDS = ("triton",)


@dataclass(frozen=True)
class Case:
    """One line of a table: an op or model, forward or training step, dtype and sizes by the paper's letters."""

    subject: str
    mode: str  # "forward" (no grad) or "train" (forward, backward, every gradient)
    dtype: str
    sizes: dict = field(hash=False)
    peers: tuple[str, ...]  # names of the contestants besides fastnest
    quick: bool = False
    backend: str = ""  # that fastnest is forced on; "": it chooses

    @property
    def name(self) -> str:
        sizes = "-".join(f"{letter}{value}" for letter, value in self.sizes.items())
        return f"{self.subject}-{self.mode}-{self.dtype}-{sizes}{self.backend and '-' + self.backend}"

    def labels(self) -> dict:
        """What a line of results is of."""
        return {key: getattr(self, key) for key in ("name", "subject", "mode", "dtype", "sizes")}


@dataclass
class Form:
    """One way to write the computation, call(*leaves) -> y, x = leaves[0]; collect: gradients as fastnest has them."""

    call: Callable[..., Tensor]
    leaves: list[Tensor]
    collect: Callable[[Sequence[Tensor]], list[Tensor]] = list

    def step(self, mode: str, dy: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """A function of nothing: the forward, which returns (y,), or the training step, (y, *gradients)."""
        if mode == "forward":
            return lambda: (self.call(*self.leaves),)
        learned = [tensor for tensor in self.leaves if tensor.requires_grad]

        def train() -> tuple[Tensor, ...]:
            y = self.call(*self.leaves)
            return y, *torch.autograd.grad(y, learned, dy)

        return train

    def results(self, returned: Sequence[Tensor]) -> list[Tensor]:
        """What a step of this form returned, as fastnest has it: [y], or [y, dx, gradients of the parameters]."""
        y, *gradients = returned
        return [y.detach(), *(self.collect(gradients) if gradients else [])]


@dataclass(frozen=True)
class Autocast:
    """A form's call under autocast to bfloat16.

    torch.compile stays inside of it (contest.compiled): it caches no tracing of a graph that enters autocast itself,
    and to trace a network again takes a minute.
    """

    call: Callable[..., Tensor]
    device: str

    def __call__(self, *leaves: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            return self.call(*leaves)


@dataclass
class Problem:
    """A case with its tensors. `forms` has "fastnest", "eager" and perhaps others; torch.compile takes "eager".

    A leaf that needs no gradient is data: no contestant computes one for it.
    """

    forms: dict[str, Form]
    flops: int = 0  # of the case's mode, by fastnest.testing
    bytes: int = 0  # the least that the forward moves: every argument and the result, once
    # The results of a step in float64, given dy, where rows depend on each other; only y where there are blocks.
    exact: Callable[[Tensor], list[Tensor]] | None = None
    # Every block's name and problem, where the gradients of the whole network are mostly rounding error (gate.py).
    blocks: Callable[[], Iterator[tuple[str, "Problem"]]] | None = None
    # That fastnest.accelerate has changed, where fastnest's form runs one.
    model: torch.nn.Module | None = None

    def form_of(self, contestant: str) -> Form:
        """What a contestant runs: a backend fastnest's form, torch.compile eager's, any other its own."""
        return self.forms.get(contestant) or self.forms["fastnest" if contestant in BACKENDS else "eager"]


def leaf(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Leaves of autograd on the same memory."""
    return [t.detach().requires_grad_() for t in tensors]


def output_gradient(problem: Problem) -> Tensor:
    """A random gradient of the output."""
    with torch.no_grad():
        y = problem.forms["fastnest"].call(*problem.forms["fastnest"].leaves)
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
