"""explain of models that accelerate changes."""

import pytest
import torch
from convert.blocks import FUSED, images, rows, small_model
from torch import nn

import fastnest


def test_explain_before_and_after(capsys):
    model, x = small_model("torchvision"), images()
    why = "dense_block2d, {} layers: not accelerated, call fastnest.accelerate(model)"
    assert rows(model, x) == [
        ("features.denseblock1", "its own forward", why.format(2)),
        ("features.denseblock2", "its own forward", why.format(3)),
    ]
    set_conv_of = model.features.denseblock2.denselayer3
    set_conv_of.conv2 = nn.Conv2d(16, 8, 3, padding=1, groups=8, bias=False)
    fastnest.accelerate(model, verbose=True)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "features.denseblock1 (_DenseBlock): dense_block2d, 2 layers",
        "features.denseblock2 (_DenseBlock): left alone: groups=8 convolution: denselayer3.conv2 must have groups=1",
        "1 of 2 blocks accelerated",
    ]
    if FUSED:
        (_, runs, reason), (_, own, _) = rows(model, x)
        assert (runs, own) == ("dense_block2d float32", "its own forward")
        assert "copied to channels-last memory" in reason
        assert rows(model, x.contiguous(memory_format=torch.channels_last))[0][2] == ""
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for function in (fastnest.accelerate, fastnest.restore):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
            function(rows)
