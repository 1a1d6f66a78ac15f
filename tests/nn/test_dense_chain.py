import copy
import pickle

import pytest
import torch
from marks import best_kernel
from nn.norms import with_random_norms
from torch.nn import functional as F

from fastnest import nn
from fastnest.functional import dense_chain
from fastnest.reference.activation import ACTIVATIONS, activate
from fastnest.testing import kernel

KINDS = [{"hidden": hidden, "pre_activation": pre} for hidden in (None, [4, 6, 3]) for pre in (False, True)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
GROWTH = [3, 1, 5]


class BlockByBlock(torch.nn.Module):
    """A DenseChain with norm="batch", by torch's own BatchNorm1d, with its parameters' values."""

    def __init__(self, chain):
        super().__init__()
        self.chain = (chain,)  # not a child
        self.norms = torch.nn.ModuleDict()
        for name in ("input_norm", "hidden_norm", "growth_norm"):
            norm = getattr(chain, name)
            if norm is None:
                continue
            self.norms[name] = torch.nn.ModuleList()
            for i, size in enumerate(norm.sizes):
                own = torch.nn.BatchNorm1d(size, dtype=norm.weight.dtype)
                for tensor in ("weight", "bias", "running_mean", "running_var"):
                    getattr(own, tensor).data.copy_(getattr(norm, tensor)[norm.begins[i] : norm.begins[i + 1]])
                self.norms[name].append(own)

    def forward(self, x):
        (chain,) = self.chain
        for i in range(chain.blocks):
            h = activate(chain.activation, self.norms["input_norm"][i](x)) if chain.pre_activation else x
            if chain.hidden is not None:
                h = activate(chain.activation, self.norms["hidden_norm"][i](F.linear(h, chain.hidden_weight[i])))
            q = F.linear(h, chain.weight[i], chain.bias[i] if chain.pre_activation else None)
            if not chain.pre_activation:
                q = activate(chain.activation, self.norms["growth_norm"][i](q))
            x = torch.cat([x, q], 1)
        return x


@every_kind
@best_kernel
def test_is_the_op_on_its_parameters(kind, name):
    chain, x = nn.DenseChain(10, GROWTH, 3, activation="silu", **kind), torch.randn(6, 10)
    arguments = {"bias": chain.bias, "hidden_weight": chain.hidden_weight, "hidden_bias": chain.hidden_bias}
    arguments |= {"activation": "silu", "pre_activation": kind["pre_activation"]}
    with kernel(name):
        assert torch.equal(chain(x), dense_chain(x, chain.weight, **arguments))
    assert chain.out_features == chain(x).shape[1] == 19


@every_kind
def test_batch_norm_in_training_is_torchs(kind):
    """Outputs, gradients and running statistics, which move exactly once per forward."""
    chain = with_random_norms(nn.DenseChain(10, GROWTH, 3, norm="batch", dtype=torch.float64, **kind))
    expected = BlockByBlock(chain)
    x = torch.randn(7, 10, dtype=torch.float64, requires_grad=True)
    for forwards in (1, 2):
        y, expected_y = chain(x), expected(x)
        torch.testing.assert_close(y, expected_y)
        torch.testing.assert_close(*(torch.autograd.grad(out.sin().sum(), x) for out in (y, expected_y)))
        for name, norms in expected.norms.items():
            norm = getattr(chain, name)
            assert norm.num_batches_tracked == forwards
            torch.testing.assert_close(norm.running_mean, torch.cat([own.running_mean for own in norms]))
            torch.testing.assert_close(norm.running_var, torch.cat([own.running_var for own in norms]))


@every_kind
@best_kernel
def test_batch_norm_in_evaluation_is_folded_into_the_op(kind, name):
    torch.manual_seed(0)
    chain = with_random_norms(nn.DenseChain(10, GROWTH, 3, norm="batch", activation="silu", **kind)).eval()
    expected = BlockByBlock(chain).eval()
    x = torch.randn(7, 10)
    before = copy.deepcopy(chain.state_dict())
    with kernel(name):
        y = chain(x)
        torch.testing.assert_close(y, expected(x))
        gradients = torch.autograd.grad(y.sum(), list(chain.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    for key, value in chain.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", [{}, {"hidden": 32}, {"pre_activation": False}, {"norm": "batch"}], ids=str)
def test_initialisation_keeps_the_variance_at_depth_64(activation, kind):
    """No block's growth is far from the mean square of x."""
    torch.manual_seed(0)
    chain = nn.DenseChain(64, 8, 64, activation=activation, **kind)
    x = torch.randn(256, 64)
    last = chain(x)[:, -64:].square().mean().item()
    assert 0.25 < last < 4, last


@pytest.mark.parametrize("norm", [None, "batch"])
def test_depth_64_trains(norm):
    torch.manual_seed(0)
    chain = nn.DenseChain(8, 4, 64, norm=norm)
    head = torch.nn.Linear(chain.out_features, 2)
    x = torch.randn(128, 8)
    target = torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs()], 1)
    optimizer = torch.optim.Adam([*chain.parameters(), *head.parameters()], 2e-3)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(head(chain(x)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0], losses


@pytest.mark.parametrize("options", [{}, {"hidden": 6, "norm": "batch"}, {"bias": False}], ids=str)
def test_copies_pickles_and_loads(options):
    chain, x = nn.DenseChain(10, GROWTH, 3, **options), torch.randn(6, 10)
    for other in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert torch.equal(other.eval()(x), chain.eval()(x))
    other = nn.DenseChain(10, GROWTH, 3, **options).eval()
    other.load_state_dict(chain.state_dict())
    assert torch.equal(other(x), chain(x))


def test_parameters():
    """Names and shapes are what a checkpoint holds."""
    chain = nn.DenseChain(10, [3, 1], 2, hidden=4)
    assert {name: tuple(p.shape) for name, p in chain.state_dict().items()} == {
        "weight.0": (3, 4), "weight.1": (1, 4), "bias.0": (3,), "bias.1": (1,),
        "hidden_weight.0": (4, 10), "hidden_weight.1": (4, 13), "hidden_bias.0": (4,), "hidden_bias.1": (4,),
    }  # fmt: skip
    assert set(nn.DenseChain(10, 3, 1, bias=False).state_dict()) == {"weight.0"}
    # A batch norm right after a linear map takes its bias's place, and no other's.
    with_norm = nn.DenseChain(10, 3, 1, hidden=4, norm="batch").state_dict()
    assert {name.split(".")[0] for name in with_norm} == {
        "weight",
        "bias",
        "hidden_weight",
        "input_norm",
        "hidden_norm",
    }
    after = nn.DenseChain(10, 3, 1, norm="batch", pre_activation=False).state_dict()
    assert {name.split(".")[0] for name in after} == {"weight", "growth_norm"}


def test_factory_arguments_and_casts():
    chain = nn.DenseChain(10, 3, 2, hidden=4, norm="batch", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in chain.parameters()} == {("meta", torch.bfloat16)}
    chain = chain.to_empty(device="cpu")
    chain.reset_parameters()
    assert chain.eval()(torch.randn(6, 10).bfloat16()).dtype is torch.bfloat16
    assert nn.DenseChain(10, 3, 2).double()(torch.randn(6, 10).double()).dtype is torch.float64


def test_repr():
    text = repr(nn.DenseChain(10, [3, 1], 2, hidden=4)).splitlines()[1].strip()
    assert text == ("in_features=10, growth=[3, 1], blocks=2, hidden=4, activation='relu', "
                    "pre_activation=True, norm=None, bias=True")  # fmt: skip


@pytest.mark.parametrize("norm", [None, "batch"])
def test_compiles_whole(norm):
    chain, x = nn.DenseChain(10, GROWTH, 3, norm=norm), torch.randn(6, 10)
    expected = copy.deepcopy(chain)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(chain, fullgraph=True, backend="aot_eager")(x), expected(x))
    torch.testing.assert_close(torch.compile(chain.eval(), fullgraph=True, backend="aot_eager")(x), expected.eval()(x))


class Square(torch.nn.Module):
    def forward(self, x):
        return x[:, :2].square()


def test_growth_of_any_module():
    block, x = nn.DenseGrowth(Square(), 3, 2), torch.randn(5, 3)
    assert torch.equal(block(x), torch.cat([x, x[:, :2].square()], 1))
    assert block.out_features == 5


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ValueError, lambda: nn.DenseChain(0, 4, 3), "DenseChain: in_features must be at least 1, got 0"),
        (ValueError, lambda: nn.DenseChain(10, -4, 3), "DenseChain: growth must be at least 1, got -4"),
        (ValueError, lambda: nn.DenseChain(10, 4, 0), "DenseChain: blocks must be at least 1, got 0"),
        (ValueError, lambda: nn.DenseChain(10, [4, 0], 2), "DenseChain: growth[1] must be at least 1, got 0"),
        (ValueError, lambda: nn.DenseChain(10, [4], 2), "DenseChain: growth must be an int or 2 of them"),
        (TypeError, lambda: nn.DenseChain(10, "44", 2), "DenseChain: growth must be an int, got str"),
        (TypeError, lambda: nn.DenseChain(10, 4, 2, hidden=[4, 2.0]), "DenseChain: hidden[1] must be an int"),
        (ValueError, lambda: nn.DenseChain(10, 4, 3, activation="elu"), "DenseChain: activation must be one of"),
        (TypeError, lambda: nn.DenseChain(10, 4, 3, bias=None), "DenseChain: bias must be a bool, got None"),
        (TypeError, lambda: nn.DenseGrowth(torch.sin, 3, 3), "DenseGrowth: Q must be a torch.nn.Module, got builtin"),
        (ValueError, lambda: nn.DenseGrowth(Square(), 3, 4)(torch.randn(5, 3)), "DenseGrowth: Q must return [5, 4]"),
        (ValueError, lambda: nn.DenseChain(10, 4, 3)(torch.randn(5, 9)),
         "dense_chain: weight[0] must be [4, 9] to match block 0, which reads 9 features, got weight[0] [4, 10]"),
        (ValueError, lambda: nn.DenseChain(10, 4, 3, norm="batch")(torch.randn(5, 9)), "DenseChain: x must be [n, 10]"),
    ],
    ids=range(13),
)  # fmt: skip
def test_bad_input(error, make, message):
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value).startswith(message)
