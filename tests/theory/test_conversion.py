"""One network as another: equal outputs, features, modes and devices, and copies of the parameters."""

import copy

import pytest
import torch

from fastnest import models, theory

# Two orders of the same sums of some tens of terms, in float32 and in float64.
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}
dtypes = pytest.mark.parametrize("dtype", CLOSE, ids=str)


def G(width: int, features: int, dtype) -> torch.nn.Module:
    """With a batch norm, whose statistics have to come along."""
    linear = torch.nn.Linear(width, features, dtype=dtype)
    return torch.nn.Sequential(torch.nn.BatchNorm1d(width, dtype=dtype), torch.nn.SiLU(), linear)


RESNESTS = [
    {"bottleneck": 4, "blocks": 3},
    {"bottleneck": 4, "blocks": 1, "bias": False, "activation": "tanh"},
    {"bottleneck": 3, "blocks": 2, "mid": True, "pre_activation": False},
    {"bottleneck": 3, "blocks": 2, "norm": "batch", "mid": True, "activation": "silu"},
    {"modules": (3, 1, 2)},
    {"modules": (3,)},
]
DENSENESTS = [
    {"growth": 4, "blocks": 3},
    {"growth": [4, 1], "blocks": 2, "hidden": 6, "activation": "leaky_relu"},
    {"growth": [4, 1], "blocks": 2, "hidden": [2, 3], "bias": False, "pre_activation": False},
    {"growth": [3, 2], "blocks": 2, "norm": "batch", "activation": "gelu_tanh"},
    {"growth": [3, 2], "blocks": 2, "norm": "batch", "hidden": [4, 5]},
    {"growth": 3, "blocks": 2, "norm": "batch", "hidden": 4, "pre_activation": False},
    {"modules": (3, 1, 2)},
]


def network(kind, options: dict, dtype) -> torch.nn.Module:
    """Random, with statistics of batch norms that two batches moved."""
    torch.manual_seed(0)
    options = dict(options)
    sizes = options.pop("modules", None)
    if kind is models.ResNEst:
        options["width"] = 12
    if sizes:
        widths = [12] * len(sizes) if kind is models.ResNEst else [5 + sum(sizes[:i]) for i in range(len(sizes))]
        options["blocks"] = [G(width, size, dtype) for width, size in zip(widths, sizes, strict=True)]
    model = kind(5, 2, **options, dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    for _ in range(2):
        model(torch.randn(20, 5, dtype=dtype) + 1)
    return model


def check_equal(model, converted, x, dtype):
    for training in (False, True):
        model.train(training)
        converted.train(training)
        torch.testing.assert_close(converted(x), model(x), **CLOSE[dtype])
        torch.testing.assert_close(converted.features(x), model.features(x), **CLOSE[dtype])
        if training:  # batch statistics went the same way in both
            torch.testing.assert_close(converted.eval()(x), model.eval()(x), **CLOSE[dtype])


@dtypes
@pytest.mark.parametrize("options", RESNESTS, ids=str)
def test_augment(options, dtype):
    model, x = network(models.ResNEst, options, dtype), torch.randn(9, 5, dtype=dtype)
    augmented = theory.augment(model)
    assert type(augmented) is models.AResNEst
    assert all(parameter.dtype == dtype for parameter in augmented.parameters())
    ups = [block.up for block in model.chain] if "modules" in options else model.chain.up
    for H, W in zip(augmented.heads, [model.expand.weight, *ups], strict=True):
        torch.testing.assert_close(H, model.head.weight @ W, **CLOSE[dtype])
    check_equal(model, augmented, x, dtype)


@dtypes
@pytest.mark.parametrize("options", DENSENESTS, ids=str)
def test_to_resnest(options, dtype):
    model, x = network(models.DenseNEst, options, dtype), torch.randn(9, 5, dtype=dtype)
    resnest = theory.to_resnest(model)
    assert type(resnest) is models.ResNEst
    assert all(parameter.dtype == dtype for parameter in resnest.parameters())
    maps = [resnest.expand.weight, *(block.up for block in resnest.chain)]
    assert torch.equal(torch.cat(maps, 1), torch.eye(sum(model.feature_sizes), dtype=dtype))
    check_equal(model, resnest, x, dtype)


CONVERSIONS = [(theory.augment, models.ResNEst, options) for options in (RESNESTS[0], RESNESTS[4])]
CONVERSIONS += [(theory.to_resnest, models.DenseNEst, options) for options in (DENSENESTS[3], DENSENESTS[6])]


@pytest.mark.parametrize(("convert", "kind", "options"), CONVERSIONS)
def test_the_original_is_not_touched(convert, kind, options):
    """Neither by the conversion nor by training the result."""
    model, x = network(kind, options, torch.float32), torch.randn(9, 5)
    before = copy.deepcopy(model.state_dict())
    converted = convert(model)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in converted.parameters()}
    assert not shared
    optimizer = torch.optim.SGD(converted.parameters(), 0.1)
    converted(x).square().mean().backward()
    assert all(p.grad is not None for p in converted.parameters() if p.requires_grad)
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("convert", "kind", "options"), CONVERSIONS)
def test_the_mode_comes_along(convert, kind, options, training):
    model = network(kind, options, torch.float32).train(training)
    assert {module.training for module in convert(model).modules()} == {training}


def test_bad_input():
    resnest = models.ResNEst(5, 2, width=8, bottleneck=2, blocks=2)
    with pytest.raises(TypeError, match=r"to_resnest: densenest must be a fastnest\.models\.DenseNEst, got ResNEst"):
        theory.to_resnest(resnest)
    with pytest.raises(TypeError, match=r"augment: resnest must be a fastnest\.models\.ResNEst, got AResNEst"):
        theory.augment(theory.augment(resnest))
    with pytest.raises(
        ValueError, match="augment: resnest must have no batch norm before its head, got head_norm=True"
    ):
        theory.augment(models.ResNEst(5, 2, width=8, bottleneck=2, blocks=2, head_norm=True))
