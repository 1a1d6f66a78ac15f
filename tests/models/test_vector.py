import copy
import pickle

import pytest
import torch
from marks import best_kernel
from torch.nn import functional as F

from fastnest import models, nn
from fastnest.testing import kernel

KINDS = [
    (models.ResNEst, {"width": 12, "bottleneck": 4, "blocks": 3}),
    (models.ResNEst, {"width": 12, "bottleneck": 4, "blocks": 3, "head_norm": True, "mid": True}),
    (models.ResNEst, {"width": 12, "bottleneck": 4, "blocks": 2, "norm": "batch", "activation": "silu"}),
    (models.AResNEst, {"width": 12, "bottleneck": 4, "blocks": 3, "activation": "gelu", "bias": False}),
    (models.AResNEst, {"width": 12, "bottleneck": 4, "blocks": 1, "norm": "batch", "pre_activation": False}),
    (models.DenseNEst, {"growth": 4, "blocks": 3}),
    (models.DenseNEst, {"growth": [4, 1], "blocks": 2, "hidden": 6, "norm": "batch"}),
]
every_kind = pytest.mark.parametrize(("model", "options"), KINDS, ids=[f"{m.__name__} {o}" for m, o in KINDS])


def linear_in_features(model, x):
    """y from the features and the linear maps alone, as the paper has it."""
    features = model.features(x)
    if isinstance(model, models.AResNEst):
        return sum(v @ H.t() for v, H in zip(features, model.heads, strict=True))
    if isinstance(model, models.DenseNEst):
        return torch.cat(features, 1) @ model.head.weight.t()
    ups = model.chain.up if isinstance(model.chain, nn.ResidualChain) else [block.up for block in model.chain]
    maps = [model.expand.weight, *ups]
    return sum(v @ W.t() for v, W in zip(features, maps, strict=True)) @ model.head.weight.t()


@every_kind
@best_kernel
def test_output_is_linear_in_the_features(model, options, name):
    """y = W_{L+1} sum_i W_i v_i (1), y = sum_i H_i v_i (6), y = W_{L+1} [v_0, ..., v_L] (9)."""
    torch.manual_seed(0)
    net, x = model(5, 2, **options).eval(), torch.randn(7, 5)
    with kernel(name):
        features, y = net.features(x), net(x)
        assert y.shape == (7, 2)
        assert torch.equal(features[0], x)
        assert len(features) == options["blocks"] + 1
        if not options.get("head_norm"):
            torch.testing.assert_close(y, linear_in_features(net, x))


@every_kind
def test_copies_pickles_loads_and_trains(model, options):
    torch.manual_seed(0)
    net, x = model(5, 2, **options), torch.randn(32, 5)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.eval()(x), net.eval()(x))
    other = model(5, 2, **options).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    net.train()
    target = x[:, :2] * x[:, 2:4]
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(100):
        loss = F.mse_loss(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (models.ResNEst, {"width": 16, "bottleneck": 8, "blocks": 64}),
        (models.AResNEst, {"width": 16, "bottleneck": 8, "blocks": 64}),
        (models.DenseNEst, {"growth": 4, "blocks": 64}),
    ],
)
def test_depth_64_trains(model, options):
    torch.manual_seed(0)
    net, x = model(8, 1, **options), torch.randn(128, 8)
    target = (x[:, :1] * x[:, 1:2]).tanh()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0], losses


def G(width, features):
    return torch.nn.Sequential(torch.nn.BatchNorm1d(width), torch.nn.ReLU(), torch.nn.Linear(width, features))


