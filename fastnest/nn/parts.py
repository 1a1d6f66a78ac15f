"""What was inside a block when it was looked at, and whether that is still so."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.nn import BatchNorm2d, Conv2d, Module


class Parts(NamedTuple):
    """The modules inside a block when it was looked at.

    parents: every module with children, and the block itself; children: all of theirs, in order.
    modules: the children that are there (None may stand for one that is not); types: their classes.
    norms, convs: the batch norms and convolutions; geometry: of these convolutions, by geometry_of.
    only_in_eval: modules that do nothing but in training, where the op has nothing like them.
    """

    parents: tuple[Module, ...]
    children: tuple[Module | None, ...]
    modules: tuple[Module, ...]
    types: tuple[type, ...]
    norms: tuple[BatchNorm2d, ...]
    convs: tuple[Conv2d, ...]
    geometry: tuple[tuple[Any, ...], ...]
    only_in_eval: tuple[Module, ...]

    def are_inside(self, block: Module) -> bool:
        """Whether they are still the modules that block has (a shallow copy of it has others)."""
        return self.parents[0] is block and children_of(self.parents) == self.children

    def why_others(self, block: Module) -> str | None:
        """Why these are not the modules, of these classes, that block has now; None if they are."""
        if not self.are_inside(block):
            return "modules inside were replaced since: call fastnest.accelerate(model) again"
        if tuple(map(type, self.modules)) != self.types:
            changed = [m for m, was in zip(self.modules, self.types, strict=True) if type(m) is not was]
            return f"{name_in(block, changed[0])} became a {type(changed[0]).__name__} since"
        return None

    def why_unlike(self, block: Module) -> str | None:
        """Why the modules, which are those of `why_others`, would not do now what the op does; None if they would."""
        for i, state in enumerate([module.__dict__ for module in self.modules]):
            # From the dict, 15 ns each: every call asks this of every module.
            if (
                state["_forward_hooks"]
                or state["_forward_pre_hooks"]
                or state["_backward_hooks"]
                or state["_backward_pre_hooks"]
            ):
                return f"hooks on {name_in(block, self.modules[i])}, which the op would not call"
            if "forward" in state:
                return f"{name_in(block, self.modules[i])} has a forward of its own"
        if geometry_of(self.convs) != self.geometry:
            return "a convolution inside was changed since: stride, padding, dilation, groups or bias"
        if not self.norms:
            return None
        training, eps = self.norms[0].training, self.norms[0].eps
        tracks = self.norms[0].track_running_stats
        for i, state in enumerate([norm.__dict__ for norm in self.norms]):
            if state["training"] is not training:
                return "some of its batch norms are in training and some in evaluation"
            if state["eps"] != eps or state["track_running_stats"] is (state["_buffers"]["running_mean"] is None):
                return f"{name_in(block, self.norms[i])} was changed: track_running_stats, running_mean or eps"
            if state["track_running_stats"] is not tracks and not training:
                return "some of its batch norms have running statistics and some have none"
        return None


class Refusal(NamedTuple):
    """Why no op computes a block, and what was inside when that was found: the reason holds as long as this does."""

    reason: str
    parents: tuple[Module, ...]
    children: tuple[Module | None, ...]
    types: tuple[type, ...]
    convs: tuple[Conv2d, ...]
    norms: tuple[BatchNorm2d, ...]
    details: tuple[Any, ...]

    @classmethod
    def of(cls, block: Module, reason: str) -> "Refusal":
        inside = list(block.modules())
        parents = (block, *(module for module in inside[1:] if module._modules))
        children = children_of(parents)
        convs = tuple(module for module in inside if isinstance(module, Conv2d))
        norms = tuple(module for module in inside if isinstance(module, BatchNorm2d))
        return cls(reason, parents, children, tuple(map(type, children)), convs, norms, _details(convs, norms))

    def holds(self, block: Module) -> bool:
        return (
            self.parents[0] is block
            and children_of(self.parents) == self.children
            and tuple(map(type, self.children)) == self.types
            and _details(self.convs, self.norms) == self.details
        )


def _details(convs: Sequence[Conv2d], norms: Sequence[BatchNorm2d]) -> tuple[Any, ...]:
    """What else than classes decides whether an op takes a block."""
    has_weight = ["weight" in conv._parameters for conv in convs]
    statistics = [(norm.eps, norm.track_running_stats, norm._buffers["running_mean"] is None) for norm in norms]
    return geometry_of(convs), has_weight, statistics


def children_of(parents: Sequence[Module]) -> tuple[Module | None, ...]:
    return tuple([child for parent in parents for child in parent._modules.values()])


def geometry_of(convs: Sequence[Conv2d]) -> tuple[tuple[Any, ...], ...]:
    """What is changed in place, to give a network another stride or a convolution a bias."""
    return tuple(
        [
            (
                state["stride"],
                state["padding"],
                state["dilation"],
                state["groups"],
                state["padding_mode"],
                "bias" in state or state["_parameters"].get("bias") is not None,  # of a replica, or of any other
            )
            for state in [conv.__dict__ for conv in convs]
        ]
    )


def name_in(block: Module, module: Module) -> str:
    """What block calls a module inside it."""
    return next((name for name, inner in block.named_modules() if inner is module), type(module).__name__)
