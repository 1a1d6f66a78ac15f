"""Which modules of a model are blocks that an op computes: by what they are made of, not by whose they are.

A block is known by the names of its children (those of torchvision, timm, MONAI, torchxrayvision and the ResNEst
authors), and taken only where every child is exactly what the op computes. What its forward does with them cannot be
seen this way: `check.py` runs it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import BatchNorm2d, Conv2d, Identity, Module, ReLU, Sequential
from torch.nn.modules.batchnorm import _BatchNorm

from ..nn.image import DenseLayer, run_dense_layers, run_residual_block

SHORTCUTS = ("downsample", "projection", "shortcut")


class Parts(NamedTuple):
    """The modules inside a block when it was looked at.

    parents: every module with children, and the block itself; children: all of theirs, in order.
    modules: the children that are there (None may stand for one that is not); types: their classes.
    norms, convs: the batch norms and convolutions; geometry: of these, by _geometry.
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
        return self.parents[0] is block and _children_of(self.parents) == self.children

    def why_unlike(self, block: Module) -> str | None:
        """Why the modules would not do now what the op does; None if they would."""
        if not self.are_inside(block):
            return "modules inside were replaced since: call fastnest.accelerate(model) again"
        if tuple(map(type, self.modules)) != self.types:
            changed = [m for m, was in zip(self.modules, self.types, strict=True) if type(m) is not was]
            return f"{name_in(block, changed[0])} became a {type(changed[0]).__name__} since"
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
        if _geometry(self.convs) != self.geometry:
            return "a convolution inside has another stride, padding or dilation since"
        training, eps = self.norms[0].training, self.norms[0].eps
        for i, state in enumerate([norm.__dict__ for norm in self.norms]):
            if state["training"] is not training:
                return "some of its batch norms are in training and some in evaluation"
            if state["eps"] != eps or state["track_running_stats"] is (state["_buffers"]["running_mean"] is None):
                return f"{name_in(block, self.norms[i])} was changed: track_running_stats, running_mean or eps"
        return None


def _children_of(parents: Sequence[Module]) -> tuple[Module | None, ...]:
    return tuple([child for parent in parents for child in parent._modules.values()])


def _geometry(convs: Sequence[Conv2d]) -> tuple[tuple[Any, ...], ...]:
    """What is changed in place to make a network's stride smaller."""
    return tuple([(state["stride"], state["padding"], state["dilation"]) for state in [c.__dict__ for c in convs]])


class DensePlan(NamedTuple):
    """Layers of one dense block; owners are the modules that know the drop rate of theirs."""

    parts: Parts
    layers: tuple[DenseLayer, ...]
    owners: tuple[Module, ...]

    def run(self, x: torch.Tensor) -> torch.Tensor:
        layers: Sequence[DenseLayer] = self.layers
        rates = self.drop_rates()
        if any(rates):
            layers = [layer._replace(dropout=rate) for layer, rate in zip(layers, rates, strict=True)]
        return run_dense_layers(x, layers, training=any(rates))

    def drop_rates(self) -> list[float]:
        return [getattr(owner, "drop_rate", 0.0) if owner.training else 0.0 for owner in self.owners]

    def __str__(self) -> str:
        return f"dense_block2d, {len(self.layers)} layers"


