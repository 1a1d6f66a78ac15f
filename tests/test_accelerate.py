"""accelerate, restore and explain: on small models of the real packages' own code, and on blocks that do not fit."""

import copy
import io
import pickle
import re
from functools import cache, partial

import pytest
import real_models
import torch
from torch import nn
from torch.nn.utils import prune

import fastnest
from fastnest import _backend
from fastnest.convert.swap import Accelerated, plan_of

FUSED = _backend.CPP_IS_BUILT
SMALL = {"growth_rate": 8, "block_config": (2, 3), "bn_size": 2}


class AuthorsBlock(nn.Module):
    """The residual block of the ResNEst authors by its description: it returns the features beside the stream."""

    def __init__(self, channels: int, hidden: int, out: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(hidden, out, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(hidden)
        if stride > 1 or channels != out:
            self.projection = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False))

    def forward(self, x):
        a = self.bn1(x).relu()
        v = self.bn2(self.conv1(a)).relu()
        return self.conv2(v) + (self.projection(a) if hasattr(self, "projection") else x), v


class AuthorsNet(nn.Module):
    """An A-ResNEst of two stages: reads the features of every block."""

    def __init__(self):
        super().__init__()
        self.expansion = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stage = nn.ModuleList([AuthorsBlock(8, 8, 8), AuthorsBlock(8, 12, 16, stride=2), AuthorsBlock(16, 12, 16)])
        self.head = nn.ModuleList(nn.Linear(width, 5) for width in (8, 12, 12, 16))

    def forward(self, x):
        x, y = self.expansion(x), 0
        for block, head in zip(self.stage, self.head, strict=False):
            x, v = block(x)
            y = y + head(v.mean((2, 3)))
        return y + self.head[-1](x.mean((2, 3)))


def torchvision_densenet(**options):
    return real_models.load("torchvision.models.densenet").DenseNet(
        num_init_features=16, num_classes=5, **SMALL, **options
    )


def timm_densenet(**options):
    return real_models.load("timm.models.densenet").DenseNet(num_classes=5, **SMALL, **options)


def monai_densenet(**options):
    module = real_models.load("monai.networks.nets.densenet")
    return module.DenseNet(2, in_channels=3, out_channels=5, init_features=16, **SMALL, **options)


def xrv_densenet(**options):
    module = real_models.load("torchxrayvision.models")
    return module.DenseNet(num_init_features=16, num_classes=5, in_channels=3, weights=None, **SMALL, **options)


def timm_resnetv2(**options):
    module, layers = real_models.load("timm.models.resnetv2"), real_models.load("timm.layers")
    kind = {"conv_layer": layers.create_conv2d, "norm_layer": layers.BatchNormAct2d}
    sizes = {"layers": (2, 2), "channels": (16, 32), "stem_chs": 8, "num_classes": 5}
    return module.ResNetV2(**sizes | kind | options)


# Each with the number of its blocks.
MODELS = {
    "torchvision": (torchvision_densenet, 2),
    "timm": (timm_densenet, 2),
    "monai": (monai_densenet, 2),
    "torchxrayvision": (xrv_densenet, 2),
    "resnetv2": (timm_resnetv2, 4),
    "resnetv2 basic": (partial(timm_resnetv2, basic=True), 4),
    "authors": (AuthorsNet, 3),
}


@cache
def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    make, _ = MODELS[name]
    model = make()
    for module in model.modules():  # statistics and weights as after some training
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                nn.init.uniform_(tensor, low, low + 1)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return model


def small_model(name: str, training: bool = False) -> nn.Module:
    return copy.deepcopy(_model(name)).train(training)


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def dense_block(layers: int = 2, drop_rate: float = 0.0) -> nn.Module:
    """A block of torchvision's on its own, 6 channels in, 4 growth."""
    torch.manual_seed(0)
    return real_models.load("torchvision.models.densenet")._DenseBlock(layers, 6, 2, 4, drop_rate).eval()


def features() -> torch.Tensor:
    return torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(0))


def rows(model: nn.Module, *inputs) -> list[tuple[str, str, str]]:
    return [(row.module, row.runs, row.reason) for row in fastnest.explain(model, *inputs).rows]


def why(block: nn.Module, *inputs) -> str:
    (row,) = fastnest.explain(block, *inputs).rows
    assert row.runs == "its own forward"
    return row.reason


def runs_the_op(block: nn.Module, *inputs) -> bool:
    return all(
        runs.split()[0] in ("dense_block2d", "bottleneck2d", "basic_block2d") for _, runs, _ in rows(block, *inputs)
    )


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
    assert runs_the_op(fast, x) or not FUSED
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
        assert runs_the_op(fast, x) or not FUSED
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
    assert runs_the_op(block, x) or not FUSED


def test_dropout_that_the_op_does_not_know():
    """MONAI drops whole channels, timm whole branches: only training is left to the block itself."""
    channels, branches = monai_densenet(dropout_prob=0.5), timm_resnetv2(drop_path_rate=0.5)
    for model, inside in ((channels, "Dropout2d"), (branches, "DropPath")):
        model, x = fastnest.accelerate(model).eval(), images()
        assert runs_the_op(model, x) or not FUSED
        reasons = [reason for _, _, reason in rows(model.train(), x)]
        assert any(re.search(rf"\({inside}\) in training; eval\(\) runs the op", reason) for reason in reasons)


