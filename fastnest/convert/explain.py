"""explain: what runs in a model for given inputs, on which backend, and why nothing faster."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn import Module

from .. import _backend
from ..nn import DenseChain, DenseGrowth, Residual, ResidualChain
from ..nn.own_block import OwnBlock
from .candidates import candidates, own_blocks
from .swap import examine, plan_of, why_not

CHAINS = (DenseChain, DenseGrowth, Residual, ResidualChain)


class ExplanationRow(NamedTuple):
    """One chain or block of a model: its name, its class, what ran, on which backend, and why nothing faster."""

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
            return (
                "no fastnest chain or block ran, nor one that accelerate knows: the model has none, or did not call it"
            )
        table = [ExplanationRow("module", "kind", "runs", "backend", "why"), *self.rows]
        widths = [max(map(len, column)) for column in list(zip(*table, strict=True))[:-1]]
        lines = ["  ".join([*map(str.ljust, row, widths), row.reason]).rstrip() for row in table]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def explain(model: Module, *inputs: Any) -> Explanation:
    """Which implementation every chain or block of a model runs for these inputs, and what was left alone and why.

    Explained are the chains and blocks of `fastnest.nn`, and what `fastnest.accelerate` replaced, would replace, or
    knows by its looks and leaves alone. Calls the model once, in its mode (training or not), without gradients;
    parameters, running statistics, the mode and the CPU's random state are as before.

    Args:
        model: any module.
        inputs: what model(*inputs) takes.

    Returns:
        An Explanation; print it.
    """
    if not isinstance(model, Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, got {type(model).__name__}")
    explanation, hooks = Explanation(), []
    found: dict[str, Module] = {name: module for name, module in model.named_modules() if isinstance(module, CHAINS)}
    found |= dict(own_blocks(model)) | dict(candidates(model))
    # One replica is explained: functional_call takes no DataParallel.
    called = model.module if isinstance(model, torch.nn.DataParallel) else model
    buffers = {name: buffer.clone() for name, buffer in called.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _backend.logging_choices() as log:
            for name, module in found.items():
                call = _Call(name or "(model)", module, log, explanation.rows)
                hooks.append(module.register_forward_pre_hook(call.begins, with_kwargs=True))
                hooks.append(module.register_forward_hook(call.ends))
            with torch.compiler.set_stance("force_eager"):  # a compiled model calls neither hooks nor the log
                torch.func.functional_call(called, buffers, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return explanation


class _Call:
    """What one call of one chain or block chose, as rows."""

    def __init__(self, name: str, module: Module, log: list[_backend.Choice], rows: list[ExplanationRow]):
        self.name, self.module, self.log, self.rows = name, module, log, rows
        self.reason = ""

    def begins(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if plan_of(module) is not None:
            self.reason = why_not(module, args, kwargs) or ""
        elif isinstance(module, OwnBlock):
            plan = module.plan_now()
            self.reason = plan if isinstance(plan, str) else ""
        elif not isinstance(module, CHAINS):
            plan = examine(module)
            self.reason = plan if isinstance(plan, str) else f"{plan}: not accelerated, call fastnest.accelerate(model)"
        self.log.clear()  # of what examining ran, too

    def ends(self, module: Module, args: tuple[Any, ...], output: Any) -> None:
        for op, backend, dtype, reason in self.log:
            self._row(f"{op} {str(dtype)[6:]}", backend, reason)
        if not self.log:
            self._row(*self._without_an_op())
        self.log.clear()

    def _without_an_op(self) -> tuple[str, str, str]:
        if isinstance(self.module, (Residual, DenseGrowth)):
            inner = type(self.module.block).__name__
            return f"{inner}, then torch", "torch", f"{inner} is a module of its own: left alone, called as it is"
        if isinstance(self.module, (ResidualChain, DenseChain)):
            return "torch, block by block", "torch", self.module.why_block_by_block() or ""
        return "its own modules" if isinstance(self.module, OwnBlock) else "its own forward", "torch", self.reason

    def _row(self, runs: str, backend: str, reason: str) -> None:
        self.rows.append(ExplanationRow(self.name, type(self.module).__name__, runs, backend, reason))
