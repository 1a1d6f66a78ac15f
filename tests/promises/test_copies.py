"""Copies, pickles and state_dicts, of the library's modules and of accelerated ones, in both directions."""

import copy
import io
import pickle

import pytest
import torch
from promises.every_op import every_op, images
from promises.test_training import torchvision_densenet

import fastnest


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """With weights and statistics that no fresh model has."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.mul_(1 + 0.1 * torch.rand(value.shape, generator=generator))
    return model


def test_copies_and_pickles():
    model = moved(every_op())
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    expected = model(images(3))
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(saved, weights_only=False),
    ):
        assert torch.equal(other(images(3)), expected)
        moved(other)
        assert not torch.equal(other(images(3)), expected)
        assert torch.equal(model(images(3)), expected)


@pytest.mark.parametrize("name", ["every op", "accelerated from plain", "plain from accelerated"])
def test_state_dict_both_ways(name):
    """Through a file read with weights_only, strictly: same keys, same shapes, same numbers."""
    if name == "every op":
        source, target, x = moved(every_op()), every_op(), images(3)
    else:
        x, plain = torch.randn(2, 3, 32, 32), torchvision_densenet
        source, target = moved(plain().eval()), fastnest.accelerate(plain().eval())
        if name == "plain from accelerated":
            source, target = fastnest.accelerate(source), fastnest.restore(target)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert list(source.state_dict()) == list(target.state_dict())
    torch.testing.assert_close(target(x), source(x), rtol=1e-4, atol=1e-5)
