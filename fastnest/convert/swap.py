"""accelerate and restore: known blocks get a class of their own, whose forward is the op.

Only the class changes. A forward set on the instance would be a reference to the module from inside it, which copies
(`copy.deepcopy`, replicas) and pickles get wrong or refuse; a class travels with all of them.
"""

import copy
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import _has_any_global_hook

from .. import _backend
from ..nn.look import look
from ..nn.parts import name_in
from ..nn.plan import Plan
from .candidates import candidates, own_blocks
from .check import agreed

PLAN = "_fastnest_plan"
MOST_REASONS = 5  # that a warning names

if TYPE_CHECKING:
    _BlockClass = Module  # what stands behind Accelerated in the classes that are made of it
else:
    _BlockClass = object


class Accelerated(_BlockClass):
    """Comes before a block's own class: runs the block's plan where that computes the same, else the own forward."""

    runs_a_plan = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if why_not(self, args, kwargs) is None:
            return self.__dict__[PLAN].run(args[0])
        return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if type(self) is not _made(self):
            return reduced
        # The class is made at run time: a pickle, and a copy, names what it is made from.
        _, (_, *args), *state = reduced
        return _new, (type(self).__bases__[1], *args), *state

    def __prepare_scriptable__(self) -> NoReturn:
        # Another block in its place would stay there: torch.jit.script writes what it gets here into the model.
        what = f"an accelerated {type(self).__name__}"
        raise TypeError(
            f"torch.jit.script cannot compile {what}: call fastnest.restore(model) first, or torch.jit.trace"
        )


@cache
def _accelerated(own: Any) -> Any:
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own.__name__, (Accelerated, own), names)


def _new(own: type, *args: Any) -> Module:
    cls = _accelerated(own)
    block: Module = cls.__new__(cls, *args)
    return block


def _made(block: Module) -> type:
    """The class that accelerate gave a block, before which others (a parametrization, FSDP) may have put theirs."""
    return next(cls for cls in type(block).__mro__ if Accelerated in cls.__bases__)


def plan_of(block: Module) -> Plan | None:
    """What an accelerated block runs; None for any other module."""
    return block.__dict__.get(PLAN)


def why_not(block: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why an accelerated block runs its own forward when called with these; None where it runs the op."""
    plan = plan_of(block)
    if plan is None:
        return "restored"
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # public, but not by torch's own list
        return "under torch.jit.trace, which records torch's own operators only"
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dim() != 4:
        return "called with something else than one tensor [n, channels, height, width]"
    reason = plan.parts.why_others(block) or plan.parts.why_unlike(block)
    if reason is not None:
        return reason
    if _has_any_global_hook():
        return "hooks on all modules, which the op would not call"
    for module in plan.parts.only_in_eval:
        if module.training:
            return f"{name_in(block, module)} ({type(module).__name__}) in training; eval() runs the op"
    weight: Any = plan.parts.convs[0]._parameters["weight"]
    return _backend.why_no_kernel(args[0], weight)


def accelerate(model: Module, *, inplace: bool = True, verbose: bool = False) -> Module:
    """Makes the forward of every block that fastnest has an op for that op.

    Dense blocks of torchvision, timm, MONAI and torchxrayvision, pre-activation residual blocks of timm's resnetv2 and
    of the ResNEst authors, and whatever is built the same. A block is taken if all modules inside are what the op
    computes and a trial run of both agrees. Parameters, buffers, `state_dict` keys, hooks on the block, train and eval
    stay what they are, and the numbers too, to rounding; so do copies and pickles (unpickling needs fastnest). Not
    kept: checkpointing inside a block (`memory_efficient`), which is not needed, because the op stores little. Its
    second forward also moved running statistics twice; here they move once.

    For one call a block runs its own forward where the op would not do the same: hooks on modules inside, batch norms
    partly in training, input that no kernel takes. `explain` says so. Where no block was taken,
    a warning says why. torch.jit.trace records the own forwards; torch.jit.script asks for `restore` first.

    Args:
        model: any module.
        inplace: False accelerates a copy and leaves model as it is.
        verbose: whether to print what was replaced, and what was not and why.

    Returns:
        model, or the copy.

    Raises:
        TypeError: where model is not a torch.nn.Module, or is compiled by torch.jit.
        RuntimeError: where the trial run of an op fails and that of the block does not.
    """
    _check("accelerate", model)
    if not inplace:
        model = copy.deepcopy(model)
    said, left = [], []
    for name, block in list(candidates(model)):
        what = f"{name or '(model)'} ({type(block).__name__})"
        plan: Plan | str | None = plan_of(block)
        if plan is None or isinstance(plan, str) or plan.parts.why_others(block) is not None:
            plan = examine(block)
        if isinstance(plan, str):
            _restore(block)
            left.append(f"{what}: left alone: {plan}")
            said.append(left[-1])
            continue
        if not isinstance(block, Accelerated):
            own: Any = type(block)
            block.__class__ = _accelerated(own)
        block.__dict__[PLAN] = plan
        said.append(f"{what}: {plan}")
    if verbose:
        print(*said, sep="\n")
        print(f"{len(said) - len(left)} of {len(said)} blocks accelerated")
    elif len(left) == len(said) and not any(True for _ in own_blocks(model)):  # fastnest's own run an op already
        warnings.warn(f"accelerate: no block of {type(model).__name__} was replaced: {_reasons(left)}", stacklevel=2)
    return model


def _reasons(left: list[str]) -> str:
    if not left:
        return "none is named like the dense and pre-activation blocks that it knows (denselayer1, norm1, conv1, ...)"
    more = f"; and {len(left) - MOST_REASONS} more" if len(left) > MOST_REASONS else ""
    return "; ".join(left[:MOST_REASONS]) + more


def examine(block: Module) -> Plan | str:
    """How an op computes a candidate, or why it is left alone."""
    plan = look(block)
    return plan if isinstance(plan, str) else agreed(block, plan)


def restore(model: Module) -> Module:
    """Undoes `accelerate`: every block has its own class again and nothing of fastnest in it. Returns model."""
    _check("restore", model)
    for block in model.modules():
        _restore(block)
    return model


def _restore(block: Module) -> None:
    if isinstance(block, Accelerated):
        block.__dict__.pop(PLAN, None)
        if type(block) is _made(block):  # else it stays, and without a plan does nothing
            block.__class__ = type(block).__bases__[1]


def _check(op: str, model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        kind = type(model).__name__
        raise TypeError(f"{op}: model must not be compiled by torch.jit, got a {kind}: {op} it before script or trace")
