"""What users do to the norms and weights inside fastnest's chains on rows: they are what counts.

One line a situation. Expected is a chain by its definition, with torch's own batch norm.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import fastnest
from fastnest import nn as own

CHAINS = {
    "ResidualChain": (lambda: own.ResidualChain(6, 4, 3, norm="batch"), "width_norm", "down_norm"),
    "DenseChain": (lambda: own.DenseChain(6, 4, 3, hidden=5, norm="batch"), "input_norm", "hidden_norm"),
}


class Doubled(nn.Module):
    """In a norm's place, called with the rows and the number of the block."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, i):
        return self.gain * x


def by_definition(chain, x, norm):
    """norm(values, name, i): what stands before each activation."""
    for i in range(chain.blocks):
        if isinstance(chain, own.ResidualChain):
            v = norm(F.linear(norm(x, "width_norm", i).relu(), chain.down[i]), "down_norm", i).relu()
            x = x + F.linear(v, chain.up[i])
        else:
            h = norm(F.linear(norm(x, "input_norm", i).relu(), chain.hidden_weight[i]), "hidden_norm", i).relu()
            x = torch.cat([x, F.linear(h, chain.weight[i], None if chain.bias is None else chain.bias[i])], 1)
    return x


def batch_norm(chain, x, name, i, training):
    norm = chain.get_submodule(name)
    begin, end = norm.begins[i : i + 2]
    mean, var = (t[begin:end].clone() for t in (norm.running_mean, norm.running_var))
    return F.batch_norm(x, mean, var, norm.weight[begin:end], norm.bias[begin:end], training, norm.momentum, norm.eps)


# What is done to the first norm of a chain in evaluation, how that norm then computes (a function of chain, rows, name,
# number), and why the chain runs block by block.
CHANGES = {
    "forward hook": (
        lambda norm: norm.register_forward_hook(lambda module, args, y: 2 * y),
        lambda *args: 2 * batch_norm(*args, training=False),
        "hooks on",
    ),
    "hook before": (
        lambda norm: norm.register_forward_pre_hook(lambda module, args: (args[0] + 1, args[1])),
        lambda chain, x, name, i: batch_norm(chain, x + 1, name, i, training=False),
        "hooks on",
    ),
    "in training": (
        lambda norm: norm.train(),
        lambda *args: batch_norm(*args, training=True),
        "batch norm in training",
    ),
    "another module": (
        Doubled,
        lambda chain, x, name, i: chain.get_submodule(name).gain * x,
        "is Doubled, not ChainNorm",
    ),
    "weight norm": (
        lambda norm: parametrizations.weight_norm(norm, dim=None),
        lambda *args: batch_norm(*args, training=False),
        "is ParametrizedChainNorm, not ChainNorm",
    ),
    "pruning": (
        lambda norm: prune.l1_unstructured(norm, "weight", 0.5),
        lambda *args: batch_norm(*args, training=False),
        "hooks on",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", CHAINS)
def test_norms_are_what_counts(name, change):
    torch.manual_seed(0)
    make, first, _ = CHAINS[name]
    chain, x = make(), torch.randn(7, 6)
    for _ in range(3):
        chain(torch.randn(7, 6))  # statistics as after some training
    chain.eval()
    change, computed, reason = CHANGES[change]
    if isinstance(change, type):
        chain.set_submodule(first, change())
    else:
        change(chain.get_submodule(first))
    (row,) = fastnest.explain(chain, x).rows
    assert (row.runs, reason in row.reason) == ("torch, block by block", True), row

    def norm(values, name, i):
        return computed(chain, values, name, i) if name == first else batch_norm(chain, values, name, i, training=False)

    y, expected = chain(x), by_definition(chain, x, norm)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    along, parameters = torch.randn_like(y), list(chain.parameters())
    found = torch.autograd.grad(
        y, parameters, along, allow_unused=True, retain_graph=True
    )  # a pruned weight is in both
    wanted = torch.autograd.grad(expected, parameters, along, allow_unused=True)
    assert all((mine is None) == (theirs is None) for mine, theirs in zip(found, wanted, strict=True))
    torch.testing.assert_close(
        [g for g in found if g is not None], [g for g in wanted if g is not None], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", CHAINS)
def test_frozen_norms_in_training(name):
    """They normalise with their running statistics, and keep them."""
    make, first, second = CHAINS[name]
    chain, x = make(), torch.randn(7, 6)
    for _ in range(3):
        chain(torch.randn(7, 6))
    chain.get_submodule(first).eval()
    before = copy.deepcopy(chain.state_dict())
    expected = by_definition(chain, x, lambda v, norm, i: batch_norm(chain, v, norm, i, training=norm != first))
    torch.testing.assert_close(chain(x), expected, rtol=1e-5, atol=1e-5)
    after = chain.state_dict()
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(after[f"{first}.{key}"], before[f"{first}.{key}"])
        assert not torch.equal(after[f"{second}.{key}"], before[f"{second}.{key}"])


@pytest.mark.parametrize("name", CHAINS)
def test_what_cannot_run_names_the_norm(name):
    make, first, _ = CHAINS[name]
    chain = make().eval()
    chain.set_submodule(first, nn.LayerNorm(6))
    with pytest.raises(TypeError, match=rf"{name}: {first} \(LayerNorm\): .*takes 2 positional arguments but 3"):
        chain(torch.randn(7, 6))


# A weight of a chain, computed anew at every call.
WEIGHTS = {
    "ResidualChain, pruned": (
        lambda: own.ResidualChain(6, 4, 3),
        lambda chain: prune.random_unstructured(chain, "up", 0.5),
    ),
    "ResidualChain, weight norm": (
        lambda: own.ResidualChain(6, 4, 3),
        lambda chain: parametrizations.weight_norm(chain, "down"),
    ),
    "DenseChain, pruned": (
        lambda: own.DenseChain(6, 4, 3),
        lambda chain: prune.random_unstructured(chain.weight, "1", 0.5),
    ),
    "DenseChain, weight norm": (
        lambda: own.DenseChain(6, 4, 3),
        lambda chain: parametrizations.weight_norm(chain.weight, "1"),
    ),
}


@pytest.mark.parametrize("situation", WEIGHTS)
def test_weights_are_what_counts(situation):
    make, change = WEIGHTS[situation]
    chain, x = make(), torch.randn(7, 6)
    change(chain)
    y = chain(x)
    for i in range(3):
        if isinstance(chain, own.ResidualChain):
            x = x + F.linear(F.linear(x.relu(), chain.down[i], chain.down_bias[i]).relu(), chain.up[i])
        else:
            x = torch.cat([x, F.linear(x.relu(), chain.weight[i], chain.bias[i])], 1)
    torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in chain.parameters())
