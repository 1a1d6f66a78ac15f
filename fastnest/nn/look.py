"""How an op computes a block, from the modules that the block is made of; or why none does.

Taken is a block where every module inside is exactly what the op computes. Blocks of other packages are known by the
names of their children (torchvision's, timm's, MONAI's, torchxrayvision's, those of the ResNEst authors); what their
forward does with them cannot be seen this way: `fastnest.convert` runs it.
"""

from typing import Any

from torch.nn import BatchNorm2d, Conv2d, Identity, Module, Parameter, ReLU, Sequential
from torch.nn.modules.batchnorm import _BatchNorm

from .image import DenseLayer
from .parts import Parts, children_of, geometry_of, name_in
from .plan import DensePlan, Plan, ResidualPlan

SHORTCUTS = ("downsample", "projection", "shortcut")


class _LeftAlone(Exception):
    """Why a block is not taken."""


def look(block: Module) -> Plan | str:
    """How an op computes another package's block, if its forward does what its modules suggest; or why none does."""
    try:
        if "forward" in block.__dict__:
            raise _LeftAlone("it has a forward of its own, put there by something else")
        plan = _look_dense(block) if is_dense(block) else _look_residual(block)
        for parent in plan.parts.parents:
            if parent not in plan.parts.norms and (parent._parameters or parent._buffers):
                raise _LeftAlone(f"{name_in(block, parent) or 'it'} has parameters or buffers beside its modules'")
        return plan
    except _LeftAlone as reason:
        return str(reason)


def look_own_dense(block: Module, layer: type[Module]) -> DensePlan | str:
    """How dense_block2d computes a block of layers that fastnest made, of class `layer`; or why it does not.

    They need no bottleneck. A class of its own, or what the block has beside its layers, is the caller's business.
    """
    try:
        return _look_dense(block, layer)
    except _LeftAlone as reason:
        return str(reason)


def look_own_residual(block: Module, norm: str, convs: int) -> ResidualPlan | str:
    """How an op computes a residual block of that many convolutions that fastnest made; or why it does not.

    Its norms are called norm1, norm2, ... by the argument `norm`, "" for a block without; convolutions may have biases.
    """
    try:
        conv_names = [f"conv{i + 1}" for i in range(convs)]
        names = [f"{norm}{i + 1}" for i in range(convs)] if norm else []
        children = _children(block)
        _check_present("", children, (*names, *conv_names))
        return _residual(block, children, names, conv_names, own=True)
    except _LeftAlone as reason:
        return str(reason)


def _children(module: Module) -> dict[str, Any]:
    """What has to be looked at before anything is known about it."""
    return {name: child for name, child in module._modules.items() if child is not None}


def is_dense(module: Module) -> bool:
    names = list(module._modules)
    return bool(names) and names == [f"denselayer{i + 1}" for i in range(len(names))]


def norm_names(module: Module) -> list[str]:
    """norm1, norm2, [norm3] of what is named like a pre-activation block, by its own names; else nothing."""
    names = module._modules
    for norm in ("norm", "bn"):
        pairs = [i for i in (1, 2, 3) if f"{norm}{i}" in names and f"conv{i}" in names]
        if pairs in ([1, 2], [1, 2, 3]):
            return [f"{norm}{i}" for i in pairs]
    return []


def _look_dense(block: Module, own: type[Module] | None = None) -> DensePlan:
    """own: the class of fastnest's own layers, where the block is made of them."""
    layers, owners, only_in_eval = [], [], []
    width = None
    for name, owner in block._modules.items():
        if owner is None:
            raise _LeftAlone(f"{name} is not there")
        inner, children = name, _children(owner)
        if own is not None:
            if type(owner).forward is not own.forward:
                raise _LeftAlone(f"{name} is {type(owner).__name__}, with a forward of its own")
        elif list(children) == ["layers"] and type(children["layers"]) is Sequential:
            inner, children = f"{name}.layers", _children(children["layers"])
        layer = _dense_layer(name, inner, children, own is not None)
        width = layer.norm1.num_features if width is None else width
        if layer.norm1.num_features != width:
            raise _LeftAlone(f"{name} reads {layer.norm1.num_features} channels where {width} are concatenated")
        width += layer.conv2.out_channels
        layers.append(layer)
        owners.append(owner)
        if "dropout" in children:
            only_in_eval.append(_check_stateless(f"{inner}.dropout", children["dropout"]))
    if len({layer.conv1 is None for layer in layers}) != 1:
        raise _LeftAlone("some of its layers have a bottleneck and some have none" if layers else "it has no layers")
    norms = [norm for layer in layers for norm in (layer.norm1, layer.norm2) if norm is not None]
    convs = [conv for layer in layers for conv in (layer.conv1, layer.conv2) if conv is not None]
    return DensePlan(_parts(block, norms, convs, only_in_eval), tuple(layers), tuple(owners))


def _dense_layer(name: str, inner: str, children: dict[str, Any], own: bool) -> DenseLayer:
    bottleneck = not own or "conv2" in children
    needed = ("norm1", "conv1", "norm2", "conv2") if bottleneck else ("norm1", "conv1")
    relus = ("relu1", "relu2") if bottleneck else ("relu1",)
    _check_present(name, children, (*needed, *relus) if own else needed)
    _check_known(name, children, (*needed, *relus, "dropout"))
    kernels = (1, 3) if bottleneck else (3,)
    for i, kernel in enumerate(kernels, 1):
        _check_norm(f"{inner}.norm{i}", children[f"norm{i}"], children.get(f"relu{i}"))
        _check_conv(f"{inner}.conv{i}", children[f"conv{i}"], kernel, stride=1, own=own)
        _check_width(inner, children, f"norm{i}", f"conv{i}")
    if not bottleneck:
        return DenseLayer(children["norm1"], None, None, children["conv1"])
    norm1, conv1, norm2, conv2 = (children[part] for part in needed)
    if norm2.num_features != conv1.out_channels:
        raise _LeftAlone(f"{name}.norm2 has {norm2.num_features} channels and conv1 writes {conv1.out_channels}")
    return DenseLayer(norm1, conv1, norm2, conv2)


