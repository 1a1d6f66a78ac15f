"""What users do to the modules inside fastnest's own blocks on images: the modules are what counts.

One line a situation. Expected are the modules called one by one, in plain torch.
"""

import copy

import pytest
import torch
from situations.replicas import replica
from torch import nn
from torch.ao.nn import qat
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn.utils import parametrizations, prune

import fastnest
from fastnest import models
from fastnest import nn as own
from fastnest.models.cifar import Block


def dense_by_modules(block, x):
    for layer in block.children():
        q = layer.conv1(layer.relu1(layer.norm1(x)))
        if hasattr(layer, "conv2"):
            q = layer.conv2(layer.relu2(layer.norm2(q)))
        x = torch.cat([x, q], 1)
    return x


def residual_by_modules(block, x):
    norm = "bn" if isinstance(block, Block) else "norm"
    shortcut = getattr(block, "projection" if isinstance(block, Block) else "downsample")
    y, added = x, x
    for i in range(1, 4 if isinstance(block, own.Bottleneck2d) else 3):
        a = getattr(block, f"{norm}{i}")(y).relu() if hasattr(block, f"{norm}{i}") else y.relu()
        if i == 1 and shortcut is not None:
            added = shortcut(a)
        y = getattr(block, f"conv{i}")(a)
    return y + added


# How each is made, called module by module, and a 3x3 convolution and a norm inside.
BLOCKS = {
    "DenseBlock2d": (lambda: own.DenseBlock2d(6, 4, 3), dense_by_modules, "denselayer2.conv2", "denselayer2.norm1"),
    "DenseBlock2d, plain": (
        lambda: own.DenseBlock2d(6, 4, 3, bottleneck=False),
        dense_by_modules,
        "denselayer3.conv1",
        "denselayer1.norm1",
    ),
    "Bottleneck2d": (lambda: own.Bottleneck2d(6, 4), residual_by_modules, "conv2", "norm3"),
    "BasicBlock2d": (lambda: own.BasicBlock2d(6, 4, 8, stride=2), residual_by_modules, "conv2", "norm1"),
    "cifar's": (lambda: Block(6, 8, 2, up=True), residual_by_modules, "conv2", "bn2"),
}


