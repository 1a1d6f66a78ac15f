"""An accelerated model is still the model: copied, pickled, compiled, traced, restored, distributed."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from convert.blocks import FUSED, MODELS, dense_block, features, images, runs_the_op, small_model, why
from torch import nn

import fastnest
from fastnest.convert.swap import Accelerated, plan_of


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_pickles(name):
    model, x = small_model(name), images()
    fast = fastnest.accelerate(model, inplace=False)
    saved = io.BytesIO()
    torch.save(fast, saved)
    saved.seek(0)
    copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), torch.load(saved, weights_only=False)]
    copies.append(copy.deepcopy(copies[-1]))
    for copied in copies:
        inside = set(copied.modules())
        assert not inside & set(fast.modules())
        for block in copied.modules():
            if isinstance(block, Accelerated):
                assert inside.issuperset({*plan_of(block).parts.modules, *plan_of(block).parts.parents})
        assert torch.equal(copied(x), fast(x))
        assert runs_the_op(copied, x)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        assert fast(x).abs().max() > 0
        assert torch.equal(fastnest.restore(copied)(x), copied(x))
    empty = fastnest.accelerate(MODELS[name][0]().eval())
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(x), fast(x))


@pytest.mark.parametrize("name", MODELS)
def test_restore(name):
    model, x = small_model(name), images()
    classes, y = [type(module) for module in model.modules()], model(x)
    names = [set(module.__dict__) for module in model.modules()]
    other = fastnest.accelerate(model, inplace=False)
    assert [type(module) for module in model.modules()] == classes
    parameters = {id(parameter) for parameter in model.parameters()}
    assert fastnest.accelerate(model) is model
    once, plans = [type(module) for module in model.modules()], [plan_of(module) for module in model.modules()]
    fastnest.accelerate(model)
    assert [type(module) for module in model.modules()] == once
    assert all(plan is plan_of(module) for module, plan in zip(model.modules(), plans, strict=True))
    assert {id(parameter) for parameter in model.parameters()} == parameters
    assert str(model) == str(other)
    assert fastnest.restore(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert [set(module.__dict__) for module in model.modules()] == names
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("name", ["torchvision", "resnetv2", "authors"])
def test_compiled(name):
    model, x = small_model(name), images()
    fast = fastnest.accelerate(model, inplace=False)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    for training in (False, True):
        fast.train(training), model.train(training)
        torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)
        compiled(x).sum().backward()
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_traced_and_exported():
    """Export keeps the op; what records torch's own operators only gets those."""
    model, x = small_model("authors"), images()
    fast, y = fastnest.accelerate(model, inplace=False), model(x)
    exported = torch.export.export(fast, (x,))
    assert set(exported.state_dict) == set(model.state_dict())
    assert not FUSED or any("fastnest" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), y, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.jit.trace(fast, x)(x), y)
    inside = nn.Sequential(fastnest.accelerate(dense_block()))
    assert torch.equal(torch.fx.symbolic_trace(inside)(features()), dense_block()(features()))


def test_classes_and_copies_made_from_an_accelerated_block():
    """FSDP and parametrizations put a class before the block's; replicas of data parallelism are shallow copies."""
    block, x = fastnest.accelerate(dense_block()), features()
    shallow = copy.copy(block)
    assert "replaced since" in why(shallow, x)
    block.__class__ = type("Sharded", (type(block),), {})
    assert runs_the_op(block, x)
    assert runs_the_op(copy.deepcopy(block), x)
    assert "not accelerated" in why(fastnest.restore(block), x)
    assert runs_the_op(fastnest.accelerate(block), x)


def test_nothing_but_the_class_changes():
    """Neither the random state, nor a buffer, nor a mode, nor a gradient, also under no_grad and inference_mode."""
    model = small_model("torchvision", training=True)
    model.features.denseblock1.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    for mode in (torch.no_grad, torch.inference_mode, partial(torch.autocast, "cpu", torch.bfloat16)):
        with mode():
            fastnest.accelerate(fastnest.restore(model))
        assert isinstance(model.features.denseblock2, Accelerated)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    for meta in (model.to(torch.bfloat16), model.to("meta")):
        assert isinstance(fastnest.accelerate(fastnest.restore(meta)).features.denseblock1, Accelerated)


def test_distributed_data_parallel(tmp_path):
    """DDP finds and reduces every gradient as before."""
    model, x = small_model("resnetv2", training=True), images()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(fastnest.accelerate(model, inplace=False))
        for _ in range(2):
            wrapped(x).sum().backward()
            model(x).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for mine, theirs in zip(wrapped.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-4)
