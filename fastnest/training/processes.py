"""The processes of one training, as torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """How many there are, and which one this is."""

    rank: int = 0
    number: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows; shares of all processes differ by one row at most."""
        return rows.tensor_split(self.number)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.number > 1:
            torch.distributed.all_reduce(values)
        return values

    def agree(self, model: torch.nn.Module) -> None:
        """Gives every process the first one's running statistics."""
        if self.number > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model with gradients averaged over the processes."""
        return torch.nn.parallel.DistributedDataParallel(model) if self.number > 1 else model


@contextmanager
def processes() -> Iterator[Processes]:
    """Joins the others if torchrun started this process, unless it has joined them already; alone otherwise."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not joined and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    if not joined:
        torch.distributed.init_process_group("gloo")
    try:
        yield Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        if not joined:
            torch.distributed.destroy_process_group()