class Adapted(nn.Module):
    """A low-rank adapter around a convolution, with a weight of its own (LoRA)."""

    def __init__(self, conv):
        super().__init__()
        self.base, self.weight = conv, conv.weight
        self.down = nn.Conv2d(conv.in_channels, 2, 1, conv.stride, bias=False)
        self.up = nn.Conv2d(2, conv.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Scaled(nn.Conv2d):
    """A subclass with another forward."""

    def forward(self, x):
        return 2 * super().forward(x)


class Standardised(nn.Conv2d):
    """A subclass with another weight."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def replaced(make):
    """A change: what make gives for a module takes its place."""

    def change(block, name):
        block.set_submodule(name, make(block.get_submodule(name)))

    return change


def of_class(kind):
    """A change: a convolution of that class with the same weight."""

    def make(conv):
        other = kind(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)
        other.weight = conv.weight
        return other

    return replaced(make)


def fake_quantised(conv):
    conv.qconfig = get_default_qat_qconfig("x86")
    return qat.Conv2d.from_float(conv)


def with_values(**values):
    def change(block, name):
        for attribute, value in values.items():
            setattr(block.get_submodule(name), attribute, value)

    return change


def with_bias(block, name):
    conv = block.get_submodule(name)
    conv.bias = nn.Parameter(torch.randn(conv.out_channels))


def hooked(block, name):
    block.get_submodule(name).register_forward_hook(lambda module, args, output: output * 2)


def hooked_before(block, name):
    block.get_submodule(name).register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def hooked_backward(block, name):
    block.get_submodule(name).register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * 2,))


def patched(block, name):
    module = block.get_submodule(name)
    module.forward = lambda x, own=module.forward: own(x) + 1


def pruned(block, name):
    prune.l1_unstructured(block.get_submodule(name), "weight", 0.5)


def weight_normed(block, name):
    parametrizations.weight_norm(block.get_submodule(name))


def spectral_normed(block, name):
    nn.utils.spectral_norm(block.get_submodule(name))


def untracked(block, name):
    norm = block.get_submodule(name)
    norm.track_running_stats, norm.running_mean, norm.running_var, norm.num_batches_tracked = False, None, None, None


def act(kind):
    def change(block, name):
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.ReLU):
                block.set_submodule(name, kind())

    return change


# What is done, to a convolution or to a norm, and why the op does not run.
CHANGES = {
    "another activation": ("act", act(nn.GELU), "followed by GELU, not ReLU"),
    "another activation, in place": ("act", act(lambda: nn.LeakyReLU(inplace=True)), "followed by LeakyReLU"),
    "dilation": ("conv", with_values(dilation=(2, 2), padding=(2, 2)), "changed since: stride, padding, dilation"),
    "padding mode": ("conv", of_class(lambda *a, **k: nn.Conv2d(*a, **k, padding_mode="reflect")), "padding_mode=ref"),
    "bias added": ("conv", with_bias, "a convolution inside was changed since|conv. has a bias"),
    "adapter": ("conv", replaced(Adapted), "is Adapted, not Conv2d"),
    "subclass": ("conv", of_class(Scaled), "is Scaled, not Conv2d"),
    "subclass with its own weight": ("conv", of_class(Standardised), "is Standardised, not Conv2d"),
    "fake quantisation": ("conv", replaced(fake_quantised), "is Conv2d, not Conv2d"),
    "pruning": ("conv", pruned, "hooks on"),
    "weight norm": ("conv", weight_normed, "ParametrizedConv2d|no parameter weight"),
    "spectral norm": ("conv", spectral_normed, "hooks on"),
    "forward hook": ("conv", hooked, "hooks on"),
    "forward hook on a norm": ("norm", hooked, "hooks on"),
    "hook before": ("norm", hooked_before, "hooks on"),
    "backward hook": ("conv", hooked_backward, "hooks on"),
    "forward of its own": ("conv", patched, "has a forward of its own"),
    "pruned norm": ("norm", pruned, "hooks on"),
    "group norm": ("norm", replaced(lambda norm: nn.GroupNorm(2, norm.num_features)), "GroupNorm, not BatchNorm2d"),
    "instance norm": (
        "norm",
        replaced(lambda norm: nn.InstanceNorm2d(norm.num_features, affine=True)),
        "InstanceNorm2d, not BatchNorm2d",
    ),
    "no norm": ("norm", replaced(lambda norm: nn.Identity()), "Identity, not BatchNorm2d"),
    "frozen norm": ("norm", lambda block, name: block.get_submodule(name).eval(), "some in evaluation"),
    "another eps": ("norm", with_values(eps=1e-2), "was changed: track_running_stats, running_mean or eps"),
    "untracked norm": ("norm", untracked, "some have none"),
}


def changed(name, change, training=True):
    """The block, another like it, and that one called module by module."""
    make, by_modules, conv, norm = BLOCKS[name]
    blocks = []
    for _ in range(2):  # a copy of a pruned module is no module of its own
        torch.manual_seed(0)
        block = make()
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        block.train(training)
        block(images())  # by the op
        CHANGES[change][1](block, norm if CHANGES[change][0] == "norm" else conv)
        blocks.append(block)
    block, plain = blocks
    return block, plain, lambda x: by_modules(plain, x)


def images():
    return torch.randn(3, 6, 9, 8, generator=torch.Generator().manual_seed(1))


def applies(name, change):
    """Residual blocks apply relu themselves."""
    return CHANGES[change][0] != "act" or name.startswith("Dense")


# A norm in evaluation is none of its own where all are, nor one without statistics where all use the batch's.
ONLY = {"frozen norm": True, "untracked norm": False}
SITUATIONS = [
    (name, change, training)
    for name in BLOCKS
    for change in CHANGES
    for training in (True, False)
    if applies(name, change) and training == ONLY.get(change, training)
]


@pytest.mark.parametrize(("name", "change", "training"), SITUATIONS)
def test_modules_are_what_counts(name, change, training):
    """Output, gradient of every parameter and buffers, over two steps of an optimizer: no weight is stale."""
    block, plain, by_modules = changed(name, change, training)
    row = fastnest.explain(block, images()).rows[0]
    assert row.runs == "its own modules"
    assert any(part in row.reason for part in CHANGES[change][2].split("|")), row.reason
    for step in range(2):
        x, other = (images().requires_grad_() for _ in range(2))
        y, expected = block(x), by_modules(other)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(step))
        y.backward(dy)
        expected.backward(dy)
        torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4)
        for (key, mine), theirs in zip(block.named_parameters(), plain.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None), key
            if theirs.grad is not None:
                torch.testing.assert_close(
                    mine.grad, theirs.grad, rtol=1e-3, atol=1e-3, msg=lambda m, k=key: f"{k}: {m}"
                )
        torch.testing.assert_close(list(block.buffers()), list(plain.buffers()), rtol=1e-4, atol=1e-4)
        for one in (block, plain):
            torch.optim.SGD(one.parameters(), lr=0.05).step()
            one.zero_grad()


def removed_hooks(block, conv):
    block.get_submodule(conv)._forward_hooks.clear()


# A change and what undoes it: the op runs again.
UNDONE = {
    "forward hook": removed_hooks,
    "weight norm": lambda block, conv: nn.utils.parametrize.remove_parametrizations(
        block.get_submodule(conv), "weight"
    ),
    "pruning": lambda block, conv: prune.remove(block.get_submodule(conv), "weight"),
    "adapter": lambda block, conv: block.set_submodule(conv, block.get_submodule(conv).base),
    "dilation": lambda block, conv: with_values(dilation=(1, 1), padding=(1, 1))(block, conv),
    "bias added": lambda block, conv: with_values(bias=None)(block, conv),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("change", UNDONE)
def test_undone(name, change):
    block, plain, by_modules = changed(name, change)
    (row,) = fastnest.explain(block, images()).rows
    assert row.runs == "its own modules"
    for one in (block, plain):
        UNDONE[change](one, BLOCKS[name][2])
    plain.load_state_dict(block.state_dict())
    (row,) = fastnest.explain(block, images()).rows
    assert row.runs != "its own modules", row.reason
    torch.testing.assert_close(block(images()), by_modules(images()), rtol=1e-4, atol=1e-5)


# What cannot run, and the error that names the child.
ERRORS = {
    "a child is gone": (
        own.Bottleneck2d(6, 4),
        lambda block: delattr(block, "norm2"),
        TypeError,
        "Bottleneck2d: norm2 must be a torch.nn.Module, got None",
    ),
    "a layer is None": (
        own.DenseBlock2d(6, 4, 2),
        lambda block: block.register_module("denselayer2", None),
        TypeError,
        "DenseBlock2d: denselayer2 must be a torch.nn.Module, got None",
    ),
    "an activation is None": (
        own.DenseBlock2d(6, 4, 2),
        lambda block: block.denselayer2.register_module("relu1", None),
        TypeError,
        "DenseBlock2d: denselayer2 (_DenseLayer): relu1 must be a torch.nn.Module, got None",
    ),
    "other channels": (
        own.DenseBlock2d(6, 4, 2),
        lambda block: block.denselayer1.register_module("norm2", nn.GroupNorm(2, 8)),
        RuntimeError,
        "DenseBlock2d: denselayer1 (_DenseLayer): norm2 (GroupNorm): Expected weight to be a vector of size equal to",
    ),
    "a linear map": (
        own.BasicBlock2d(6, 4),
        lambda block: block.register_module("conv1", nn.Linear(3, 4)),
        RuntimeError,
        "BasicBlock2d: conv1 (Linear): mat1 and mat2 shapes cannot be multiplied",
    ),
    "two results": (
        own.BasicBlock2d(6, 4),
        lambda block: block.register_module("conv1", nn.AdaptiveMaxPool2d(4, return_indices=True)),
        TypeError,
        "BasicBlock2d: conv1 must return a torch.Tensor, got tuple",
    ),
    "not the shortcut's size": (
        own.BasicBlock2d(6, 4),
        lambda block: block.register_module("conv2", nn.Conv2d(4, 7, 3, padding=1)),
        ValueError,
        "BasicBlock2d: conv2 must return [3, 6, 9, 8] as the shortcut does, got [3, 7, 9, 8]",
    ),
}


@pytest.mark.parametrize("situation", ERRORS)
def test_what_cannot_run_names_the_child(situation):
    block, change, error, message = ERRORS[situation]
    block = copy.deepcopy(block)
    change(block)
    with pytest.raises(error) as raised:
        block(images())
    assert str(raised.value).startswith(message)


def test_shared_statistics_need_the_layers_as_they_were_made():
    block = own.DenseBlock2d(6, 4, 2, process_group=object())
    block.denselayer1.norm2 = nn.GroupNorm(2, 16)
    with pytest.raises(
        ValueError, match=r"DenseBlock2d: process_group shares the statistics .*denselayer1\.norm2 is Gr"
    ):
        block(images())
    block.eval()(images())


def test_a_layer_on_its_own():
    block, x = own.DenseBlock2d(6, 4, 2).eval(), images()
    torch.testing.assert_close(block.denselayer1(x), block(x)[:, 6:10], rtol=1e-4, atol=1e-5)


def test_drop_rate_of_changed_layers():
    block = own.DenseBlock2d(6, 32, 2, drop_rate=0.5)
    block.denselayer1.relu1 = nn.GELU()
    share = (block(torch.randn(8, 6, 16, 16))[:, 6:] == 0).float().mean()
    assert abs(share - 0.5) < 0.02


def test_hooks_on_all_modules():
    block, called = own.BasicBlock2d(6, 4), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(type(module).__name__))
    block(images())
    hook.remove()
    assert called == ["BatchNorm2d", "Conv2d", "BatchNorm2d", "Conv2d", "BasicBlock2d"]


@pytest.mark.parametrize("name", BLOCKS)
def test_attributes_of_a_subclass_leave_the_op_alone(name):
    """A block in a class of its own, with more parameters, runs the op inside its forward."""
    make, by_modules, _, _ = BLOCKS[name]
    block = make()
    kind = type(block)
    block.__class__ = type("Gained", (kind,), {"forward": lambda self, x: self.gain * kind.forward(self, x)})
    block.gain = nn.Parameter(torch.tensor(2.0))
    (row,) = fastnest.explain(block, images()).rows
    assert row.runs != "its own modules", row.reason
    torch.testing.assert_close(block(images()), 2 * by_modules(block, images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in BLOCKS for change in ("another activation", "group norm") if applies(name, change)],
)
@pytest.mark.parametrize("called", [False, True], ids=["not called", "called"])
def test_compiles_whole(name, change, called):
    """After a change, whether it was called since or not."""
    block, _, by_modules = changed(name, change)
    if called:
        block(images()), by_modules(images())
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), by_modules(images()), rtol=1e-4, atol=1e-5)


# Modules as nn.DataParallel replicates them for every device.
REPLICATED = {
    **{name: make for name, (make, *_) in BLOCKS.items()},
    "BasicBlock2d without norms": lambda: own.BasicBlock2d(6, 4, norm=None),
    "cifar": lambda: models.cifar("resnet_20", "resnest", 4),
    "densenest": lambda: models.densenest("bc_100_12", 4),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", REPLICATED)
def test_replicas(name, training):
    """By the op, with gradients that reach the replicated module's parameters."""
    torch.manual_seed(0)
    module = REPLICATED[name]().train(training)
    x = torch.randn(2, 3, 16, 16) if name in ("cifar", "densenest") else images()
    other = copy.deepcopy(module)
    y, expected = replica(module)(x), other(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    for (key, mine), theirs in zip(module.named_parameters(), other.parameters(), strict=True):
        scale = theirs.grad.abs().max().clamp_min(1e-6)
        torch.testing.assert_close(
            mine.grad / scale, theirs.grad / scale, rtol=0, atol=1e-3, msg=lambda m, k=key: f"{k}: {m}"
        )
    torch.testing.assert_close(list(module.buffers()), list(other.buffers()), rtol=1e-4, atol=1e-5)
    rows = fastnest.explain(replica(module), x).rows
    assert rows
    assert not [row for row in rows if row.runs == "its own modules"]
