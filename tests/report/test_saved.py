"""Models found from their state_dict alone, and what else a file may hold."""

import itertools

import pytest
import torch

from fastnest import models
from fastnest.report import saved


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """With weights and statistics that no fresh model has."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.copy_(0.1 + torch.rand(value.shape, generator=generator))
    return model.eval()


def check(model: torch.nn.Module, x: torch.Tensor, path, **options) -> torch.nn.Module:
    torch.save(moved(model).state_dict(), path)
    found = saved.load(path, **options)
    assert type(found) is type(model)
    assert not found.training
    assert found.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        assert found(x).equal(model(x))
    return found


BUILT_IN = list(itertools.product((False, True), (True, False), (None, "batch"), (True, False)))


@pytest.mark.parametrize("kind", ["resnest", "bn_resnest", "aresnest"])
@pytest.mark.parametrize(("mid", "pre", "norm", "bias"), BUILT_IN)
def test_residual_models(kind, mid, pre, norm, bias, tmp_path):
    options = {"mid": mid, "pre_activation": pre, "norm": norm, "bias": bias, "activation": "tanh"}
    build = models.AResNEst if kind == "aresnest" else models.ResNEst
    options |= {"head_norm": True} if kind == "bn_resnest" else {}
    model = build(5, 3, width=7, bottleneck=2, blocks=3, **options)
    # With norms the names tell, whatever is said.
    said = pre if norm is None else True
    check(model, torch.randn(4, 5), tmp_path / "model.pt", activation="tanh", pre_activation=said)


@pytest.mark.parametrize("hidden", [None, 6, [3, 5]])
@pytest.mark.parametrize(("growth", "pre", "norm", "bias"), [(g, *rest) for g, *rest in BUILT_IN])
def test_dense_models(hidden, growth, pre, norm, bias, tmp_path):
    options = {"hidden": hidden, "pre_activation": pre, "norm": norm, "bias": bias}
    model = models.DenseNEst(5, 3, growth=[2, 4] if growth else 3, blocks=2, **options)
    check(model, torch.randn(4, 5), tmp_path / "model.pt", pre_activation=pre if norm is None else True)


def test_one_block_a_resnest(tmp_path):
    """Whose chain has no `up` at all."""
    check(models.AResNEst(5, 3, width=7, bottleneck=2, blocks=1), torch.randn(4, 5), tmp_path / "model.pt")


@pytest.mark.parametrize("kind", models.cifar.__globals__["KINDS"])
@pytest.mark.parametrize("arch", ["resnet_20", "wrn_16_8"])
def test_residual_networks_on_images(arch, kind, tmp_path):
    given = {"kind": kind} if kind in ("standard", "bn_resnest") else {}
    found = check(models.cifar(arch, kind, 4), torch.randn(2, 3, 8, 8), tmp_path / "model.pt", **given)
    assert (found.arch, found.kind) == (arch, kind)


@pytest.mark.parametrize("head_norm_act", [True, False])
def test_dense_networks_on_images(head_norm_act, tmp_path):
    model = models.densenest("bc_100_12", 4, head_norm_act=head_norm_act)
    found = check(model, torch.randn(2, 3, 8, 8), tmp_path / "model.pt")
    assert (found.arch, found.head_norm_act) == ("bc_100_12", head_norm_act)


def test_old_names_of_densenets(tmp_path):
    model = moved(models.densenest("densenet121", 2))
    state = {
        key.replace("norm1.", "norm.1.") if "denselayer" in key else key: v for key, v in model.state_dict().items()
    }
    assert any("norm.1." in key for key in state)
    torch.save(state, tmp_path / "model.pt")
    assert saved.load(tmp_path / "model.pt").arch == "densenet121"


def test_half_precision_is_read_as_float32(tmp_path):
    model = models.ResNEst(5, 3, width=7, bottleneck=2, blocks=2, dtype=torch.bfloat16)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    found = saved.load(tmp_path / "model.pt")
    assert found.head.weight.dtype == torch.float32
    assert found.head.weight.equal(model.head.weight.float())


class Bomb:
    def __reduce__(self):
        return print, ("run",)


STATE = models.ResNEst(5, 3, width=7, bottleneck=2, blocks=2).state_dict()
IMAGES = models.cifar("resnet_20", "standard", 4).state_dict()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Bomb(), "must be a state_dict of fastnest.models, but cannot be read"),
        (torch.nn.Linear(2, 2), "cannot be read"),
        ([1, 2], "got list"),
        ({}, "got dict of nothing"),
        ({"model": STATE}, "got OrderedDict under 'model'"),
        ({"step": 3}, "got int under 'step'"),
        ({"weight": torch.zeros(2, 2)}, "got 1 tensors: weight"),
        ({**STATE, "more": torch.zeros(2)}, "does not fit the ResNEst that its sizes say: more is unknown"),
        ({**STATE, "chain.up": torch.zeros(2, 9, 2)}, r"chain.up must be \[2, 7, 2\], got \[2, 9, 2\]"),
        ({k: v for k, v in STATE.items() if k != "chain.up"}, r"chain.up must be \[2, 7, 2\], got none"),
        ({k: v for k, v in STATE.items() if k != "head.weight"}, "its names and sizes fit none"),
        ({**STATE, "chain.down": torch.zeros(2)}, "its names and sizes fit none"),
        ({**STATE, "chain.down": torch.zeros(2, 0, 7)}, "its names and sizes fit none"),
        ({**STATE, "head.weight": torch.full((3, 7), torch.nan)}, "weights must be finite, got NaN or Inf in head.wei"),
        ({**STATE, "head.weight": torch.zeros(1).expand(10**6, 10**6)}, "got no plain tensor under 'head.weight'"),
        ({**STATE, "head.weight": torch.zeros(3, 7).to_sparse()}, "got no plain tensor under 'head.weight'"),
        (IMAGES, "--kind must be standard or bn_resnest, got None"),
        ({**IMAGES, "expansion.weight": torch.zeros(5, 3, 3, 3)}, "it must be one of wrn_16_8"),
        (
            models.ResNEst(5, 3, width=7, blocks=[torch.nn.Linear(7, 2)]).state_dict(),
            "blocks must be built in to be found from a state_dict",
        ),
    ],
)
def test_other_files(content, said, tmp_path, capsys):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=said) as raised:
        saved.load(tmp_path / "other.pt")
    assert str(tmp_path / "other.pt") in str(raised.value)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_files_that_are_cut_short(keep, tmp_path):
    torch.save(STATE, tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match="cannot be read"):
        saved.load(tmp_path / "model.pt")