class ResidualPlan(NamedTuple):
    """Norms and convolutions of one pre-activation block; features: whether it returns (y, v) instead of y."""

    op: str
    parts: Parts
    projection: Conv2d | None
    features: bool = False

    def run(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return run_residual_block(x, self.parts.norms, self.convs(), self.projection, self.features)

    def convs(self) -> tuple[Conv2d, ...]:
        """In order, without the projection."""
        return self.parts.convs[: len(self.parts.norms)]

    def __str__(self) -> str:
        return self.op


Plan = DensePlan | ResidualPlan


class _LeftAlone(Exception):
    """Why a block is not taken."""


def name_in(block: Module, module: Module) -> str:
    """What block calls a module inside it."""
    return next((name for name, inner in block.named_modules() if inner is module), type(module).__name__)


# Where fastnest's own blocks are made; the plain networks of its benchmarks are anybody's.
OWN = ("fastnest.nn.", "fastnest.models.")


def is_ours(module: Module) -> bool:
    """Whether fastnest itself made a module that is named like a block: it runs an op already."""
    return type(module).__module__.startswith(OWN) and (_is_dense(module) or bool(_norm_names(module)))


def candidates(model: Module) -> Iterator[tuple[str, Module]]:
    """Modules named like a dense or a pre-activation residual block, but for fastnest's own, with their names."""
    layers = set()  # of a dense block: named like a residual block, and never one
    for name, module in model.named_modules():
        if module in layers or type(module).__module__.startswith(OWN):
            continue
        if _is_dense(module):
            layers |= set(module.modules()) - {module}
            yield name, module
        elif _norm_names(module) and type(module) is not Sequential:
            yield name, module


def look(block: Module) -> Plan | str:
    """How an op computes a candidate, if its forward does what its modules suggest; or why none does."""
    try:
        if "forward" in block.__dict__:
            raise _LeftAlone("it has a forward of its own, put there by something else")
        return _look_dense(block) if _is_dense(block) else _look_residual(block)
    except _LeftAlone as reason:
        return str(reason)


def _children(module: Module) -> dict[str, Any]:
    """What has to be looked at before anything is known about it."""
    return {name: child for name, child in module._modules.items() if child is not None}


def _is_dense(module: Module) -> bool:
    names = list(module._modules)
    return bool(names) and names == [f"denselayer{i + 1}" for i in range(len(names))]


def _norm_names(module: Module) -> list[str]:
    """norm1, norm2, [norm3] of what is named like a pre-activation block, by its own names; else nothing."""
    names = module._modules
    for norm in ("norm", "bn"):
        pairs = [i for i in (1, 2, 3) if f"{norm}{i}" in names and f"conv{i}" in names]
        if pairs in ([1, 2], [1, 2, 3]):
            return [f"{norm}{i}" for i in pairs]
    return []


def _look_dense(block: Module) -> DensePlan:
    layers, owners, only_in_eval = [], [], []
    norms: list[BatchNorm2d] = []
    convs: list[Conv2d] = []
    width = None
    for name, layer in block._modules.items():
        if layer is None:
            raise _LeftAlone(f"{name} is not there")
        inner, children = name, _children(layer)
        if list(children) == ["layers"] and type(children["layers"]) is Sequential:
            inner, children = f"{name}.layers", _children(children["layers"])
        _check_names(name, children, ("norm1", "conv1", "norm2", "conv2"), ("relu1", "relu2", "dropout"))
        norm1, conv1, norm2, conv2 = (children[part] for part in ("norm1", "conv1", "norm2", "conv2"))
        for i, conv, kernel in ((1, conv1, 1), (2, conv2, 3)):
            _check_norm(f"{inner}.norm{i}", children[f"norm{i}"], children.get(f"relu{i}"))
            _check_conv(f"{inner}.conv{i}", conv, kernel, stride=1)
            _check_width(inner, children, f"norm{i}", f"conv{i}")
        width = norm1.num_features if width is None else width
        if (norm1.num_features, norm2.num_features) != (width, conv1.out_channels):
            raise _LeftAlone(f"{name} reads {norm1.num_features} channels where {width} are concatenated")
        width += conv2.out_channels
        layers.append(DenseLayer(norm1, conv1, norm2, conv2))
        owners.append(layer)
        norms += (norm1, norm2)
        convs += (conv1, conv2)
        if "dropout" in children:
            only_in_eval.append(_check_stateless(f"{inner}.dropout", children["dropout"]))
    return DensePlan(_parts(block, norms, convs, only_in_eval), tuple(layers), tuple(owners))


def _look_residual(block: Module) -> ResidualPlan:
    children, norm_names = _children(block), _norm_names(block)
    conv_names = [f"conv{i + 1}" for i in range(len(norm_names))]
    relus = ("relu", *(f"relu{i + 1}" for i in range(len(norm_names))))
    _check_names("", children, (*norm_names, *conv_names), (*SHORTCUTS, *relus, "drop_path"))
    norms, convs = [children[name] for name in norm_names], [children[name] for name in conv_names]
    bottleneck = len(norms) == 3
    strided = convs[1 if bottleneck else 0]
    stride = strided.stride[0] if isinstance(strided, Conv2d) else 1
    for i, (norm, conv) in enumerate(zip(norms, convs, strict=True)):
        _check_norm(norm_names[i], norm, children.get(relus[i + 1], children.get("relu")))
        _check_conv(conv_names[i], conv, 1 if bottleneck and i != 1 else 3, stride if conv is strided else 1)
        _check_width("", children, norm_names[i], conv_names[i])
    for name, before, after in zip(conv_names, convs, norms[1:], strict=False):
        if before.out_channels != after.num_features:
            raise _LeftAlone(f"{name} writes {before.out_channels} channels where {after.num_features} are normalised")
    projection: Conv2d | None = None
    c, d = convs[0].in_channels, convs[-1].out_channels
    for name in SHORTCUTS:
        projection = projection or _projection(name, children.get(name), stride)
    if projection is None and (stride != 1 or c != d):
        raise _LeftAlone(f"no projection from {c} to {d} channels at stride {stride}")
    if projection is not None and (projection.in_channels, projection.out_channels) != (c, d):
        raise _LeftAlone(
            f"the projection is from {projection.in_channels} to {projection.out_channels} channels, not {d}"
        )
    only_in_eval = []
    if not _is_identity(children.get("drop_path", Identity())):
        only_in_eval.append(_check_stateless("drop_path", children["drop_path"]))
    op = "bottleneck2d" if bottleneck else "basic_block2d"
    convs += [projection] if projection is not None else []
    return ResidualPlan(op, _parts(block, norms, convs, only_in_eval), projection)


def _projection(name: str, module: Module | None, stride: int) -> Conv2d | None:
    """The one convolution of a shortcut, which may have identities beside it; None for no shortcut or an identity."""
    if module is None or _is_identity(module):
        return None
    inside = {f"{name}.{child}": inner for child, inner in _children(module).items() if not _is_identity(inner)}
    inside = inside or {name: module}
    if len(inside) > 1:
        raise _LeftAlone(f"{name} is more than a convolution: {', '.join(type(m).__name__ for m in inside.values())}")
    ((name, conv),) = inside.items()
    return _check_conv(name, conv, 1, stride)


def _is_identity(module: Module) -> bool:
    return type(module) is Identity or (type(module) is Sequential and all(map(_is_identity, module)))


def _check_names(where: str, children: dict[str, Any], needed: tuple[str, ...], known: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in children]
    if missing:
        raise _LeftAlone(f"{where} has no {', '.join(missing)}")
    others = [f"{name} ({type(child).__name__})" for name, child in children.items() if name not in needed + known]
    if others:
        raise _LeftAlone(f"{where + ': ' if where else ''}{', '.join(others)} inside, which the op knows nothing of")


def _check_width(where: str, children: dict[str, Any], norm: str, conv: str) -> None:
    reads, has = children[conv].in_channels, children[norm].num_features
    if reads != has:
        where = f"{where}." if where else ""
        raise _LeftAlone(f"{where}{norm} has {has} channels and {conv} reads {reads}: it is not what comes before")


def _check_norm(name: str, norm: Module, activation: Module | None) -> None:
    """A batch norm, then relu: a module after it, one inside it (timm's BatchNormAct2d), or in the block's forward."""
    if not isinstance(norm, BatchNorm2d):
        raise _LeftAlone(f"{name} is {type(norm).__name__}, not BatchNorm2d")
    inside = _children(norm)
    if type(norm).forward is not _BatchNorm.forward:
        if set(inside) - {"drop"} != {"act"}:
            raise _LeftAlone(f"{name} is {type(norm).__name__}, with a forward other than BatchNorm2d's")
        if not _is_identity(inside.get("drop", Identity())):
            raise _LeftAlone(f"{name}.drop is {type(inside['drop']).__name__}")
        name, activation = f"{name}.act", inside["act"]
    elif inside:
        raise _LeftAlone(f"{name} has modules inside: {', '.join(inside)}")
    if activation is not None and type(activation) is not ReLU:
        raise _LeftAlone(f"{name} is followed by {type(activation).__name__}, not ReLU")
    if norm.track_running_stats == (norm.running_mean is None):
        raise _LeftAlone(f"{name}: track_running_stats={norm.track_running_stats} contradicts its buffers")


def _check_conv(name: str, conv: Any, kernel: int, stride: int) -> Conv2d:
    own = type(conv)
    if (
        not isinstance(conv, Conv2d)
        or own.forward is not Conv2d.forward
        or own._conv_forward is not Conv2d._conv_forward
    ):
        raise _LeftAlone(f"{name} is {own.__name__}, not Conv2d")
    if not isinstance(conv._parameters.get("weight"), torch.nn.Parameter):
        raise _LeftAlone(f"{name} has no parameter weight: it is computed anew on every call")
    expected = {
        "groups": 1,
        "kernel_size": (kernel, kernel),
        "stride": (stride, stride),
        "dilation": (1, 1),
        "padding": (kernel // 2, kernel // 2),
        "padding_mode": "zeros",
        "bias": None,
    }
    for attribute, value in expected.items():
        got = getattr(conv, attribute)
        if got is not None and value is None:
            raise _LeftAlone(f"{name} has a {attribute}")
        if got != value:
            raise _LeftAlone(f"{attribute}={got} convolution: {name} must have {attribute}={value}")
    return conv


def _check_stateless(name: str, module: Module) -> Module:
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        raise _LeftAlone(f"{name} is {type(module).__name__}, with parameters or buffers")
    return module


def _parts(block: Module, norms: list[BatchNorm2d], convs: list[Conv2d], only_in_eval: list[Module]) -> Parts:
    inside = [module for module in block.modules() if module is not block]
    parents = (block, *(module for module in inside if module._modules))
    for parent in parents:
        if parent not in norms and (parent._parameters or parent._buffers):
            raise _LeftAlone(f"{name_in(block, parent) or 'it'} has parameters or buffers beside its modules'")
    if len(set(map(id, norms))) < len(norms) or len({norm.eps for norm in norms}) > 1:
        raise _LeftAlone("its batch norms are one module used twice, or differ in eps")
    children = _children_of(parents)
    modules = tuple(child for child in children if child is not None)
    types, geometry = tuple(map(type, modules)), _geometry(convs)
    return Parts(parents, children, modules, types, tuple(norms), tuple(convs), geometry, tuple(only_in_eval))
