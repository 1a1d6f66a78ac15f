"""Which modules of a model are blocks that an op computes, or named like one, by the names of their children."""

from collections.abc import Iterator

import torch
from torch.nn import Module, Sequential

from ..nn.look import is_dense, norm_names
from ..nn.own_block import OwnBlock


def own_blocks(model: Module) -> Iterator[tuple[str, OwnBlock]]:
    """Blocks on images that fastnest itself made, which run an op already, with their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, OwnBlock))


def candidates(model: Module) -> Iterator[tuple[str, Module]]:
    """Modules named like a dense or a pre-activation residual block, but for fastnest's own, with their names."""
    inside = set()  # of a dense block, whose layers are named like a residual block, and of fastnest's own
    for name, module in model.named_modules():
        if module in inside or isinstance(module, torch.jit.ScriptModule):
            continue
        if isinstance(module, OwnBlock) or is_dense(module):
            inside |= set(module.modules()) - {module}
        if not isinstance(module, OwnBlock):
            if is_dense(module) or (norm_names(module) and type(module) is not Sequential):
                yield name, module
