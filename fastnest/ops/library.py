"""The kernels as operators of torch: the compiled ones that fastnest._C registers, the Triton ones, defined here."""

import inspect
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _backend
from ..reference.flops import forward_flops

ABSENT_OR_LIST = Sequence[Tensor] | None

_triton = torch.library.Library("fastnest_triton", "DEF")


def kernels(name: str, fake: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The operator `name` of every backend that has it here, by backend; all have the signature of `fake`.

    The compiled ones are one operator, which runs by the device of its tensors. Triton's is the function of that name
    in fastnest.kernels.<op>, imported when it is first called. torch.utils.flop_counter counts all of them.
    """
    count = _flop_formula(name, fake)
    found = compiled_kernels(name, fake, count)
    if _backend.TRITON_IS_INSTALLED:
        _triton.define(name + schema(fake))
        _triton.impl(name, _launcher(name, fake), "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastnest_triton::{name}", fake, lib=_triton)
        register_flop_formula(getattr(torch.ops.fastnest_triton, name))(count)
        found["triton"] = getattr(torch.ops.fastnest_triton, name).default
    return found


def compiled_kernels(name: str, fake: Callable[..., Any], count: Callable[..., int]) -> dict[str, Callable[..., Any]]:
    """As `kernels`, of an operator that is there in compiled code only; count: its flops, given shapes."""
    if not _backend.CPP_IS_BUILT:
        return {}
    torch.library.register_fake(f"fastnest::{name}")(fake)
    register_flop_formula(getattr(torch.ops.fastnest, name))(count)
    return dict.fromkeys(_backend.registered(name), getattr(torch.ops.fastnest, name).default)


def schema(fake: Callable[..., Any]) -> str:
    """As torch.library.infer_schema says it, which does not know of lists that may be absent."""
    signature = inspect.signature(fake)
    optional = [name for name, one in signature.parameters.items() if one.annotation == ABSENT_OR_LIST]
    known = [
        one.replace(annotation=Sequence[Tensor]) if name in optional else one
        for name, one in signature.parameters.items()
    ]

    def stand_in() -> None:
        pass

    stand_in.__signature__ = signature.replace(parameters=known)  # type: ignore[attr-defined]
    found: str = torch.library.infer_schema(stand_in, mutates_args=())
    for name in optional:
        found = re.sub(rf"Tensor\[\] {name}\b", f"Tensor[]? {name}", found)
    return found


def _op_of(name: str) -> str:
    return name.removesuffix("_forward").removesuffix("_backward")


def _flop_formula(name: str, fake: Callable[..., Any]) -> Callable[..., int]:
    """What torch.utils.flop_counter counts for a call of the operator, given shapes in place of tensors."""
    passes = 2 if name.endswith("_backward") else 1

    def count(*arguments: Any, out_shape: Any = None) -> int:
        return passes * forward_flops(_op_of(name), inspect.signature(fake).bind(*arguments).arguments)

    return count


def _launcher(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Calls the function of that name in fastnest.kernels, which gets an empty list for an absent one."""
    op = _op_of(name)
    lists = [one.annotation == ABSENT_OR_LIST for one in inspect.signature(fake).parameters.values()]

    def launch(*arguments: Any) -> Any:
        function = getattr(import_module(f"fastnest.kernels.{op}"), name)
        tensor = next(argument for argument in arguments if argument is not None)
        given = ([] if is_list and one is None else one for one, is_list in zip(arguments, lists, strict=True))
        with _backend.device_of(tensor):
            return function(*given)

    return launch