def _look_residual(block: Module) -> ResidualPlan:
    children, names = _children(block), norm_names(block)
    conv_names = [f"conv{i + 1}" for i in range(len(names))]
    relus = ("relu", *(f"relu{i + 1}" for i in range(len(names))))
    _check_present("", children, (*names, *conv_names))
    _check_known("", children, (*names, *conv_names, *SHORTCUTS, *relus, "drop_path"))
    return _residual(block, children, names, conv_names)


def _residual(
    block: Module, children: dict[str, Any], norm_names: list[str], conv_names: list[str], own: bool = False
) -> ResidualPlan:
    norms, convs = [children[name] for name in norm_names], [children[name] for name in conv_names]
    bottleneck = len(convs) == 3
    strided = convs[1 if bottleneck else 0]
    stride = strided.stride[0] if isinstance(strided, Conv2d) else 1
    for i, (name, conv) in enumerate(zip(conv_names, convs, strict=True)):
        if norms:
            _check_norm(norm_names[i], norms[i], children.get(f"relu{i + 1}", children.get("relu")))
        _check_conv(name, conv, 1 if bottleneck and i != 1 else 3, stride if conv is strided else 1, own, bias=own)
        if norms:
            _check_width("", children, norm_names[i], name)
    for name, before, after in zip(conv_names, convs, convs[1:], strict=False):
        if before.out_channels != after.in_channels:
            raise _LeftAlone(f"{name} writes {before.out_channels} channels where {after.in_channels} are read")
    projection: Conv2d | None = None
    c, d = convs[0].in_channels, convs[-1].out_channels
    for name in SHORTCUTS:
        projection = projection or _projection(name, children.get(name), stride, own)
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
    all_convs = [*convs, projection] if projection is not None else convs
    return ResidualPlan(op, _parts(block, norms, all_convs, only_in_eval), tuple(convs), projection)


def _projection(name: str, module: Module | None, stride: int, own: bool) -> Conv2d | None:
    """The one convolution of a shortcut, which may have identities beside it; None for no shortcut or an identity."""
    if module is None or _is_identity(module):
        return None
    inside = {f"{name}.{child}": inner for child, inner in _children(module).items() if not _is_identity(inner)}
    inside = inside or {name: module}
    if len(inside) > 1:
        raise _LeftAlone(f"{name} is more than a convolution: {', '.join(type(m).__name__ for m in inside.values())}")
    ((name, conv),) = inside.items()
    return _check_conv(name, conv, 1, stride, own, bias=own)


def _is_identity(module: Module) -> bool:
    return type(module) is Identity or (type(module) is Sequential and all(map(_is_identity, module)))


def _check_present(where: str, children: dict[str, Any], needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in children]
    if missing:
        raise _LeftAlone(f"{where or 'it'} has no {', '.join(missing)}")


def _check_known(where: str, children: dict[str, Any], known: tuple[str, ...]) -> None:
    others = [f"{name} ({type(child).__name__})" for name, child in children.items() if name not in known]
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


def _check_conv(name: str, conv: Any, kernel: int, stride: int, own: bool, bias: bool = False) -> Conv2d:
    kind = type(conv)
    if (
        not isinstance(conv, Conv2d)
        or kind.forward is not Conv2d.forward
        or kind._conv_forward is not Conv2d._conv_forward
    ):
        raise _LeftAlone(f"{name} is {kind.__name__}, not Conv2d")
    # A replica of `torch.nn.DataParallel` has its parameters as plain attributes.
    if not (isinstance(conv._parameters.get("weight"), Parameter) or (own and hasattr(conv, "_is_replica"))):
        raise _LeftAlone(f"{name} has no parameter weight: it is computed anew on every call")
    expected = {
        "groups": 1,
        "kernel_size": (kernel, kernel),
        "stride": (stride, stride),
        "dilation": (1, 1),
        "padding": (kernel // 2, kernel // 2),
        "padding_mode": "zeros",
    }
    for attribute, value in expected.items():
        got = getattr(conv, attribute)
        if got != value:
            raise _LeftAlone(f"{attribute}={got} convolution: {name} must have {attribute}={value}")
    if conv.bias is not None and not bias:
        raise _LeftAlone(f"{name} has a bias")
    return conv


def _check_stateless(name: str, module: Module) -> Module:
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        raise _LeftAlone(f"{name} is {type(module).__name__}, with parameters or buffers")
    return module


def _parts(block: Module, norms: list[BatchNorm2d], convs: list[Conv2d], only_in_eval: list[Module]) -> Parts:
    inside = [module for module in block.modules() if module is not block]
    parents = (block, *(module for module in inside if module._modules))
    if len(set(map(id, norms))) < len(norms) or len({norm.eps for norm in norms}) > 1:
        raise _LeftAlone("its batch norms are one module used twice, or differ in eps")
    if len({norm.running_mean is None for norm in norms}) > 1:
        raise _LeftAlone("some of its batch norms have running statistics and some have none")
    children = children_of(parents)
    modules = tuple(child for child in children if child is not None)
    types, geometry = tuple(map(type, modules)), geometry_of(convs)
    return Parts(parents, children, modules, types, tuple(norms), tuple(convs), geometry, tuple(only_in_eval))
