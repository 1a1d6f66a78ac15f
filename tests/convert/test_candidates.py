"""Which blocks are left alone, and why."""

import re
from functools import partial

import pytest
import real_models
import torch
from convert.blocks import FUSED, AuthorsBlock, dense_block, features, images, rows, timm_resnetv2, why
from convert.changes import Scaled, patched, pruned, weight_norm, with_a_gain, with_conv, with_module, with_value
from torch import nn

import fastnest

# What is done to a block before accelerate, and the reason why it is then left alone.
UNFIT = {
    "groups": (with_conv(groups=4), r"groups=4 convolution: denselayer2\.conv2"),
    "dilation": (with_conv(dilation=2, padding=2), r"dilation=\(2, 2\)"),
    "kernel": (with_conv(kernel_size=5, padding=2), r"kernel_size=\(5, 5\)"),
    "padding": (with_conv(padding="same"), "padding=same"),
    "reflect": (with_conv(padding_mode="reflect"), "padding_mode=reflect"),
    "bias": (with_conv(bias=True), r"denselayer2\.conv2 has a bias"),
    "subclass": (with_module("denselayer1.conv1", Scaled(6, 8, 1, bias=False)), "conv1 is Scaled, not Conv2d"),
    "group norm": (with_module("denselayer1.norm2", nn.GroupNorm(2, 8)), "norm2 is GroupNorm, not BatchNorm2d"),
    "activation": (with_module("denselayer1.relu2", nn.ReLU6()), "norm2 is followed by ReLU6, not ReLU"),
    "eps": (with_value("denselayer1.norm2.eps", 1e-3), "differ in eps"),
    "statistics": (with_value("denselayer1.norm2.track_running_stats", False), "contradicts its buffers"),
    "one more": (with_value("denselayer2.attention", nn.Identity()), r"denselayer2: attention \(Identity\)"),
    "one less": (lambda block: delattr(block.denselayer2, "conv2"), "denselayer2 has no conv2"),
    "parameter": (with_a_gain, "denselayer1 has parameters"),
    "widths": (with_module("denselayer2.norm1", nn.BatchNorm2d(9)), "norm1 has 9 channels and conv1 reads 10"),
    "weight norm": (weight_norm, "conv1 is ParametrizedConv2d, not Conv2d|conv1 has no parameter weight"),
    "pruned": (pruned, "conv1 has no parameter weight"),
    "patched": (patched, "a forward of its own"),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_left_alone(unfit, capsys):
    change, reason = UNFIT[unfit]
    block, x = dense_block(), features()
    change(block)
    untouched = type(block)
    fastnest.accelerate(block, verbose=True)
    assert type(block) is untouched
    assert re.search(reason, capsys.readouterr().out)
    if unfit not in ("one less", "widths"):  # which cannot run
        assert re.search(reason, why(block, x))


def test_forward_that_does_something_else():
    """Nothing shows in the modules: only running it tells, and not where the last convolution is still zero."""

    class Subtracts(AuthorsBlock):
        def forward(self, x):
            y, v = super().forward(x)
            return y - 2 * self.conv2(v), v

    class Post(AuthorsBlock):
        def forward(self, x):
            return x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))

    class Three(AuthorsBlock):
        def forward(self, x):
            return (*super().forward(x), x)

    x = features()
    for own, reason in (
        (Subtracts, "computes something else: output 0 differs in evaluation"),
        (Post, "computes something else: output 0 differs"),
        (Three, "returns 3 tensors"),
    ):
        block = own(6, 6, 6).eval()
        nn.init.zeros_(block.conv2.weight)
        assert type(fastnest.accelerate(block)) is own
        assert reason in why(block, x)
    dense = dense_block()
    own = type("Reversed", (type(dense),), {"forward": lambda self, x: super(own, self).forward(x).flip(1)})
    dense.__class__ = own
    assert type(fastnest.accelerate(dense)) is own
    assert "computes something else" in why(dense, x)


def test_models_that_stay():
    """Group norm with standardised weights; post-activation blocks; of those with a shortcut that pools, this one."""
    x, resnet = images(), real_models.load("torchvision.models.resnet")
    layers = real_models.load("timm.layers")
    big_transfer = timm_resnetv2(norm_layer=partial(layers.GroupNormAct, num_groups=4), conv_layer=layers.StdConv2d)
    for model, count, reason in (
        (big_transfer, 4, "norm1 is GroupNormAct, not BatchNorm2d"),
        (resnet.ResNet(resnet.BasicBlock, [2, 1, 1, 1]), 5, "computes something else|is not what comes before"),
        (timm_resnetv2(avg_down=True), 1, "downsample is more than a convolution: AvgPool2d, Conv2d"),
        (timm_resnetv2(conv_layer=layers.StdConv2d), 4, "conv1 is StdConv2d, not Conv2d"),
    ):
        before = model.eval()(x)
        fastnest.accelerate(model)
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
        left = [why for _, runs, why in rows(model, x) if runs == "its own forward"]
        assert not FUSED or len(left) == count
        assert not FUSED or all(re.search(reason, why) for why in left)


def test_own_blocks_are_no_candidates():
    for block in (
        fastnest.nn.DenseBlock2d(6, 4, 2),
        fastnest.nn.Bottleneck2d(6, 4, 6),
        fastnest.nn.BasicBlock2d(6, 4, 6),
    ):
        own = type(block)
        assert type(fastnest.accelerate(block)) is own
        assert [row.kind for row in fastnest.explain(block, features()).rows] == [own.__name__]
    rows = fastnest.explain(fastnest.accelerate(fastnest.models.cifar("resnet_20", "standard", 10)), images()).rows
    assert [(row.kind, row.runs) for row in rows] == [("Block", "basic_block2d float32")] * 9