@pytest.mark.skipif(not FUSED, reason="without kernels a block's own forward runs, with its checkpoints")
@pytest.mark.parametrize("make", [torchvision_densenet, timm_densenet])
def test_memory_efficient(make):
    """Checkpointing is not needed; its second forward moved running statistics twice, now they move once."""
    model = small_model("torchvision" if make is torchvision_densenet else "timm", training=True)
    checkpointed = make(memory_efficient=True)
    checkpointed.load_state_dict(model.state_dict())
    fast, x = fastnest.accelerate(checkpointed), images()
    assert runs_the_op(fast, x) or not FUSED
    assert_as_near(fast, model, "memory_efficient")
    x.requires_grad_()
    fast(x).sum().backward()
    assert {int(value) for name, value in fast.state_dict().items() if "num_batches_tracked" in name} == {1}


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
        assert runs_the_op(copied, x) or not FUSED
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
    assert runs_the_op(block, x) or not FUSED
    assert runs_the_op(copy.deepcopy(block), x) or not FUSED
    assert "not accelerated" in why(fastnest.restore(block), x)
    assert runs_the_op(fastnest.accelerate(block), x) or not FUSED


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


def test_frozen_batch_norms():
    """Batch norms that are in evaluation normalise with the running statistics, which stay, while the block trains."""
    model = small_model("timm", training=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    fast, x = fastnest.accelerate(model, inplace=False), images()
    assert runs_the_op(fast, x) or not FUSED
    assert_as_near(fast, model, "frozen")


def test_hooks():
    block, x, called = fastnest.accelerate(dense_block()), features(), []
    record = lambda *args: called.append(1)  # noqa: E731
    hook = block.register_forward_hook(record)
    y = block(x)
    assert called == [1]
    assert runs_the_op(block, x) or not FUSED
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
    assert runs_the_op(block, x) or not FUSED


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def with_conv(**options):
    """A change: another convolution in the second layer."""
    conv = nn.Conv2d(8, 4, **{"kernel_size": 3, "padding": 1, "bias": False} | options)
    return with_module("denselayer2.conv2", conv)


def with_module(name: str, module: nn.Module):
    return lambda block: block.set_submodule(name, copy.deepcopy(module))


def with_value(name: str, value):
    module, _, attribute = name.rpartition(".")
    return lambda block: setattr(block.get_submodule(module), attribute, value)


def weight_norm(block: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(block.denselayer1.conv1)


def pruned(block: nn.Module) -> None:
    prune.l1_unstructured(block.denselayer1.conv1, "weight", 0.5)


def dilated(block: nn.Module) -> None:
    block.denselayer1.conv2.dilation = block.denselayer1.conv2.padding = (2, 2)


def with_a_gain(block: nn.Module) -> None:
    block.denselayer1.gain = nn.Parameter(torch.ones(1))


def patched(block: nn.Module) -> None:
    block.forward = lambda x: type(block).forward(block, x)


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
def test_left_alone(unfit):
    change, reason = UNFIT[unfit]
    block, x = dense_block(), features()
    change(block)
    untouched = type(block)
    fastnest.accelerate(block)
    assert type(block) is untouched
    if unfit not in ("one less", "widths"):
        assert re.search(reason, why(block, x))


# What happens to a block after accelerate, and the reason why a call then runs its own forward.
CHANGES = {
    "replaced": (with_conv(), "modules inside were replaced since"),
    "weight norm": (weight_norm, "conv1 became a ParametrizedConv2d"),
    "pruned": (pruned, "hooks on denselayer1.conv1"),
    "patched": (with_value("denselayer1.relu1.forward", torch.sigmoid), "relu1 has a forward of its own"),
    "dilated": (dilated, "another stride, padding or dilation"),
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
    """Group norm with standardised weights; post-activation blocks; a shortcut that pools."""
    x, resnet = images(), real_models.load("torchvision.models.resnet")
    layers = real_models.load("timm.layers")
    big_transfer = timm_resnetv2(norm_layer=partial(layers.GroupNormAct, num_groups=4), conv_layer=layers.StdConv2d)
    for model, reason in (
        (big_transfer, "norm1 is GroupNormAct, not BatchNorm2d"),
        (resnet.ResNet(resnet.BasicBlock, [2, 1, 1, 1]), "computes something else|is not what comes before"),
        (timm_resnetv2(avg_down=True).eval(), "downsample is more than a convolution: AvgPool2d, Conv2d|^$|copied"),
        (timm_resnetv2(conv_layer=layers.StdConv2d), "conv1 is StdConv2d, not Conv2d"),
    ):
        before = model.eval()(x)
        fastnest.accelerate(model)
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)
        found = rows(model, x)
        assert found
        assert not FUSED or all(re.search(reason, why) for _, _, why in found)


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
