"""explain of modules of fastnest's own."""

import pytest
import torch

import fastnest
from fastnest import _backend, models, nn

FUSED = "cpp" if _backend.CPP_IS_BUILT else "reference"


def rows(model, *inputs):
    return [(row.module, row.kind, row.runs, row.backend) for row in fastnest.explain(model, *inputs).rows]


def test_chains():
    net = torch.nn.Sequential(nn.ResidualChain(5, 4, 2), torch.nn.ReLU(), nn.DenseChain(5, 3, 2))
    assert rows(net, torch.randn(3, 5)) == [
        ("0", "ResidualChain", "residual_chain float32", FUSED),
        ("2", "DenseChain", "dense_chain float32", FUSED),
    ]
    assert rows(nn.Bottleneck(5, 4), torch.randn(3, 5)) == [("(model)", "Bottleneck", "residual_chain float32", FUSED)]


def test_reasons():
    chain, x = nn.ResidualChain(5, 4, 2), torch.randn(3, 5)
    (row,) = fastnest.explain(chain, x).rows
    assert row.reason == "" if _backend.CPP_IS_BUILT else "not built" in row.reason
    with fastnest.backend("reference"):
        (row,) = fastnest.explain(chain, x).rows
    assert (row.backend, row.reason) == ("reference", "forced by fastnest.backend('reference')")
    (row,) = fastnest.explain(nn.ResidualChain(5, 4, 2, dtype=torch.float64), x.double()).rows
    assert (row.runs, row.backend) == ("residual_chain float64", "reference")
    with torch.autocast("cpu", torch.bfloat16):
        (row,) = fastnest.explain(chain, x).rows
    assert (row.runs, row.backend) == ("residual_chain bfloat16", FUSED)


def test_batch_norm_in_training_and_evaluation():
    """Calling it moves neither statistics nor the mode, nor the random state."""
    net = torch.nn.Sequential(torch.nn.Dropout(), models.ResNEst(5, 2, width=8, bottleneck=4, blocks=2, norm="batch",
                                                                head_norm=True))  # fmt: skip
    x = torch.randn(6, 5)
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    (row,) = fastnest.explain(net, x).rows
    assert (row.module, row.backend, row.runs) == ("1.chain", "torch", "torch, block by block")
    assert "eval() folds it" in row.reason
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert rows(net.eval(), x) == [("1.chain", "ResidualChain", "residual_chain float32", FUSED)]


def test_modules_of_ones_own():
    net = models.ResNEst(5, 2, width=8, blocks=[torch.nn.Linear(8, 3), nn.ResidualChain(8, 4, 2)])
    found = fastnest.explain(net, torch.randn(6, 5)).rows
    assert [(row.module, row.backend) for row in found] == [
        ("chain.0", "torch"),
        ("chain.1.block", FUSED),
        ("chain.1", "torch"),
    ]
    assert found[0].reason == "Linear is a module of its own: left alone, called as it is"


def test_compiled_model():
    net = torch.compile(models.DenseNEst(5, 2, growth=4, blocks=2), backend="eager")
    assert [row[1:] for row in rows(net, torch.randn(6, 5))] == [("DenseChain", "dense_chain float32", FUSED)]


def test_prints_a_table():
    text = str(
        fastnest.explain(models.ResNEst(5, 2, width=8, bottleneck=4, blocks=2).double(), torch.randn(6, 5).double())
    )
    header, line, row = text.splitlines()
    assert header.split() == ["module", "kind", "runs", "backend", "why"]
    assert set(line) == {"-"}
    assert row.startswith("chain   ResidualChain  residual_chain float64  reference  ")
    assert str(fastnest.explain(torch.nn.Linear(5, 2), torch.randn(6, 5))).startswith("no fastnest chain or block ran")


def test_a_model_that_raises_leaves_nothing_behind():
    net = models.ResNEst(5, 2, width=8, bottleneck=4, blocks=2)
    with pytest.raises(RuntimeError):
        fastnest.explain(net, torch.randn(6, 4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    with pytest.raises(TypeError, match=r"explain: model must be a torch\.nn\.Module, got function"):
        fastnest.explain(rows, torch.randn(6, 4))
