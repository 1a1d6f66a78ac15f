"""Features of any model, by its own method or by listening to its blocks."""

import copy

import pytest
import torch
from theory.networks import RANDOM_NARROW, RANDOM_WIDE, WIDE, build, linear_maps, over

from fastnest import models, nn, theory
from fastnest.theory.features import record


def chain(**options) -> nn.ResidualChain:
    return nn.ResidualChain(6, 3, 2, **options)


class Calling(torch.nn.Module):
    """A head on what a block returns, called in some way."""

    def __init__(self, call, block=None):
        super().__init__()
        self.first, self.block, self.head = torch.nn.Linear(4, 6), block or chain(), torch.nn.Linear(6, 2)
        self.call = call

    def forward(self, x):
        return self.head(self.call(self.block, self.first(x)))


CALLS = {
    "plainly": lambda block, x: block(x),
    "by keyword": lambda block, x: block(x=x),
    "for the features too": lambda block, x: block(x, return_features=True)[0],
    "for the features too, by position": lambda block, x: block(x, True)[0],
    "for the features too, all by keyword": lambda block, x: block(x=x, return_features=True)[0],
    "without the features, in words": lambda block, x: block(x, return_features=False),
}


@over(*RANDOM_WIDE[:2], *RANDOM_NARROW[:2], WIDE[-1])
def test_features_and_stream_of_a_resnest(case):
    """x_i = W_0 v_0 + ... + W_i v_i; what listening finds is what the model's own method says."""
    model, x, _ = build(case)
    found = record(model, x)  # v_0 is x_0 here: what enters the first block
    v = theory.features(model, x)
    assert [part.shape[1] for part in v] == [case.shape.inputs] + [case.shape.bottleneck] * case.shape.blocks
    assert torch.equal(v[0], x)
    torch.testing.assert_close(found.features[1:], v[1:], rtol=1e-12, atol=1e-12)
    stream, maps = 0, linear_maps(model)
    for i in range(len(v)):
        stream = stream + v[i] @ maps[i].T
        torch.testing.assert_close(found.stream[i], stream, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.head(stream), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_chain_in_a_model(call):
    """However its caller asks for it, and the caller gets what it asked for."""
    torch.manual_seed(0)
    model, x = Calling(call), torch.randn(5, 4)
    output = model(x)
    found = theory.features(model, x)
    expected = model.block(model.first(x), return_features=True)[1]
    torch.testing.assert_close(found, [model.first(x), *expected.unbind(1)])
    assert torch.equal(model(x), output)


def bottleneck_like(width: int, features: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(width, features), torch.nn.Tanh())


def residuals(x):
    """Blocks of one's own: v_i = G_i(x_{i-1})."""
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), *(nn.Residual(bottleneck_like(6, k), 6, k) for k in (3, 2)), torch.nn.Linear(6, 1)
    )
    x_0 = model[0](x)
    return model, [x_0, model[1].block(x_0), model[2].block(model[1](x_0))]


def growths(x):
    """[x, Q_1(x)], [x, Q_1(x), Q_2(x, Q_1(x))]: the parts that were added."""
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6),
        nn.DenseGrowth(bottleneck_like(6, 3), 6, 3),
        nn.DenseGrowth(bottleneck_like(9, 2), 9, 2),
        torch.nn.Linear(11, 1),
    )
    return model, list(model[:3](x).split([6, 3, 2], 1))


def dense_chain(x):
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), nn.DenseChain(6, [3, 2], 2, hidden=4), torch.nn.Linear(11, 1))
    return model, list(model[:2](x).split([6, 3, 2], 1))


def residual_chain(x):
    model = torch.nn.Sequential(chain(activation="gelu"), chain(mid=True), torch.nn.Linear(6, 1))
    x = torch.cat([x, x[:, :2]], 1)
    y, first = model[0](x, return_features=True)
    return model, [x, *first.unbind(1), *model[1](y, return_features=True)[1].unbind(1)]


@pytest.mark.parametrize("make", [residuals, growths, dense_chain, residual_chain])
def test_blocks_in_a_sequence(make):
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    model, expected = make(x)
    given = expected[0] if make is residual_chain else x
    torch.testing.assert_close(theory.features(model, given), expected)
    # Every x_i is as wide as what the next block takes, and the last as what the head takes.
    assert record(model, given).stream[-1].shape[1] == model[-1].in_features


def test_blocks_on_images():
    """Their features are averaged over space."""
    torch.manual_seed(0)
    blocks = [nn.BasicBlock2d(8, 8), nn.Bottleneck2d(8, 8), nn.DenseBlock2d(8, 4, 2)]
    model, x = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), *blocks).eval(), torch.randn(2, 3, 6, 6)
    found = theory.features(model, x)
    y0 = model[0](x)
    y1, v1 = model[1](y0, return_features=True)
    y2, v2 = model[2](y1, return_features=True)
    dense = model[3](y2)
    expected = [y0, v1, v2, *dense.split([y2.shape[1], 4, 4], 1)[1:]]
    torch.testing.assert_close(found, [part.mean((2, 3)) for part in expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["standard", "resnest", "bn_resnest", "a_resnest"])
def test_models_on_images(kind):
    """v_0 is the image; the features and the stream are averaged over space."""
    torch.manual_seed(0)
    model = models.cifar("resnet_20", kind, 10).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found, listened = theory.features(model, x), record(model, x)
    torch.testing.assert_close(found[0], x.mean((2, 3)))
    assert len(found) == 10  # 3 stages of 3 blocks
    torch.testing.assert_close(listened.features, found, rtol=1e-5, atol=1e-6)
    assert all(part.dim() == 2 for part in (*found, *listened.stream))


def test_densenet_on_images():
    torch.manual_seed(0)
    model, x = models.densenest("bc_100_12", 10).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = theory.features(model, x)
    assert [part.shape for part in found[1:]] == [(1, 12)] * 16
    assert torch.isfinite(torch.cat(found, 1)).all()


def test_gradients_flow_through_the_features():
    model = Calling(CALLS["plainly"])
    sum(v.sum() for v in theory.features(model, torch.randn(5, 4))).backward()
    assert model.first.weight.grad.any()
    assert model.block.down.grad.any()


def hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_no_hook_is_left_behind():
    """Neither after a call nor after one that failed, and the model then works as before."""
    model, x = Calling(CALLS["plainly"]), torch.randn(5, 4)
    expected = model(x)
    theory.features(model, x)
    assert hooks(model) == 0

    def broken(block, x):
        block(x)
        raise RuntimeError("in the middle")

    model.call = broken
    with pytest.raises(RuntimeError, match="in the middle"):
        theory.features(model, x)
    assert hooks(model) == 0
    model.call = CALLS["plainly"]
    assert torch.equal(model(x), expected)


def test_the_mode_is_the_callers():
    """features runs the model as it is: in training its batch norms move, once."""
    model = Calling(CALLS["plainly"], chain(norm="batch"))
    before = copy.deepcopy(model.state_dict())
    theory.features(model.eval(), torch.randn(5, 4))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    theory.features(model.train(), torch.randn(5, 4))
    assert int(model.block.down_norm.num_batches_tracked) == 1


@pytest.mark.parametrize("model", [torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4))])
def test_a_model_without_blocks(model):
    with pytest.raises(TypeError, match=r"features: model must be one of fastnest.models or call blocks"):
        theory.features(model, torch.randn(5, 4))
