"""The suite itself, run by test_bad_inputs.py in processes of their own: python -m bad_inputs.properties NAME CASES."""

import sys
from contextlib import nullcontext
from functools import partial

import torch
from bad_inputs import damage, judge
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fastnest
from fastnest import functional, models, nn, theory
from fastnest.testing import OPS, as_tuple, check_kernels, flat, nudged, small_inputs, unflat

BLOCKS = (*OPS, *nn.__all__)  # what an error may name instead of the network around it
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])


@st.composite
def op_calls(draw, op: str):
    """(arguments, dtype): those of a small case, up to two of them damaged."""
    one, dtype = draw(st.sampled_from(small_inputs(op))), draw(DTYPES)
    leaves = {name: tensor.detach() for name, tensor in flat(one.tensors(dtype)).items()}
    for name in draw(st.lists(st.sampled_from(list(leaves)), max_size=2, unique=True)):
        leaves[name] = draw(damage.damaged(leaves[name]))
    # Statistics of 2^46 rows need no memory that could be refused, only days.
    assume(op != "batch_stats" or getattr(leaves["x"], "numel", int)() < 2**30)
    arguments = {**unflat(leaves), **one.options}
    if draw(st.integers(0, 5)) == 0:
        name = draw(st.sampled_from([*arguments, "activation", "stride", "eps", "pre_activation", "return_features"]))
        if draw(st.booleans()):
            arguments.pop(name, None)
        else:
            arguments[name] = draw(damage.options)
    return arguments, dtype


def results(function, arguments, backend, compute, nudge):
    """Every output, by a backend or as chosen (""), on the arguments as they are, in another dtype, or nudged."""
    rounding = torch.Generator().manual_seed(nudge)

    def moved(tensor):
        if not tensor.is_floating_point():
            return tensor
        return (nudged(tensor, rounding) if nudge else tensor).to(compute or tensor.dtype)

    arguments = torch.utils._pytree.tree_map_only(torch.Tensor, moved, arguments)
    with fastnest.backend(backend) if backend else nullcontext():
        outputs = as_tuple(function(**arguments))
    return {str(i): out for i, out in enumerate(outputs) if isinstance(out, torch.Tensor)}


def check_op(op, call):
    arguments, dtype = call
    function, what = getattr(functional, op), f"{op}(**{judge.said(arguments)})"
    judge.begin(what)
    unchanged = judge.Unchanged(arguments)
    found = judge.outcome(partial(function, **arguments), (op,))
    unchanged.check()
    if isinstance(found, Exception):
        return
    with fastnest.backend("reference"):
        defined = judge.outcome(partial(function, **arguments), (op,))
    assert not isinstance(defined, Exception), f"the kernel takes what the definition does not: {defined}"
    outputs = [out for out in as_tuple(found) if isinstance(out, torch.Tensor)]
    if not all(map(judge.is_plain, [*judge.tensors(arguments), *outputs])) or dtype is torch.float64:
        return
    if fastnest.backends()["cpp"] == "available" and outputs:
        check_kernels(partial(results, function, arguments), [""], dtype, what)


MODULES = {
    "ResidualChain": (nn.ResidualChain, 3),
    "DenseChain": (nn.DenseChain, 3),
    "Bottleneck": (nn.Bottleneck, 2),
    "Bottleneck2d": (nn.Bottleneck2d, 2),
    "BasicBlock2d": (nn.BasicBlock2d, 2),
    "DenseBlock2d": (nn.DenseBlock2d, 3),
    "ResNEst": (partial(models.ResNEst, width=6, bottleneck=2, blocks=2), 2),
    "AResNEst": (partial(models.AResNEst, width=6, bottleneck=2, blocks=2), 2),
    "DenseNEst": (partial(models.DenseNEst, growth=2, blocks=2), 2),
}
KEYWORDS = ("mid", "activation", "pre_activation", "norm", "bias", "last_up", "hidden", "width", "bottleneck", "blocks",
            "growth", "head_norm", "stride", "out_channels", "bn_size", "drop_rate")  # fmt: skip


@st.composite
def makers(draw):
    name = draw(st.sampled_from(list(MODULES)))
    positional = [draw(damage.sizes) for _ in range(MODULES[name][1])]
    keywords = draw(st.lists(st.sampled_from(KEYWORDS), max_size=2, unique=True))
    return name, positional, {key: draw(st.one_of(damage.options, damage.sizes)) for key in keywords}


def check_module(made):
    """An error names the module or the argument, or the module is made, and trains on what it says that it takes."""
    name, positional, keywords = made
    judge.begin(f"{name}(*{positional}, **{keywords})")
    module = judge.outcome(lambda: MODULES[name][0](*positional, **keywords), (name, *keywords))
    if isinstance(module, Exception):
        return
    assert sum(parameter.numel() for parameter in module.parameters()) < 2**30
    x = torch.randn(3, positional[0], *((4, 5) if name.endswith("2d") else ()))
    y = module(x)
    assert y.shape[0] == 3
    y.sum().backward()


CALLED = {
    "ResidualChain": (nn.ResidualChain(5, 3, 2), (4, 5)),
    "ResidualChain batch": (nn.ResidualChain(5, 3, 2, norm="batch"), (4, 5)),
    "DenseChain": (nn.DenseChain(5, 3, 2), (4, 5)),
    "Bottleneck2d": (nn.Bottleneck2d(5, 3), (4, 5, 3, 2)),
    "BasicBlock2d": (nn.BasicBlock2d(5, 3, 4, stride=2), (4, 5, 3, 2)),
    "DenseBlock2d": (nn.DenseBlock2d(5, 3, 2), (4, 5, 3, 2)),
    "ResNEst": (models.ResNEst(5, 2, width=6, bottleneck=2, blocks=2), (4, 5)),
    "DenseNEst": (models.DenseNEst(5, 2, growth=3, blocks=2), (4, 5)),
    "cifar": (models.cifar("resnet_20", "resnest", 3), (2, 3, 8, 8)),
}


