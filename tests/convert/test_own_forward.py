"""When an accelerated block runs its own forward after all, and why."""

import copy
import re

import pytest
import torch
from convert.blocks import dense_block, features, images, monai_densenet, rows, runs_the_op, timm_resnetv2, why
from convert.changes import dilated, pruned, weight_norm, with_conv, with_value
from torch import nn

import fastnest


def test_dropout_that_the_op_does_not_know():
    """MONAI drops whole channels, timm whole branches: only training is left to the block itself."""
    channels, branches = monai_densenet(dropout_prob=0.5), timm_resnetv2(drop_path_rate=0.5)
    for model, inside in ((channels, "Dropout2d"), (branches, "DropPath")):
        model, x = fastnest.accelerate(model).eval(), images()
        assert runs_the_op(model, x)
        reasons = [reason for _, _, reason in rows(model.train(), x)]
        assert any(re.search(rf"\({inside}\) in training; eval\(\) runs the op", reason) for reason in reasons)


def test_hooks():
    block, x, called = fastnest.accelerate(dense_block()), features(), []
    record = lambda *args: called.append(1)  # noqa: E731
    hook = block.register_forward_hook(record)
    y = block(x)
    assert called == [1]
    assert runs_the_op(block, x)
    hook.remove()
    conv = block.denselayer1.conv1
    for register in (conv.register_forward_hook, conv.register_forward_pre_hook, conv.register_full_backward_hook):
        called.clear()
        hook = register(record)
        assert why(block, x) == "hooks on denselayer1.conv1, which the op would not call"
        called.clear()
        block(x.clone().requires_grad_()).sum().backward()
        assert called == [1]
        hook.remove()
    hook = nn.modules.module.register_module_forward_hook(record)
    called.clear()
    torch.testing.assert_close(block(x), y)
    assert len(called) == 1 + 2 + 2 * 6
    hook.remove()
    assert runs_the_op(block, x)


# What happens to a block after accelerate, and the reason why a call then runs its own forward.
CHANGES = {
    "replaced": (with_conv(), "modules inside were replaced since"),
    "weight norm": (weight_norm, "conv1 became a ParametrizedConv2d"),
    "pruned": (pruned, "hooks on denselayer1.conv1"),
    "patched": (with_value("denselayer1.relu1.forward", torch.sigmoid), "relu1 has a forward of its own"),
    "dilated": (dilated, "changed since: stride, padding, dilation"),
    "modes": (lambda block: block.denselayer2.train(), "some of its batch norms are in training and some in"),
    "eps": (with_value("denselayer1.norm1.eps", 1e-3), r"denselayer1\.norm2 was changed"),
    "double": (lambda block: block.double(), "float64 is computed exactly|cpp is not built"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_own_forward_for_a_call(change):
    """Where the op would not do the same: with the result and the error that the block itself has."""
    change, reason = CHANGES[change]
    block = fastnest.accelerate(dense_block())
    change(block)
    x = features().to(block.denselayer1.norm1.weight.dtype)
    assert re.search(reason, why(block, x))
    y = block(x)
    assert torch.equal(y, fastnest.restore(block)(x))


def test_own_forward_for_an_input():
    block, x = fastnest.accelerate(dense_block()), features()
    own = fastnest.restore(copy.deepcopy(block))
    assert torch.equal(torch.func.vmap(block)(x[None]), torch.func.vmap(own)(x[None]))
    with torch.autocast("cpu", torch.bfloat16):
        assert "float32 under autocast" in why(block, x)
        assert block(x).dtype == own(x).dtype
    assert torch.equal(block(init_features=x), own(init_features=x))
    for wrong in (x[0], x.bfloat16()[:, :3]):
        with pytest.raises(Exception) as expected:  # noqa: PT011
            own(wrong)
        with pytest.raises(expected.type):
            block(wrong)
