"""Accelerated models compute what they did: outputs, gradients, statistics."""

import copy

import pytest
import real_models
import torch
from convert.blocks import (
    FUSED,
    MODELS,
    dense_block,
    features,
    images,
    rows,
    runs_the_op,
    small_model,
    timm_densenet,
    torchvision_densenet,
)
from nn.norms import without_affine, without_parameters
from torch import nn

import fastnest
from fastnest.convert.swap import Accelerated


def results(model: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Output, gradients of input and parameters along a random direction, and buffers afterwards: of a copy."""
    model, generator = copy.deepcopy(model).to(dtype), torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 32, 32, generator=generator).to(dtype).requires_grad_()
    y = model(x)
    along = torch.randn(y.shape, generator=generator).to(dtype)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(y, [x, *parameters.values()], along)
    found = {"y": y.detach(), "dx": gradients[0]}
    found |= {f"d{name}": gradient for name, gradient in zip(parameters, gradients[1:], strict=True)}
    return found | dict(model.named_buffers())


DRAWS = 4


def assert_as_near(fast: nn.Module, model: nn.Module, what: str) -> None:
    """Every result of fast is at most twice as far from model's in float64 as model's own in float32, and 4 ulp.

    In the root mean square over elements and draws: where a gradient cancels (before a batch norm), the error of one
    element, or of one draw, is luck.
    """
    squares: dict[str, torch.Tensor] = {}
    for seed in range(DRAWS):
        exact, plain, actual = results(model, seed, torch.float64), results(model, seed), results(fast, seed)
        assert exact.keys() == actual.keys()
        for name, value in exact.items():
            if not value.is_floating_point():
                assert torch.equal(actual[name], value), name
                continue
            assert actual[name].dtype == torch.float32
            errors = torch.stack([(actual[name] - value).norm(), (plain[name] - value).norm(), value.norm()])
            squares[name] = squares.get(name, 0) + errors.double() ** 2
    for name, (error, rounding, size) in ((name, square.sqrt().tolist()) for name, square in squares.items()):
        bound = 2 * rounding + 4 * torch.finfo(torch.float32).eps * size
        assert error <= bound, (
            f"{what}: {name}: error {error:.3g} > {bound:.3g}, of {rounding:.3g} that plain torch has"
        )


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_same_numbers(name, training):
    """Output, every gradient and every running statistic, like those of the untouched copy."""
    model, x = small_model(name, training), images()
    fast = fastnest.accelerate(model, inplace=False)
    assert len([block for block in fast.modules() if isinstance(block, Accelerated)]) == MODELS[name][1]
    assert runs_the_op(fast, x)
    assert_as_near(fast, model, f"{name}, training={training}")
    assert list(fast.state_dict()) == list(model.state_dict())


FULL = {
    "torchvision.models.densenet": ("densenet121", 4),
    "timm.models.densenet": ("densenet121", 4),
    "timm.models.resnetv2": ("resnetv2_50", 16),
    "monai.networks.nets.densenet": ("DenseNet121", 4),
    "torchxrayvision.models": ("DenseNet", 4),
}


OPTIONS = {
    "monai.networks.nets.densenet": {"spatial_dims": 2, "in_channels": 3, "out_channels": 5},
    "torchxrayvision.models": {"weights": None, "in_channels": 3, "num_classes": 5},
}


@pytest.mark.parametrize("module", FULL)
def test_whole_models(module):
    """Everything that the ones people use are made of is taken; channels-last input and result."""
    name, blocks = FULL[module]
    model = getattr(real_models.load(module), name)(**OPTIONS.get(module, {})).eval()
    x = images(64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain, exact = model(x), copy.deepcopy(model).double()(x.double())
        fast = fastnest.accelerate(model)(x)
    ran = rows(model, x)
    assert len(ran) == blocks
    assert not FUSED or all(reason == "" for _, _, reason in ran)
    error, rounding = ((y - exact).abs().max().item() for y in (fast, plain))
    assert error <= 2 * rounding + 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_autocast(name, training):
    model = small_model(name, training)
    fast, x = fastnest.accelerate(model, inplace=False), images()

    def step(model, dtype=torch.float32):
        model = copy.deepcopy(model).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32):
            y = model(x.to(dtype))
        weight = next(iter(model.parameters()))
        return y, torch.autograd.grad(y.float().square().sum(), weight)[0]

    with torch.autocast("cpu", torch.bfloat16):
        assert runs_the_op(fast, x)
    for exact, plain, actual in zip(step(model, torch.float64), step(model), step(fast), strict=True):
        assert actual.dtype == plain.dtype
        error, rounding = ((values - exact).norm().item() for values in (actual, plain))
        assert error <= 2 * rounding + 4 * torch.finfo(torch.bfloat16).eps * exact.norm().item()


def test_dropout():
    """Torchvision's: of the new channels only, in training only, at the rate that the layer has now."""
    block, x = fastnest.accelerate(dense_block(drop_rate=0.5)), features()
    assert torch.allclose(block(x), fastnest.restore(copy.deepcopy(block))(x), atol=1e-5)
    block.train()
    y = block(x)
    assert torch.equal(y[:, :6], x)
    assert 0.3 < (y[:, 6:] == 0).float().mean() < 0.7
    for layer in block.values():
        layer.drop_rate = 0.0
    assert (block(x)[:, 6:] != 0).all()
    assert runs_the_op(block, x)


@pytest.mark.skipif(not FUSED, reason="without kernels a block's own forward runs, with its checkpoints")
@pytest.mark.parametrize("make", [torchvision_densenet, timm_densenet])
def test_memory_efficient(make):
    """Checkpointing is not needed; its second forward moved running statistics twice, now they move once."""
    model = small_model("torchvision" if make is torchvision_densenet else "timm", training=True)
    checkpointed = make(memory_efficient=True)
    checkpointed.load_state_dict(model.state_dict())
    fast, x = fastnest.accelerate(checkpointed), images()
    assert runs_the_op(fast, x)
    assert_as_near(fast, model, "memory_efficient")
    x.requires_grad_()
    fast(x).sum().backward()
    assert {int(value) for name, value in fast.state_dict().items() if "num_batches_tracked" in name} == {1}


def test_frozen_batch_norms():
    """Batch norms that are in evaluation normalise with the running statistics, which stay, while the block trains."""
    model = small_model("timm", training=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    fast, x = fastnest.accelerate(model, inplace=False), images()
    assert runs_the_op(fast, x)
    assert_as_near(fast, model, "frozen")


def accelerated_without_affine(name: str, tracks: bool, training: bool, device: str) -> tuple[nn.Module, nn.Module]:
    """The model with batch norms that have neither weight nor bias, and its accelerated copy."""
    model = without_affine(small_model(name, training), tracks).to(device)
    fast = fastnest.accelerate(model, inplace=False)
    assert len([block for block in fast.modules() if isinstance(block, Accelerated)]) == MODELS[name][1]
    return model, fast


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["torchvision", "authors"])
@without_parameters
def test_norms_without_parameters(name, tracks, training):
    model, fast = accelerated_without_affine(name, tracks, training, "cpu")
    assert runs_the_op(fast, images())
    assert_as_near(fast, model, f"{name}, training={training}")
    expected, actual = (results(one, 0, torch.float64) for one in (model, fast))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["torchvision", "authors"])
@without_parameters
def test_norms_without_parameters_on_another_device(name, tracks):
    _, fast = accelerated_without_affine(name, tracks, True, "meta")
    y = fast(images().to("meta"))
    y.sum().backward()
    assert y.shape == (2, 5)
    assert all(parameter.grad.is_meta for parameter in fast.parameters())
