"""Modules inside a module, called as they are."""

from typing import Any

import torch
from torch import Tensor


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    )


def run_child(name: str, child: torch.nn.Module | None, *inputs: Any) -> Tensor:
    """child(*inputs), a tensor; its RuntimeError, ValueError or TypeError is raised again with its name in front."""
    if child is None:
        raise TypeError(f"{name} must be a torch.nn.Module, got None")
    try:
        y = child(*inputs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        kind = next(kind for kind in (RuntimeError, ValueError, TypeError) if isinstance(error, kind))
        raise kind(f"{name} ({type(child).__name__}): {error}") from error
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must return a torch.Tensor, got {type(y).__name__}")
    return y
