import copy
import pickle
from itertools import chain

import pytest
import torch
from torch.nn import functional as F

from fastnest import models
from fastnest.models.cifar import ARCHS, KINDS
from fastnest.models.image import pooled

pytestmark = pytest.mark.usefixtures("one_thread")

# Of the authors' published code, in the order of PARAMETERS' rows: 10 classes, then 100.
ORDER = ("wrn_16_8", "wrn_40_4", "resnet_110", "resnet_20")
STANDARD = {10: (11091594, 8977226, 1730522, 272282), 100: (11137764, 9000356, 1736372, 278132)}
PARAMETERS = {
    "standard": STANDARD,
    "bn_resnest": STANDARD,
    "resnest": {10: (11090570, 8976714, 1730394, 272154), 100: (11136740, 8999844, 1736244, 278004)},
    "a_resnest": {10: (8744164, 8411420, 1713620, 238130), 100: (8906344, 8655320, 1900280, 269540)},
}
COUNTS = [
    (arch, kind, classes, count)
    for kind, rows in PARAMETERS.items()
    for classes, row in rows.items()
    for arch, count in zip(ORDER, row, strict=True)
]
every_kind = pytest.mark.parametrize("kind", KINDS)


def net(kind: str, classes: int = 10, **tensors) -> torch.nn.Module:
    """A small one, with batch norms that do something."""
    torch.manual_seed(0)
    model = models.cifar("resnet_20", kind, classes).to(**tensors)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def plain(model: torch.nn.Module, kind: str, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The definition: (output, features), in torch's own modules and as many images as the module gets."""

    def pooled(t):
        return F.adaptive_avg_pool2d(t, 1).flatten(1)

    features = [pooled(x)]
    x = model.expansion(x)
    for block in chain.from_iterable(model.stage):
        a = F.relu(block.bn1(x))
        v = F.relu(block.bn2(block.conv1(a)))
        features.append(pooled(v))
        if block.conv2 is not None:
            x = block.conv2(v) + (x if block.projection is None else block.projection(a))
    if kind == "a_resnest":
        heads = [model.H_0, *chain.from_iterable(model.H_k)]
        return sum(H(v) for H, v in zip(heads, features, strict=True)), features
    if kind != "resnest":
        x = model.final_bn(x)
    return model.linear(pooled(F.relu(x) if kind == "standard" else x)), features


def keys(arch: str, kind: str) -> set[str]:
    """Those of the authors' published checkpoints."""
    blocks, stages = ARCHS[arch].blocks, range(3)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    last = f"stage.2.{blocks - 1}."
    found = {"expansion.weight"}
    for start in (f"stage.{s}.{b}." for s in stages for b in range(blocks)):
        found |= {f"{start}{bn}.{name}" for bn in ("bn1", "bn2") for name in norm} | {f"{start}conv1.weight"}
        if kind != "a_resnest" or start != last:
            found.add(f"{start}conv2.weight")
    found |= {f"stage.{s}.0.projection.0.weight" for s in (1, 2)}
    if kind == "a_resnest":
        heads = ["H_0", *(f"H_k.{s}.{b}" for s in stages for b in range(blocks))]
        return found | {f"{head}.{name}" for head in heads for name in ("weight", "bias")}
    if kind != "resnest":
        found |= {f"final_bn.{name}" for name in norm}
    return found | {"linear.weight", "linear.bias"}


def test_every_arch_and_kind_is_counted():
    assert set(ORDER) == set(ARCHS)
    assert set(PARAMETERS) == set(KINDS)
    assert len(COUNTS) == 32


@pytest.mark.parametrize(("arch", "kind", "classes", "count"), COUNTS)
def test_parameters_and_keys(arch, kind, classes, count):
    with torch.device("meta"):
        model = models.cifar(arch, kind, classes)
    assert sum(p.numel() for p in model.parameters()) == count
    state = model.state_dict()
    assert set(state) == keys(arch, kind)
    made_up = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    assert model.load_state_dict(made_up, strict=True, assign=True)


@every_kind
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_definition(kind, training):
    """Outputs, features, every gradient and the moved statistics, in float64; images of any size and memory."""
    model = net(kind, dtype=torch.float64).train(training)
    other = copy.deepcopy(model)
    x = torch.randn(3, 3, 12, 20, dtype=torch.float64)
    y, (expected, features) = model(x), plain(other, kind, x)
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda said, name=name: f"{name}: {said}")
    torch.testing.assert_close(model.state_dict(), other.state_dict())
    model = net(kind, dtype=torch.float64).train(training)
    torch.testing.assert_close(model.features(x.contiguous(memory_format=torch.channels_last)), features)


def test_gradients_of_the_average_are_channels_last():
    x = torch.randn(2, 5, 4, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    (dx,) = torch.autograd.grad(pooled(x), x, torch.ones(2, 5))
    assert dx.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(dx, torch.full_like(x, 1 / 12))


@every_kind
def test_float32_is_near_float64(kind):
    model, x = net(kind).eval(), torch.randn(2, 3, 32, 32)
    expected, features = plain(copy.deepcopy(model).double(), kind, x.double())
    eager, _ = plain(model, kind, x)
    off, allowed = ((t.double() - expected).abs().max() for t in (model(x), eager))
    ulp = torch.finfo(torch.float32).eps * expected.abs().max()
    assert off <= 2 * allowed + 16 * ulp
    assert [v.shape for v in model.features(x)] == [v.shape for v in features]
    assert len(features) == 1 + sum(map(len, model.stage))


def test_the_output_of_an_a_resnest_is_linear_in_its_features():
    model, x = net("a_resnest").eval(), torch.randn(2, 3, 32, 32)
    heads = [model.H_0, *chain.from_iterable(model.H_k)]
    y = sum(v @ H.weight.t() + H.bias for H, v in zip(heads, model.features(x), strict=True))
    torch.testing.assert_close(model(x), y)


@every_kind
def test_copies_pickles_and_loads(kind):
    model, x = net(kind).eval(), torch.randn(2, 3, 32, 32)
    y = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), y)
    other = models.cifar("resnet_20", kind, 10).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x).double() - y.double()).abs().max() < 0.1 * y.abs().max()


@every_kind
def test_initial_weights(kind):
    """Convolutions by He's fan out; the stream does not explode over 54 blocks."""
    torch.manual_seed(0)
    model = models.cifar("resnet_110", kind, 10)
    weight = model.stage[2][3].conv1.weight
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    with torch.no_grad():
        y = model(torch.randn(4, 3, 16, 16))
    assert y.isfinite().all()
    assert y.abs().max() < 100


def test_wrong_names_and_images():
    with pytest.raises(ValueError, match=r"cifar: arch must be one of wrn_16_8.*got 'resnet50'"):
        models.cifar("resnet50", "resnest", 10)
    with pytest.raises(ValueError, match=r"cifar: kind must be one of standard.*got 'plain'"):
        models.cifar("resnet_20", "plain", 10)
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        models.cifar("resnet_20", "resnest", 0)
    with pytest.raises(ValueError, match=r"cifar: x must be \[n, 3, height, width\]"):
        models.cifar("resnet_20", "resnest", 10)(torch.zeros(2, 1, 32, 32))
