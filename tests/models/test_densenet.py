import copy
import pickle
import re

import pytest
import real_models
import torch
from torch.nn import functional as F

from fastnest import models
from fastnest.models.densenet import ARCHS

pytestmark = pytest.mark.usefixtures("one_thread")

# With 1000 classes torchvision's own; the CIFAR networks with 10 (the paper rounds them to 0.8 and 25.6 million).
PARAMETERS = {
    "densenet121": (1000, 7978856),
    "densenet169": (1000, 14149480),
    "densenet201": (1000, 20013928),
    "densenet161": (1000, 28681000),
    "bc_100_12": (10, 769162),
    "bc_190_40": (10, 25624430),
}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# A network of these parts that takes a moment: each arch's code, fewer layers.
SMALL = {"small": ("densenet121", (2, 3, 1, 2), 4, 8), "small_bc": ("bc_100_12", (2, 3, 2), 4, 8)}


@pytest.fixture
def small(monkeypatch):
    def make(name: str, **options) -> torch.nn.Module:
        arch, layers, growth, channels = SMALL[name]
        monkeypatch.setitem(ARCHS, name, ARCHS[arch]._replace(layers=layers, growth=growth, channels=channels))
        torch.manual_seed(0)
        model = models.densenest(name, 5, **options)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.2)
                torch.nn.init.normal_(module.running_mean, std=0.2)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
        return model

    return make


def keys(arch: str, head_norm_act: bool) -> set[str]:
    """torchvision's."""
    form = ARCHS[arch]
    found = {"features.conv0.weight", "classifier.weight", "classifier.bias"}
    norms = ["features.norm0"] if form.stem else []
    for block, layers in enumerate(form.layers, 1):
        for start in (f"features.denseblock{block}.denselayer{layer}." for layer in range(1, layers + 1)):
            found |= {f"{start}{conv}.weight" for conv in ("conv1", "conv2")}
            norms += [f"{start}norm1", f"{start}norm2"]
        if block < len(form.layers):
            norms.append(f"features.transition{block}.norm")
            found.add(f"features.transition{block}.conv.weight")
    norms += ["features.norm5"] if head_norm_act else []
    return found | {f"{norm}.{name}" for norm in norms for name in NORM}


def plain(model: torch.nn.Module, x: torch.Tensor, head_norm_act: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The definition, in torch's own modules: (output, what enters the last block and what each of its layers adds)."""
    parts = dict(model.features.named_children())
    x = parts["conv0"](x)
    if "norm0" in parts:
        x = F.max_pool2d(F.relu(parts["norm0"](x)), 3, 2, 1)
    for i in range(1, 9):
        if f"denseblock{i}" not in parts:
            break
        if i > 1:
            transition = parts[f"transition{i - 1}"]
            x = F.avg_pool2d(transition.conv(F.relu(transition.norm(x))), 2)
        features = [x]
        for layer in parts[f"denseblock{i}"].values():
            features.append(layer.conv2(F.relu(layer.norm2(layer.conv1(F.relu(layer.norm1(torch.cat(features, 1))))))))
        x = torch.cat(features, 1)
    if head_norm_act:
        x = F.relu(parts["norm5"](x))
    return model.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1)), [v.mean((2, 3)) for v in features]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("head_norm_act", [True, False])
def test_parameters_and_keys(arch, head_norm_act):
    classes, count = PARAMETERS[arch]
    with torch.device("meta"):
        model = models.densenest(arch, classes, head_norm_act=head_norm_act)
    if not head_norm_act:
        count -= 2 * model.classifier.in_features
    assert sum(p.numel() for p in model.parameters()) == count
    state = model.state_dict()
    assert set(state) == keys(arch, head_norm_act)
    made_up = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    assert model.load_state_dict(made_up, strict=True, assign=True)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("head_norm_act", [True, False])
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_definition(small, name, head_norm_act, training):
    """Outputs, features, every gradient and the moved statistics, in float64."""
    model = small(name, head_norm_act=head_norm_act).double().train(training)
    other, third = copy.deepcopy(model), copy.deepcopy(model)
    x = torch.randn(3, 3, 64, 72, dtype=torch.float64)
    y, (expected, features) = model(x), plain(other, x, head_norm_act)
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy)
    for (key, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda said, key=key: f"{key}: {said}")
    torch.testing.assert_close(model.state_dict(), other.state_dict())
    torch.testing.assert_close(third.block_features(x.contiguous(memory_format=torch.channels_last)), features)


@pytest.mark.parametrize("name", SMALL)
def test_float32_is_near_float64(small, name):
    model, x = small(name).eval(), torch.randn(2, 3, 64, 64)
    expected, _ = plain(copy.deepcopy(model).double(), x.double(), True)
    eager, _ = plain(model, x, True)
    off, allowed = ((t.double() - expected).abs().max() for t in (model(x), eager))
    assert off <= 2 * allowed + 16 * torch.finfo(torch.float32).eps * expected.abs().max()


def test_the_output_of_a_densenest_is_linear_in_its_features(small):
    model, x = small("small_bc", head_norm_act=False).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.classifier(torch.cat(model.block_features(x), 1)))


def test_whole_networks_run():
    for arch, size, last in (("densenet121", 64, 1024), ("bc_100_12", 16, 342)):
        torch.manual_seed(0)
        model = models.densenest(arch, 7, head_norm_act=False).eval()
        x = torch.randn(2, 3, size, size)
        with torch.no_grad():
            y, features = model(x), model.block_features(x)
        assert y.shape == (2, 7)
        assert sum(v.shape[1] for v in features) == last
        torch.testing.assert_close(model.classifier(torch.cat(features, 1)), y)


def test_copies_pickles_and_loads(small):
    model, x = small("small").eval(), torch.randn(2, 3, 64, 64)
    y = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), y)
        other.load_state_dict(old_keys(model.state_dict()))
        assert torch.equal(other(x), y)


def old_keys(state: dict) -> dict:
    """As in files from before torch 0.4: norm.1 for norm1, and no num_batches_tracked."""
    kept = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return {re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", key): value for key, value in kept.items()}


def test_old_files_load_strictly(small):
    torch.manual_seed(1)
    model, other, x = small("small").eval(), small("small").eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    state = old_keys(model.state_dict())
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    before = list(state)
    assert other.load_state_dict(state, strict=True)
    assert list(state) == before
    assert torch.equal(other(x), model(x))
    outer = torch.nn.ModuleDict({"net": small("small").eval()})
    outer.load_state_dict({f"net.{key}": value for key, value in state.items()}, strict=True)
    assert torch.equal(outer["net"](x), model(x))


def test_drop_rate(small):
    model, x = small("small_bc", drop_rate=0.5), torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_equals_torchvision():
    densenet = real_models.load("torchvision.models.densenet")
    for arch in ("densenet121", "densenet169", "densenet201", "densenet161"):
        torch.manual_seed(0)
        theirs = getattr(densenet, arch)(num_classes=11).eval()
        ours = models.densenest(arch, 11).eval()
        ours.load_state_dict(theirs.state_dict())
        assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


def test_wrong_names_and_images():
    with pytest.raises(ValueError, match=r"densenest: arch must be one of densenet121.*got 'densenet264'"):
        models.densenest("densenet264", 10)
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        models.densenest("bc_100_12", 0)
    with pytest.raises(ValueError, match=r"densenest: x must be \[n, 3, height, width\]"):
        models.densenest("bc_100_12", 10)(torch.zeros(2, 1, 32, 32))
