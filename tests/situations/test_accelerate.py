"""What users do around accelerate and explain: other default devices, ONNX, torch.jit, DataParallel, other norms."""

import warnings

import pytest
import torch
from convert.blocks import MODELS, dense_block, features, images, rows, runs_the_op, small_model, why
from convert.changes import with_conv
from torch import nn

import fastnest
from fastnest import models
from fastnest import nn as own
from fastnest.convert.swap import Accelerated
from fastnest.nn import plan

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def accelerated(model) -> int:
    return sum(isinstance(module, Accelerated) for module in model.modules())


@pytest.fixture
def another_default_device():
    torch.set_default_device("meta")  # as "cuda" does, it has tensors that do not mix with those of the CPU
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("name", MODELS)
def test_another_default_device(name, another_default_device):
    with torch.device("cpu"):
        model, x = small_model(name), images()
        expected = model(x)
    assert accelerated(fastnest.accelerate(model)) == MODELS[name][1]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_trial_that_fails_in_the_op_is_an_error(monkeypatch):
    def fails(*_):
        raise ValueError("no such thing")

    monkeypatch.setattr(plan, "run_dense_layers", fails)
    block = dense_block()
    with pytest.raises(RuntimeError, match=r"accelerate: dense_block2d, 2 layers failed on .* _DenseBlock, .*no such"):
        fastnest.accelerate(block)
    assert not isinstance(block, Accelerated)


def test_a_trial_that_fails_in_the_block_leaves_it_alone():
    block = dense_block()
    block.__class__ = type("Picky", (type(block),), {"forward": lambda self, x: 1 / 0})
    with pytest.warns(UserWarning, match="running it on a small input failed: ZeroDivisionError"):
        fastnest.accelerate(block)


# A model of which accelerate takes nothing, and the one warning that says why.
NOTHING_TAKEN = {
    "no block": (lambda: nn.Sequential(nn.Linear(2, 2)), "no block of Sequential was replaced: none is named like"),
    "all left alone": (lambda: changed(dense_block()), "denselayer2.conv2 must have groups=1"),
    "many left alone": (lambda: nn.Sequential(*(changed(dense_block()) for _ in range(7))), "; and 2 more"),
}


def changed(block):
    with_conv(groups=4)(block)
    return block


@pytest.mark.parametrize("situation", NOTHING_TAKEN)
def test_nothing_taken_warns_once(situation):
    make, message = NOTHING_TAKEN[situation]
    with pytest.warns(UserWarning, match=message) as caught:
        fastnest.accelerate(make())
    assert len(caught) == 1
    assert caught[0].filename == __file__


# A model of which accelerate takes something, or that needs nothing: no warning.
SOMETHING_TAKEN = {
    "some": lambda: nn.Sequential(dense_block(), changed(dense_block())),
    "again": lambda: fastnest.accelerate(dense_block()),
    "fastnest's own": lambda: models.densenest("bc_100_12", 4),
}


@pytest.mark.parametrize("situation", SOMETHING_TAKEN)
def test_no_warning(situation):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastnest.accelerate(SOMETHING_TAKEN[situation]())


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
EXPORTED = {
    **{f"accelerated {name}": (lambda name=name: fastnest.accelerate(small_model(name)), IMAGES) for name in MODELS},
    "cifar": (lambda: models.cifar("resnet_20", "a_resnest", 4), IMAGES),
    "densenest": (lambda: models.densenest("bc_100_12", 4), IMAGES),
    "ResNEst": (lambda: models.ResNEst(5, 2, width=8, bottleneck=4, blocks=2, norm="batch"), ROWS),
    "DenseNEst": (lambda: models.DenseNEst(5, 2, growth=4, blocks=2), ROWS),
    "batch_stats": (lambda: Statistics(), IMAGES),
}