@st.composite
def module_calls(draw):
    name = draw(st.sampled_from(list(CALLED)))
    x = torch.randn(CALLED[name][1], generator=torch.Generator().manual_seed(0))
    return name, draw(st.booleans()), draw(damage.damaged(x))


def check_module_call(call):
    """y, or an error that leaves weights and statistics as they were."""
    name, training, x = call
    judge.begin(f"{name} training {training} ({judge.said(x)})")
    module = CALLED[name][0].train(training)
    unchanged = judge.Unchanged((x, list(module.parameters())))
    before = {key: value.clone() for key, value in module.named_buffers()}
    names = (name.split()[0], type(module).__name__, *BLOCKS, "dtype")
    found = judge.outcome(lambda: module(x), names)
    unchanged.check()
    kept = isinstance(found, Exception) or not training
    for key, value in module.named_buffers():
        assert not kept or torch.equal(value, before[key]), f"{key} moved by a call that failed or evaluates"
        with torch.no_grad():
            value.copy_(before[key])


GIVEN_THEORY = {
    "features": (lambda m, x, y: theory.features(m, x)),
    "empirical_risk": theory.empirical_risk,
    "linear_head": (lambda m, x, y: theory.linear_head([x], y)),
    "best_linear_predictor": (lambda m, x, y: theory.best_linear_predictor(x, y)),
    "optimal_prediction": theory.optimal_prediction,
    "risk_gap": theory.risk_gap,
    "block_profile": theory.block_profile,
    "linear_unpredictability": (lambda m, x, y: theory.linear_unpredictability([x, x])),
    "check_assumptions": theory.check_assumptions,
    "critical_point": theory.critical_point,
    "check_convexity": theory.check_convexity,
    "to_resnest": (lambda m, x, y: theory.to_resnest(m)),
    "augment": (lambda m, x, y: theory.augment(m)),
}
RESNEST = models.ResNEst(4, 2, width=12, bottleneck=2, blocks=2, dtype=torch.float64)
DENSENEST = models.DenseNEst(4, 2, growth=2, blocks=2, dtype=torch.float64)


@st.composite
def theory_calls(draw):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 4, generator=generator).double(), torch.randn(20, 2, generator=generator).double()
    model = draw(st.sampled_from([RESNEST, DENSENEST]))
    which = draw(st.sampled_from(["x", "x", "y", "y", "model", "none"]))
    if which == "x":
        x = draw(damage.damaged(x))
    if which == "y":
        y = draw(damage.damaged(y))
    # What is summed in pieces takes any number of rows, and its time: 2^46 of them, all the same, would end some day.
    assume(all(not isinstance(one, torch.Tensor) or one.numel() < 2**24 for one in (x, y)))
    if which == "model":
        model = draw(st.sampled_from([None, "model", torch.nn.Linear(4, 2).double(), torch.nn.ReLU(), lambda x: x]))
    return draw(st.sampled_from(list(GIVEN_THEORY))), model, x, y


def check_theory(call):
    name, model, x, y = call
    judge.begin(f"theory.{name}({model}, {judge.said(x)}, {judge.said(y)})")
    weights = list(model.parameters()) if isinstance(model, torch.nn.Module) else []
    unchanged = judge.Unchanged((x, y, weights))
    names = (name, "model", "ResNEst", "DenseNEst", *BLOCKS, "dtype", "mat1")
    judge.outcome(lambda: GIVEN_THEORY[name](model, x, y), names)
    unchanged.check()


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Bottleneck2d(5, 3)

    def forward(self, x):
        return self.block(x)


@st.composite
def convert_calls(draw):
    model = draw(st.sampled_from([Plain(), nn.DenseChain(5, 3, 2), None, "model", 3, torch.nn.ReLU, lambda x: x]))
    x = torch.randn(2, 5, 4, 3) if isinstance(model, Plain) else torch.randn(2, 5)
    return draw(st.sampled_from(["accelerate", "restore", "explain"])), model, draw(damage.damaged(x))


def check_convert(call):
    name, model, x = call
    judge.begin(f"{name}({model}, {judge.said(x)})")
    inputs = (x,) if name == "explain" else ()
    unchanged = judge.Unchanged((x, list(model.parameters()) if isinstance(model, torch.nn.Module) else []))
    names = (name, *BLOCKS, "dtype")
    judge.outcome(lambda: getattr(fastnest, name)(model, *inputs), names)
    unchanged.check()


PROPERTIES = {op: (op_calls(op), partial(check_op, op)) for op in OPS} | {
    "making modules": (makers(), check_module),
    "calling modules": (module_calls(), check_module_call),
    "theory": (theory_calls(), check_theory),
    "convert": (convert_calls(), check_convert),
}


def main(name: str, cases: int, repeatable: bool) -> None:
    strategy, check = PROPERTIES[name]
    total = 0

    @settings(
        max_examples=cases,
        derandomize=repeatable,
        database=None,
        deadline=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def checked(call):
        nonlocal total
        total += 1
        check(call)

    try:
        checked()
    finally:
        judge.end(total, name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "repeatable")
