"""A module in evaluation for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Evaluation without gradients: no running statistics move and nothing is dropped out; modes are put back."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(module).__name__}")
    training = [one for one in module.modules() if one.training]
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for one in training:
            one.training = True
