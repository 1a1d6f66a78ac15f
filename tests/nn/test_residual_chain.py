import copy
import math
import pickle

import pytest
import torch
from marks import best_kernel
from nn.norms import with_random_norms
from torch.nn import functional as F

from fastnest import nn
from fastnest.functional import residual_chain
from fastnest.reference.activation import ACTIVATIONS, activate
from fastnest.testing import kernel

KINDS = [{"mid": mid, "pre_activation": pre} for mid in (False, True) for pre in (False, True)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


class BlockByBlock(torch.nn.Module):
    """A ResidualChain with norm="batch", by torch's own BatchNorm1d, with its parameters' values."""

    def __init__(self, chain):
        super().__init__()
        self.activation, self.blocks = chain.activation, torch.nn.ModuleList()

        def batch_norm(norm, i):
            own = torch.nn.BatchNorm1d(norm.sizes[i], dtype=norm.weight.dtype)
            begin, end = norm.begins[i : i + 2]
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(own, name).data.copy_(getattr(norm, name)[begin:end])
            return own

        for i in range(chain.blocks):
            block = torch.nn.ModuleDict()
            for name in ("width_norm", "down_norm", "mid_norm"):
                if getattr(chain, name) is not None:
                    block[name] = batch_norm(getattr(chain, name), i)
            block.weights = [None if w is None else w.detach()[i] for w in (chain.down, chain.mid, chain.up)]
            self.blocks.append(block)

    def forward(self, x):
        features = []
        for block in self.blocks:
            down, mid, up = block.weights
            v = activate(self.activation, block["width_norm"](x)) if "width_norm" in block else x
            v = activate(self.activation, block["down_norm"](F.linear(v, down)))
            if mid is not None:
                v = activate(self.activation, block["mid_norm"](F.linear(v, mid)))
            features.append(v)
            x = x + F.linear(v, up)
        return x, torch.stack(features, 1)


@every_kind
@best_kernel
def test_is_the_op_on_its_parameters(kind, name):
    chain, x = nn.ResidualChain(10, 4, 3, activation="silu", **kind), torch.randn(6, 10)
    arguments = {"down_bias": chain.down_bias, "mid": chain.mid, "mid_bias": chain.mid_bias}
    with kernel(name):
        y, features = chain(x, return_features=True)
        expected = residual_chain(x, chain.down, chain.up, **arguments, activation="silu", return_features=True,
                                  pre_activation=kind["pre_activation"])  # fmt: skip
        assert torch.equal(chain(x), y)
    assert torch.equal(y, expected[0])
    assert torch.equal(features, expected[1])
    assert features.shape == (6, 3, 4)


@every_kind
def test_batch_norm_in_training_is_torchs(kind):
    """Outputs, gradients and running statistics, which move exactly once per forward."""
    chain = with_random_norms(nn.ResidualChain(10, 4, 3, norm="batch", dtype=torch.float64, **kind))
    expected = BlockByBlock(chain)
    x = torch.randn(7, 10, dtype=torch.float64, requires_grad=True)
    for forwards in (1, 2):
        y, features = chain(x, return_features=True)
        expected_y, expected_features = expected(x)
        torch.testing.assert_close((y, features), (expected_y, expected_features))
        torch.testing.assert_close(*(torch.autograd.grad(out.sin().sum(), x) for out in (y, expected_y)))
        for name in ("width_norm", "down_norm", "mid_norm"):
            norm = getattr(chain, name)
            if norm is not None:
                assert norm.num_batches_tracked == forwards
                for i, block in enumerate(expected.blocks):
                    begin, end = norm.begins[i : i + 2]
                    torch.testing.assert_close(norm.running_mean[begin:end], block[name].running_mean)
                    torch.testing.assert_close(norm.running_var[begin:end], block[name].running_var)


@every_kind
@best_kernel
def test_batch_norm_in_evaluation_is_folded_into_the_op(kind, name):
    torch.manual_seed(0)
    chain = with_random_norms(nn.ResidualChain(10, 4, 3, norm="batch", activation="silu", **kind)).eval()
    expected = BlockByBlock(chain).eval()
    x = torch.randn(7, 10)
    before = copy.deepcopy(chain.state_dict())
    with kernel(name):
        y, features = chain(x, return_features=True)
        torch.testing.assert_close((y, features), expected(x))
        gradients = torch.autograd.grad(y.sum(), list(chain.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    for key, value in chain.state_dict().items():
        assert torch.equal(value, before[key])


def test_batch_norm_of_few_rows():
    """As torch has it in training, where one row has no variance; evaluation takes any number."""
    chain = nn.ResidualChain(10, 4, 2, norm="batch")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        chain(torch.randn(1, 10))
    assert chain(torch.randn(0, 10)).shape == (0, 10)
    chain = nn.ResidualChain(10, 4, 2, norm="batch").eval()
    for n in (0, 1):
        x = torch.randn(n, 10, requires_grad=True)
        chain(x).sum().backward()
        assert x.grad.shape == (n, 10)


def test_last_up():
    """Without it the chain ends in the features of its last block; y is the chain one block shorter."""
    for norm in (None, "batch"):
        chain, x = nn.ResidualChain(10, 4, 3, norm=norm, last_up=False), torch.randn(6, 10)
        assert chain.up.shape == (2, 10, 4)
        y, features = chain(x, return_features=True)
        assert features.shape == (6, 3, 4)
        torch.testing.assert_close(y, chain(x))
        torch.testing.assert_close(y, x + torch.einsum("nlk,lmk->nm", features[:, :2], chain.up))
    assert nn.ResidualChain(10, 4, 1, last_up=False)(x, return_features=True)[1].shape == (6, 1, 4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", [*KINDS, {"norm": "batch"}], ids=str)
def test_initialisation_keeps_the_variance_at_depth_64(activation, kind):
    """Up to e times that of x where branches and stream are uncorrelated, which not every activation makes them."""
    torch.manual_seed(0)
    chain = nn.ResidualChain(64, 16, 64, activation=activation, **kind)
    x = torch.randn(256, 64)
    ratio = (chain(x).var() / x.var()).item()
    assert 0.5 < ratio < 2 * math.e, ratio


@pytest.mark.parametrize("norm", [None, "batch"])
def test_depth_64_trains(norm):
    torch.manual_seed(0)
    chain = nn.ResidualChain(16, 8, 64, norm=norm)
    x = torch.randn(128, 16)
    target = torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs()], 1)
    optimizer = torch.optim.Adam(chain.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(chain(x)[:, :2], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0], losses


@pytest.mark.parametrize("options", [{}, {"mid": True, "norm": "batch"}, {"bias": False, "last_up": False}], ids=str)
def test_copies_pickles_and_loads(options):
    chain, x = nn.ResidualChain(10, 4, 3, **options), torch.randn(6, 10)
    for other in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert torch.equal(other.eval()(x), chain.eval()(x))
    other = nn.ResidualChain(10, 4, 3, **options).eval()
    other.load_state_dict(chain.state_dict())
    assert torch.equal(other(x), chain(x))


def test_parameters():
    """Names and shapes are what a checkpoint holds."""
    chain = nn.ResidualChain(10, 4, 3, mid=True)
    assert {name: tuple(p.shape) for name, p in chain.state_dict().items()} == {
        "down": (3, 4, 10), "down_bias": (3, 4), "mid": (3, 4, 4), "mid_bias": (3, 4), "up": (3, 10, 4),
    }  # fmt: skip
    assert set(nn.ResidualChain(10, 4, 3, bias=False).state_dict()) == {"down", "up"}
    norms = {name.split(".")[0] for name in nn.ResidualChain(10, 4, 3, norm="batch").state_dict()}
    assert norms == {"down", "up", "width_norm", "down_norm"}


def test_factory_arguments_and_casts():
    chain = nn.ResidualChain(10, 4, 3, mid=True, norm="batch", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in chain.parameters()} == {("meta", torch.bfloat16)}
    chain = chain.to_empty(device="cpu")
    chain.reset_parameters()
    assert chain.eval()(torch.randn(6, 10).bfloat16()).dtype is torch.bfloat16
    assert nn.ResidualChain(10, 4, 3, norm="batch").double()(torch.randn(6, 10).double()).dtype is torch.float64


def test_repr():
    text = repr(nn.ResidualChain(10, 4, 3, activation="silu"))
    assert text == ("ResidualChain(width=10, bottleneck=4, blocks=3, mid=False, activation='silu', "
                    "pre_activation=True, norm=None, bias=True)")  # fmt: skip
    assert "last_up=False" in repr(nn.ResidualChain(10, 4, 3, last_up=False))


def test_bottleneck_is_a_chain_of_one():
    block, x = nn.Bottleneck(10, 4, mid=True, activation="tanh"), torch.randn(6, 10)
    chain = nn.ResidualChain(10, 4, 1, mid=True, activation="tanh")
    chain.load_state_dict(block.state_dict())
    assert torch.equal(block(x), chain(x))


@pytest.mark.parametrize("norm", [None, "batch"])
def test_compiles_whole(norm):
    chain, x = nn.ResidualChain(10, 4, 3, norm=norm), torch.randn(6, 10)
    expected = copy.deepcopy(chain)
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected(x))
    compiled(x).sum().backward()
    expected(x).sum().backward()
    for actual, wanted in zip(chain.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, wanted.grad)
    for actual, wanted in zip(chain.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(actual, wanted)
    torch.testing.assert_close(torch.compile(chain.eval(), fullgraph=True, backend="aot_eager")(x), expected.eval()(x))


class Rotated(torch.nn.Module):
    def forward(self, x):
        return x[:, [2, 0, 1]].sin()


def test_residual_around_any_module():
    block, x = nn.Residual(Rotated(), 3, 3), torch.randn(5, 3)
    y, v = block(x, return_features=True)
    torch.testing.assert_close(v, x[:, [2, 0, 1]].sin())
    torch.testing.assert_close(y, x + v @ block.up.t())
    assert torch.equal(block(x), y)
    last = nn.Residual(Rotated(), 3, 3, last_up=False)
    assert not list(last.parameters())
    assert torch.equal(last(x), x)


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ValueError, lambda: nn.ResidualChain(0, 4, 3), "ResidualChain: width must be at least 1, got 0"),
        (ValueError, lambda: nn.ResidualChain(10, -4, 3), "ResidualChain: bottleneck must be at least 1, got -4"),
        (ValueError, lambda: nn.ResidualChain(10, 4, 0), "ResidualChain: blocks must be at least 1, got 0"),
        (TypeError, lambda: nn.ResidualChain(10, 4.0, 3), "ResidualChain: bottleneck must be an int, got float"),
        (ValueError, lambda: nn.ResidualChain(10, 4, 3, activation="elu"), "ResidualChain: activation must be one of"),
        (ValueError, lambda: nn.ResidualChain(10, 4, 3, norm="layer"), "ResidualChain: norm must be None or 'batch'"),
        (ValueError, lambda: nn.ResidualChain(10, 4, 2**70), "ResidualChain: blocks must be less than 2^63, got 118"),
        (ValueError, lambda: nn.ResidualChain(10, 4, 3, norm="batch")(torch.randn(5, 10, device="meta")),
         "ResidualChain: x must be on cpu as the weights are, got meta"),
        (TypeError, lambda: nn.ResidualChain(10, 4, 3, mid="no"), "ResidualChain: mid must be a bool, got 'no'"),
        (ValueError, lambda: nn.Bottleneck(10, 0), "Bottleneck: bottleneck must be at least 1, got 0"),
        (TypeError, lambda: nn.Residual(torch.sin, 3, 3), "Residual: G must be a torch.nn.Module, got builtin"),
        (ValueError, lambda: nn.Residual(Rotated(), 3, 4)(torch.randn(5, 3)), "Residual: G must return [5, 4]"),
        (ValueError, lambda: nn.ResidualChain(10, 4, 3)(torch.randn(5, 9)),
         "residual_chain: x must have 10 features to match down [3, 4, 10], got x [5, 9]"),
        (ValueError, lambda: nn.ResidualChain(10, 4, 3, norm="batch")(torch.randn(5, 9)), "ResidualChain: x must"),
    ],
    ids=range(14),
)  # fmt: skip
def test_bad_input(error, make, message):
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value).startswith(message)


def test_statistics_do_not_move_for_a_call_that_fails():
    chain = nn.ResidualChain(5, 3, 2, norm="batch").train()
    before = copy.deepcopy(chain.state_dict())
    with pytest.raises(
        TypeError, match=r"ResidualChain: x must be torch.float32 as the weights are, got torch.float64"
    ):
        chain(torch.ones(4, 5, dtype=torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in chain.state_dict().items())


def test_a_batch_that_torch_refuses_is_not_counted():
    chain = nn.ResidualChain(10, 4, 2, norm="batch")
    with pytest.raises(RuntimeError):
        chain(torch.randn(5, 10).to_sparse())
    assert all(norm.num_batches_tracked == 0 for norm in (chain.width_norm, chain.down_norm))
