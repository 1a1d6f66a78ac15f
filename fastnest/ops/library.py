"""The kernels as operators of torch: the compiled ones that fastnest._C registers, the Triton ones, defined here."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from .. import _backend

_triton = torch.library.Library("fastnest_triton", "DEF")


def kernels(name: str, fake: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The operator `name` of every backend that has it here, by backend; all have the signature of `fake`.

    The compiled ones are one operator, which runs by the device of its tensors. Triton's is the function of that name
    in fastnest.kernels.<op>, imported when it is first called.
    """
    found = {}
    if _backend.CPP_IS_BUILT:
        torch.library.register_fake(f"fastnest::{name}")(fake)
        found = dict.fromkeys(_backend.registered(name), getattr(torch.ops.fastnest, name).default)
    if _backend.TRITON_IS_INSTALLED:
        _triton.define(name + torch.library.infer_schema(fake, mutates_args=()))
        _triton.impl(name, _launcher(name), "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastnest_triton::{name}", fake, lib=_triton)
        found["triton"] = getattr(torch.ops.fastnest_triton, name).default
    return found


def _launcher(name: str) -> Callable[..., Any]:
    op = name.removesuffix("_forward").removesuffix("_backward")

    def launch(*arguments: Any) -> Any:
        function = getattr(import_module(f"fastnest.kernels.{op}"), name)
        tensor = next(argument for argument in arguments if argument is not None)
        with _backend.device_of(tensor):
            return function(*arguments)

    return launch
