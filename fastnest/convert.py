"""What fastnest does with a user's model."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from . import _backend
from .nn import DenseChain, DenseGrowth, Residual, ResidualChain


class ExplanationRow(NamedTuple):
    """One chain or block of a model: its name, what it is, what ran, on which backend, and why nothing faster."""

    module: str
    kind: str
    runs: str
    backend: str
    reason: str


@dataclass
class Explanation:
    """What `explain` found, one row per chain or block in the order they ran; prints as a table."""

    rows: list[ExplanationRow] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.rows:
            return "no fastnest chain or block ran: the model has none, or did not call them"
        table = [ExplanationRow("module", "kind", "runs", "backend", "why"), *self.rows]
        widths = [max(map(len, column)) for column in list(zip(*table, strict=True))[:-1]]
        lines = ["  ".join([*map(str.ljust, row, widths), row.reason]).rstrip() for row in table]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def explain(model: torch.nn.Module, *inputs) -> Explanation:
    """Which implementation every chain or block of a model runs for these inputs, and what was left alone and why.

    Calls the model once, in its mode (training or not), without gradients; parameters, running statistics, the mode and
    the CPU's random state are as before.

    Args:
        model: any module; chains and blocks of `fastnest.nn` inside it are explained.
        inputs: what model(*inputs) takes.

    Returns:
        An Explanation; print it.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, got {type(model).__name__}")
    explanation, hooks = Explanation(), []
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _backend.logging_choices() as log:
            for name, module in model.named_modules():
                if isinstance(module, (ResidualChain, DenseChain, Residual, DenseGrowth)):
                    hooks.append(module.register_forward_pre_hook(lambda *_: log.clear()))
                    hooks.append(module.register_forward_hook(_explaining(name, log, explanation.rows)))
            with torch.compiler.set_stance("force_eager"):  # a compiled model calls neither hooks nor the log
                torch.func.functional_call(model, buffers, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return explanation


def _explaining(name: str, log: list[_backend.Choice], rows: list[ExplanationRow]):
    def hook(module: torch.nn.Module, inputs: tuple, output) -> None:
        kind = type(module).__name__
        if log:
            for op, backend, dtype, reason in log:
                rows.append(ExplanationRow(name or "(model)", kind, f"{op} {str(dtype)[6:]}", backend, reason))
            log.clear()
        elif isinstance(module, (Residual, DenseGrowth)):
            inner = type(module.block).__name__
            reason = f"{inner} is a module of its own: left alone, called as it is"
            rows.append(ExplanationRow(name or "(model)", kind, f"{inner}, then torch", "torch", reason))
        else:
            reason = "batch norm in training needs each block's batch statistics; eval() folds it and runs the op"
            rows.append(ExplanationRow(name or "(model)", kind, "torch, block by block", "torch", reason))

    return hook