class Statistics(nn.Module):
    def forward(self, x):
        return torch.cat(fastnest.functional.batch_stats(x))


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx(name, tmp_path):
    """By torch.onnx.export as it is, with nothing forced."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    make, x = EXPORTED[name]
    model = make().eval()
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = model(x).detach()
    assert (torch.from_numpy(y) - expected).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1)
    assert fastnest.explain(model, x).rows or name == "batch_stats"  # and runs as before afterwards


def test_script_of_an_accelerated_model_is_one_line():
    model, x = fastnest.accelerate(small_model("torchvision")), images()
    expected = model(x)
    with pytest.raises(
        TypeError, match=r"cannot compile an accelerated _DenseBlock: call fastnest\.restore\(model\) first"
    ):
        torch.jit.script(model)
    assert runs_the_op(model, x)
    torch.testing.assert_close(torch.jit.script(fastnest.restore(model))(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [own.DenseBlock2d, own.BasicBlock2d, own.ResidualChain, own.DenseChain])
def test_script_of_own_modules_is_one_line(make):
    module = make(6, 4, 2)
    with pytest.raises(TypeError, match=rf"torch\.jit\.script cannot compile {make.__name__}: .* torch\.jit\.trace"):
        torch.jit.script(nn.Sequential(module))


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, images())])
@pytest.mark.parametrize("function", [fastnest.accelerate, fastnest.restore])
def test_models_compiled_by_jit(compiled, function):
    model = compiled(small_model("torchvision"))
    with pytest.raises(TypeError, match=rf"{function.__name__}: model must not be compiled by torch\.jit, got a \w+"):
        function(model)
    with pytest.warns(UserWarning, match="no block of Sequential was replaced"):
        fastnest.accelerate(nn.Sequential(model))


def test_explain_data_parallel():
    model, x = fastnest.accelerate(small_model("torchvision")), images()
    for wrapped in (nn.DataParallel(model), nn.Sequential(nn.DataParallel(model))):
        found = rows(wrapped, x)
        assert [name.removeprefix("0.") for name, *_ in found] == [f"module.{name}" for name, *_ in rows(model, x)]
        assert runs_the_op(wrapped, x)


def test_explain_and_accelerate_agree(capsys):
    """After a norm was replaced by one that the op does not know, and by one that it knows."""
    block, x = fastnest.accelerate(dense_block()), features()
    block.denselayer1.norm2 = nn.GroupNorm(2, 8)
    assert "were replaced since: call fastnest.accelerate(model) again" in why(block, x)
    fastnest.accelerate(block, verbose=True)
    left = "denselayer1.norm2 is GroupNorm, not BatchNorm2d"
    assert capsys.readouterr().out.splitlines() == [
        f"(model) (_DenseBlock): left alone: {left}",
        "0 of 1 blocks accelerated",
    ]
    assert why(block, x) == left
    assert accelerated(block) == 0
    block.denselayer1.norm2 = nn.BatchNorm2d(8).eval()
    fastnest.accelerate(block, verbose=True)
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 blocks accelerated"
    assert runs_the_op(block, x)


def test_blocks_are_said_in_the_model_s_order(capsys):
    fastnest.accelerate(nn.Sequential(changed(dense_block()), dense_block()), verbose=True)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1", "1"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixed", [False, True], ids=["all", "one"])
@pytest.mark.parametrize("name", ["torchvision", "authors"])
def test_norms_with_neither_weights_nor_statistics(name, mixed, dtype):
    """What stands for them has the block's device and dtype."""
    model = small_model(name)
    inside = [key for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for key in inside[1:2] if mixed else inside:
        bare = nn.BatchNorm2d(model.get_submodule(key).num_features, affine=False, track_running_stats=False)
        model.set_submodule(key, bare.eval())
    fast = fastnest.accelerate(model, inplace=False).to(dtype)
    x = images().to(dtype)
    y = fast(x)
    assert y.dtype is dtype
    torch.testing.assert_close(y.float(), model(x.float()), rtol=0.05 if dtype is torch.bfloat16 else 1e-4, atol=0.1)
    assert fast.to("meta")(x.to("meta")).is_meta
    assert accelerated(fast) == MODELS[name][1] - mixed
