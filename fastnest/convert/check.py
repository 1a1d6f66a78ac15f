"""Whether a block's own forward computes what the op does: both run, on numbers of their own.

A copy of the block with a few channels, random parameters and random statistics runs both ways, in evaluation and in
training, forward and backward, in float64, where nothing but rounding at 1e-16 may differ. Parameters as they are would
prove less: a last convolution that starts at zero, or equal statistics everywhere, hide what a forward does.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv2d, Module

from ..nn.look import look
from ..nn.plan import DensePlan, Plan, ResidualPlan

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
# A wrong mapping is off by about 1, a wrong eps by 1e-6; a hundred layers of a few terms each round to 1e-13.
TOLERANCE = 1e-9
CHANNELS = 3
# What the op does in its own way: dropout, and to compute again in the backward, which moves running statistics twice.
OFF = {"drop_rate": 0.0, "memory_efficient": False, "grad_checkpointing": False}


def agreed(block: Module, plan: Plan) -> Plan | str:
    """The plan, which now also knows what block returns; or why block does not compute it. Nothing of block changes.

    Raises RuntimeError where block runs and the op does not: that is a fault of fastnest.
    """
    # Autocast, inference mode, no_grad and the default device of the caller have no say in this.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
    ):
        try:
            original, fast = _small_copy(block, plan), _small_copy(block, plan)
            own_forward = _own_forward(original)
            expected = {training: _results(original, own_forward, training) for training in (False, True)}
        except Exception as error:
            return f"running it on a small input failed: {type(error).__name__}: {error}".splitlines()[0]
        try:
            return _compared(fast, plan, expected)
        except Exception as error:
            raise RuntimeError(
                f"accelerate: {plan} failed on a small copy of {type(block).__name__}, whose own forward ran: {error}"
            ) from error


def _compared(fast: Module, plan: Plan, every_expected: dict[bool, dict[str, Tensor]]) -> Plan | str:
    """fast: the small copy that runs by the plan; every_expected: what the block's own forward gave, by mode."""
    fast_plan = _plan_of_copy(fast)
    for training, expected in every_expected.items():
        outputs = sum(name.startswith("output") for name in expected)
        if outputs == 2 and isinstance(plan, ResidualPlan) and isinstance(fast_plan, ResidualPlan):
            plan, fast_plan = plan._replace(features=True), fast_plan._replace(features=True)
        actual = _results(fast, fast_plan.run, training)
        if expected.keys() != actual.keys():
            return f"its forward returns {outputs} tensors"
        for name, values in expected.items():
            if values.shape != actual[name].shape:
                return "its forward computes something else: the result has another size"
            if not torch.allclose(actual[name], values, rtol=0, atol=TOLERANCE * (1 + values.abs().max().item())):
                where = "training" if training else "evaluation"
                return f"its forward computes something else: {name} differs in {where}"
    return plan


def _plan_of_copy(copy: Module) -> Plan:
    """The plan of a copy of a block that has one."""
    plan = look(copy)
    if isinstance(plan, str):
        raise RuntimeError(plan)
    return plan


def _own_forward(block: Module) -> Callable[..., Any]:
    """The forward that block has or, if it is accelerated already, had."""
    own = next(
        cls for cls in type(block).__mro__ if not cls.__dict__.get("runs_a_plan", False) and "forward" in cls.__dict__
    )
    forward: Callable[..., Any] = own.__dict__["forward"].__get__(block)
    return forward


def _sizes(plan: Plan) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """How many channels each norm has, and each convolution writes and reads, in the small copy."""
    width = CHANNELS
    if isinstance(plan, DensePlan):
        for layer in plan.layers:
            yield from ((layer.norm1, (width,)), (layer.conv1, (4, width)), (layer.norm2, (4,)), (layer.conv2, (2, 4)))
            width += 2
        return
    # What is equal stays equal, so that a block that adds up differently still runs and can be told apart.
    small: dict[int, int] = {}
    for norm, conv in zip(plan.parts.norms, plan.convs, strict=True):
        width, out = (small.setdefault(c, CHANNELS + len(small)) for c in (conv.in_channels, conv.out_channels))
        yield from ((norm, (width,)), (conv, (out, width)))
    if plan.projection is not None:
        yield plan.projection, (out, CHANNELS)


def _small_copy(block: Module, plan: Plan) -> Module:
    """block in float64 on the CPU, the same random one on every call, without hooks, dropout and checkpointing."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    memo: dict[int, Any] = {}  # deepcopy takes what is in here instead of copying
    for module in block.modules():
        memo |= {id(getattr(module, hooks)): OrderedDict() for hooks in HOOKS}
    for module, size in _sizes(plan):
        if isinstance(module, Conv2d):
            fan_in = size[1] * module.kernel_size[0] ** 2
            weight = (2 * uniform(*size, *module.kernel_size) - 1) * (6 / fan_in) ** 0.5
            memo[id(module.weight)] = torch.nn.Parameter(weight)
            continue
        for name, low in (("weight", 0.5), ("bias", -0.5)):
            if getattr(module, name) is not None:
                memo[id(getattr(module, name))] = torch.nn.Parameter(uniform(*size) + low)
        for name, low in (("running_mean", -0.5), ("running_var", 0.5)):
            if getattr(module, name) is not None:
                memo[id(getattr(module, name))] = uniform(*size) + low
        if module.num_batches_tracked is not None:
            memo[id(module.num_batches_tracked)] = torch.tensor(0)
    result = copy.deepcopy(block, memo)
    for (module, size), (small, _) in zip(_sizes(plan), _sizes(_plan_of_copy(result)), strict=True):
        if isinstance(module, Conv2d):
            small.out_channels, small.in_channels = size
        else:
            (small.num_features,) = size
    for module in result.modules():
        for name, off in OFF.items():
            if hasattr(module, name):
                setattr(module, name, off)
    return result


def _results(block: Module, forward: Callable[..., Any], training: bool) -> dict[str, Tensor]:
    """What forward returns for a random input, the gradients along a random direction, and the buffers afterwards."""
    block.train(training)
    for module in _plan_of_copy(block).parts.only_in_eval:
        module.eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, CHANNELS, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    returned = forward(x)
    outputs = {f"output {i}": y for i, y in enumerate(returned if isinstance(returned, tuple) else (returned,))}
    parameters = dict(block.named_parameters())
    along = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in outputs.values()]
    found = torch.autograd.grad([*outputs.values()], [x, *parameters.values()], along, materialize_grads=True)
    gradients = {f"the gradient of {name}": g for name, g in zip(("the input", *parameters), found, strict=True)}
    return outputs | gradients | {name: buffer.double().clone() for name, buffer in block.named_buffers()}