@pytest.mark.parametrize("model", [models.ResNEst, models.AResNEst])
def test_modules_of_ones_own(model):
    """Their sizes are found, without moving their statistics or mode; the result is linear in what they return."""
    blocks = [G(12, 3), G(12, 7).eval(), G(12, 1)]
    net, x = model(5, 2, width=12, blocks=blocks), torch.randn(7, 5)
    assert [block.features for block in net.chain] == [3, 7, 1]
    assert [block[0].training for block in blocks] == [True, False, True]
    assert all(block[0].num_batches_tracked == 0 for block in blocks)
    net.eval()
    torch.testing.assert_close(net(x), linear_in_features(net, x))
    net.train()(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert blocks[0][0].num_batches_tracked == 1
    last = net.chain[-1].up
    assert (last is None) == (model is models.AResNEst)
    assert model(5, 2, width=12, bottleneck=[3, 7, 1], blocks=torch.nn.ModuleList(blocks))(x).shape == (7, 2)


def test_growths_of_ones_own():
    blocks = [G(5, 3), G(8, 7), G(15, 1)]
    net, x = models.DenseNEst(5, 2, blocks=blocks).eval(), torch.randn(7, 5)
    assert net.feature_sizes == [5, 3, 7, 1]
    torch.testing.assert_close(net(x), linear_in_features(net, x))
    assert models.DenseNEst(5, 2, growth=[3, 7, 1], blocks=blocks)(x).shape == (7, 2)


def test_a_chain_of_modules_is_the_fused_chain():
    """The same blocks given as modules and as numbers."""
    torch.manual_seed(0)
    net, x = models.ResNEst(5, 2, width=12, bottleneck=4, blocks=3), torch.randn(7, 5)
    blocks = []
    for i in range(3):
        linear = torch.nn.Linear(12, 4)
        linear.weight.data, linear.bias.data = net.chain.down[i].data, net.chain.down_bias[i].data
        blocks.append(torch.nn.Sequential(torch.nn.ReLU(), linear, torch.nn.ReLU()))
    own = models.ResNEst(5, 2, width=12, blocks=blocks)
    for i in range(3):
        own.chain[i].up.data = net.chain.up[i].data
    own.expand, own.head = net.expand, net.head
    torch.testing.assert_close(own(x), net(x))
    torch.testing.assert_close(own.features(x), net.features(x))


def test_weights_have_the_papers_names():
    net = models.ResNEst(5, 2, width=12, bottleneck=4, blocks=3, bias=False)
    assert {name: tuple(p.shape) for name, p in net.state_dict().items()} == {
        "expand.weight": (12, 5), "chain.down": (3, 4, 12), "chain.up": (3, 12, 4), "head.weight": (2, 12),
    }  # fmt: skip
    net = models.AResNEst(5, 2, width=12, bottleneck=4, blocks=3)
    assert net.chain.up.shape == (2, 12, 4)
    assert [tuple(H.shape) for H in net.heads] == [(2, 5), (2, 4), (2, 4), (2, 4)]
    assert models.DenseNEst(5, 2, growth=4, blocks=3).head.weight.shape == (2, 17)


def test_factory_arguments_and_compile():
    for model, options in KINDS:
        net = model(5, 2, **options, device="meta", dtype=torch.bfloat16)
        assert {(p.device.type, p.dtype) for p in net.parameters()} == {("meta", torch.bfloat16)}
    torch._dynamo.reset()
    net, x = models.AResNEst(5, 2, width=12, bottleneck=4, blocks=3), torch.randn(7, 5)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x))


class Broken(torch.nn.Module):
    def forward(self, x):
        return x.sum(1)


def resnest(**options):
    return models.ResNEst(5, 2, **{"width": 12, "bottleneck": 4, "blocks": 3, **options})


def densenest(**options):
    return models.DenseNEst(5, 2, **options)


WRONG = [
    (ValueError, lambda: models.ResNEst(0, 2, width=12, bottleneck=4, blocks=3), "ResNEst: in_features must be at"),
    (TypeError, lambda: models.AResNEst(5, 2.0, width=12, bottleneck=4, blocks=3), "AResNEst: out_features must be an"),
    (ValueError, lambda: resnest(width=-1), "ResidualChain: width must be at least 1, got -1"),
    (ValueError, lambda: resnest(blocks=0), "ResidualChain: blocks must be at least 1, got 0"),
    (ValueError, lambda: resnest(bottleneck=None), "ResNEst: bottleneck must be an int where blocks is a number"),
    (ValueError, lambda: resnest(blocks=[]), "ResNEst: blocks must hold at least one module, got none"),
    (TypeError, lambda: resnest(blocks=[G(12, 4), torch.relu]), "ResNEst: blocks[1] must be a torch.nn.Module, got"),
    (TypeError, lambda: densenest(blocks=[3]), "DenseNEst: blocks[0] must be a torch.nn.Module, got int"),
    (ValueError, lambda: resnest(blocks=[G(12, 4)], mid=True), "ResNEst: mid shape built-in blocks, but blocks are"),
    (ValueError, lambda: resnest(blocks=[G(12, 4)], bottleneck=[4, 4]), "ResNEst: bottleneck must be an int or 1 of"),
    (ValueError, lambda: resnest(blocks=[G(11, 4)], bottleneck=None), "ResNEst: blocks[0] must take [n, 12], but"),
    (ValueError, lambda: resnest(blocks=[Broken()], bottleneck=None),
     "ResNEst: blocks[0] must take [n, 12] to [n, features], but took [2, 12] to [2]"),
    (ValueError, lambda: resnest(blocks=[G(12, 4)], bottleneck=5)(torch.randn(3, 5)), "Residual: G must return [3, 5]"),
    (ValueError, lambda: densenest(blocks=3), "DenseNEst: growth must be an int or one per block where blocks is"),
    (ValueError, lambda: densenest(growth=[4, 4], blocks=3), "DenseChain: growth must be an int or 3 of them"),
    (TypeError, lambda: resnest(depth=3), "ResidualChain.__init__() got an unexpected keyword argument 'depth'"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "make", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_bad_input(error, make, message):
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value).startswith(message)
