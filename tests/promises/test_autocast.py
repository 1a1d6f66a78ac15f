"""Autocast over a whole network: bfloat16 in, float32 gradients, statistics in float32, near the float32 network."""

import torch
from promises.every_op import every_op, gradients, images


def test_network_in_bfloat16():
    model, half = every_op(training=True), every_op(training=True)
    expected = model(images(8))
    with torch.autocast("cpu", torch.bfloat16):
        actual = half(images(8))
    assert actual.dtype is torch.bfloat16
    # Eleven layers that round to 8 bits each.
    assert (actual.float() - expected).norm() <= 11 * torch.finfo(torch.bfloat16).eps * expected.norm()
    assert {gradient.dtype for gradient in gradients(half, actual.float())} == {torch.float32}
    for name, value in half.named_buffers():
        assert value.dtype == dict(model.named_buffers())[name].dtype
        if name.endswith("num_batches_tracked"):
            assert value == 1
