"""Situations that autograd, tracing and torch.nn.DataParallel bring an op or a module into: one line each."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from marks import best_kernel
from situations.replicas import replica
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from fastnest import functional, models, nn
from fastnest.testing import OPS, as_tuple, assert_close, expect, flat, kernel, kernels, small_inputs, unflat

FIRST = {op: small_inputs(op)[0] for op in OPS}
# As chosen, and by the definition: where a kernel that is forced cannot follow.
chosen_or_reference = pytest.mark.parametrize("name", ["chosen", "reference"])


def forcing(name):
    return nullcontext() if name == "chosen" else kernel(name)


def rows(n):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(n))


def images(n):
    return torch.randn(n, 5, 6, 6, generator=torch.Generator().manual_seed(n))


REPLICATED = {
    "ResidualChain": partial(nn.ResidualChain, 5, 4, 3),
    "ResidualChain mid norm": partial(nn.ResidualChain, 5, 4, 3, mid=True, norm="batch"),
    "DenseChain": partial(nn.DenseChain, 5, 4, 3),
    "DenseChain no bias": partial(nn.DenseChain, 5, 4, 3, bias=False),
    "DenseChain hidden norm": partial(nn.DenseChain, 5, 4, 3, hidden=6, norm="batch"),
    "DenseChain post norm": partial(nn.DenseChain, 5, 4, 3, pre_activation=False, norm="batch"),
    "ResNEst": partial(models.ResNEst, 5, 3, width=8, bottleneck=4, blocks=3),
    "BN-ResNEst": partial(models.ResNEst, 5, 3, width=8, bottleneck=4, blocks=3, head_norm=True, norm="batch"),
    "AResNEst": partial(models.AResNEst, 5, 3, width=8, bottleneck=4, blocks=3),
    "DenseNEst": partial(models.DenseNEst, 5, 3, growth=4, blocks=3),
    "DenseNEst hidden": partial(models.DenseNEst, 5, 3, growth=4, blocks=3, hidden=6),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", REPLICATED.values(), ids=REPLICATED)
@chosen_or_reference
def test_replicas_of_data_parallel(make, training, name):
    """They compute what the module does, and their gradients reach its parameters."""
    module, x = make().train(training), rows(6)
    with forcing(name):
        results = [one(x) for one in (replica(module), module)]
        parameters = [one for one in module.parameters() if one.requires_grad]
        gradients = [torch.autograd.grad(y.sin().sum(), parameters, materialize_grads=True) for y in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


def dense_chain(x):
    weights = [torch.ones(3, 5), torch.full((2, 8), 0.5)]
    norms = [[torch.full((width,), 0.1) for width in (5, 8)] for _ in range(2)]
    return functional.dense_chain(x, weights, scale=norms[0], shift=norms[1])


def dense_block2d(x):
    vectors = [torch.ones(5), torch.ones(8)]
    conv2 = [torch.full((3, 5, 3, 3), 0.1), torch.full((2, 8, 3, 3), 0.1)]
    return functional.dense_block2d(x, conv2, vectors, vectors)


TRACED = {
    "dense_chain": (lambda: dense_chain, rows),
    "dense_block2d": (lambda: dense_block2d, images),
    "batch_stats of rows": (lambda: functional.batch_stats, rows),
    "batch_stats of images": (lambda: functional.batch_stats, images),
    "ResidualChain": (partial(nn.ResidualChain, 5, 4, 3, mid=True), rows),
    "ResidualChain norm": (partial(nn.ResidualChain, 5, 4, 3, norm="batch"), rows),
    "DenseChain": (partial(nn.DenseChain, 5, 4, 3), rows),
    "DenseChain hidden norm": (partial(nn.DenseChain, 5, 4, 3, hidden=6, norm="batch"), rows),
    "ResNEst": (partial(models.ResNEst, 5, 3, width=8, bottleneck=4, blocks=3), rows),
    "AResNEst": (partial(models.AResNEst, 5, 3, width=8, bottleneck=4, blocks=3), rows),
    "DenseNEst": (partial(models.DenseNEst, 5, 3, growth=4, blocks=3), rows),
    "Bottleneck2d": (partial(nn.Bottleneck2d, 5, 4), images),
    "BasicBlock2d": (partial(nn.BasicBlock2d, 5, 4, 7, stride=2), images),
    "DenseBlock2d": (partial(nn.DenseBlock2d, 5, 4, 2), images),
    "DenseBlock2d no bottleneck": (partial(nn.DenseBlock2d, 5, 4, 2, bottleneck=False), images),
    "densenest": (partial(models.densenest, "bc_100_12", 10), lambda n: images(n)[:, :3].repeat(1, 1, 3, 3)),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("situation", TRACED)
@chosen_or_reference
def test_traced(situation, training, name):
    """torch.jit.trace of a function or a module, which is right for another number of rows or images too."""
    make, data = TRACED[situation]
    function = make()
    if isinstance(function, torch.nn.Module):
        function.train(training)
    with forcing(name):
        # Training changes running statistics, so that a second run would be compared with another state.
        traced = torch.jit.trace(function, (data(6),), check_trace=not training)
        for n in (6, 9):
            torch.testing.assert_close(traced(data(n)), function(data(n)), rtol=1e-4, atol=1e-5)


CHANGES = {
    "relu_": torch.relu_,
    "+=": lambda y: y.add_(1),
    "one column": lambda y: y[..., :1].mul_(3),
    "detached": lambda y: y.detach().mul_(2),
}
# Which of the outputs of a case is changed. A kernel's backward does without it, or computes it again.
CHANGEABLE = {
    "residual_chain": (small_inputs("residual_chain")[2], 0),
    "residual_chain mid": (small_inputs("residual_chain")[0], 0),
    "residual_chain features": (small_inputs("residual_chain")[1], 1),
    "residual_chain gelu": (small_inputs("residual_chain")[5], 0),
    "batch_stats mean": (FIRST["batch_stats"], 0),
    "batch_stats variance": (FIRST["batch_stats"], 1),
    "bottleneck2d": (FIRST["bottleneck2d"], 0),
    "bottleneck2d features": (small_inputs("bottleneck2d")[2], 1),
    "basic_block2d": (FIRST["basic_block2d"], 0),
    "basic_block2d features": (small_inputs("basic_block2d")[2], 1),
}


def gradients_after(change, one, output, dtype=torch.float32, backwards=1):
    """The gradients of a case one of whose outputs goes through change(output)."""
    leaves = flat(one.tensors(dtype))
    outputs = list(as_tuple(one.call(unflat(leaves))))
    outputs[output] = change(outputs[output])
    loss = sum(out.sin().sum() for out in outputs)
    learned = [leaf for leaf in leaves.values() if leaf.requires_grad]
    for _ in range(backwards):
        found = torch.autograd.grad(loss, learned, retain_graph=True, materialize_grads=True)
    return found


def in_place(change, y):
    change(y)
    return y


def on_a_clone(change, y):
    return in_place(change, y.clone())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("one", "output"), CHANGEABLE.values(), ids=CHANGEABLE)
@pytest.mark.parametrize("name", kernels()[:1])
def test_results_may_be_changed_in_place(one, output, change, dtype, name):
    """The gradients have the bits of those that a changed clone has, also in a second backward."""
    with kernel(name):
        expected = gradients_after(partial(on_a_clone, change), one, output, dtype)
        for backwards in (1, 2):
            actual = gradients_after(partial(in_place, change), one, output, dtype, backwards)
            assert all(map(torch.equal, actual, expected))


def hooked(hooks, function, *args):
    with hooks():
        return function(*args)


SAVED_ELSEWHERE = {
    "as it is": partial(hooked, partial(torch.autograd.graph.saved_tensors_hooks, lambda t: t, lambda t: t)),
    "save_on_cpu": partial(hooked, torch.autograd.graph.save_on_cpu),
    "copied": partial(hooked, partial(torch.autograd.graph.saved_tensors_hooks, torch.clone, lambda t: t.mul_(1))),
    "checkpointed": partial(checkpoint, use_reentrant=False),
}


@pytest.mark.parametrize("call", SAVED_ELSEWHERE.values(), ids=SAVED_ELSEWHERE)
@pytest.mark.parametrize("op", OPS)
@best_kernel
def test_results_that_hooks_pack_may_be_changed_in_place(op, call, name):
    """torch compares no versions then: a gradient of the changed result would be wrong without an error."""
    leaves = flat(FIRST[op].tensors(torch.float32))

    def first(leaves, relu):
        return relu(as_tuple(FIRST[op].call(unflat(leaves)))[0])

    with kernel(name):
        results = [call(first, leaves, torch.relu_), first(leaves, torch.relu)]
        gradients = [torch.autograd.grad(y.sin().sum(), list(leaves.values())) for y in results]
    torch.testing.assert_close(*gradients)


def argument(leaves, outputs, i):
    return list(leaves.values())[i]


def result(leaves, outputs):
    return outputs[0]


# What a backward cannot do without: the one buffer of the dense ops, and every op's arguments.
NEEDED = {
    "dense_chain": (FIRST["dense_chain"], result),
    "dense_chain hidden": (small_inputs("dense_chain")[2], result),
    "dense_block2d": (FIRST["dense_block2d"], result),
    "dense_block2d no bottleneck": (small_inputs("dense_block2d")[1], result),
    "x of residual_chain": (FIRST["residual_chain"], partial(argument, i=0)),
    "x of batch_stats": (FIRST["batch_stats"], partial(argument, i=0)),
    "x of bottleneck2d": (FIRST["bottleneck2d"], partial(argument, i=0)),
    "x of basic_block2d": (FIRST["basic_block2d"], partial(argument, i=0)),
    "a weight of residual_chain": (FIRST["residual_chain"], partial(argument, i=1)),
    "a weight of dense_chain": (FIRST["dense_chain"], partial(argument, i=1)),
    "a weight of dense_block2d": (FIRST["dense_block2d"], partial(argument, i=1)),
    "a weight of bottleneck2d": (FIRST["bottleneck2d"], partial(argument, i=1)),
    "a weight of basic_block2d": (FIRST["basic_block2d"], partial(argument, i=1)),
}


@pytest.mark.parametrize("create_graph", [False, True], ids=["backward", "double backward"])
@pytest.mark.parametrize(("one", "what"), NEEDED.values(), ids=NEEDED)
@pytest.mark.parametrize("name", kernels()[:1])
def test_what_must_not_be_changed_in_place(one, what, create_graph, name):
    """The error names the op and the remedy, and comes from torch's, which has the tensor."""
    leaves = flat(one.tensors(torch.float32))
    with kernel(name):
        outputs = as_tuple(one.call(unflat(leaves)))
    what(leaves, outputs).detach().mul_(2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"{one.op}: its result or an argument.* change a clone of it") as raised:
            torch.autograd.grad(sum(out.sum() for out in outputs), leaves["x"], create_graph=create_graph)
        assert "modified by an inplace operation" in str(raised.value.__cause__)


@pytest.mark.parametrize("name", kernels()[:1])
def test_second_derivatives_of_a_changed_mean(name):
    """By the definition, which computes the mean again with a graph."""

    def second(change):
        leaves = flat(FIRST["batch_stats"].tensors(torch.float32))
        mean, var = FIRST["batch_stats"].call(leaves)
        mean = change(mean)
        (first,) = torch.autograd.grad(var.sin().sum() + mean.sin().sum(), leaves["x"], create_graph=True)
        return torch.autograd.grad(first.sin().sum(), leaves["x"])[0]

    with kernel(name):
        double = CHANGES["+="]
        torch.testing.assert_close(second(partial(in_place, double)), second(partial(on_a_clone, double)))


@pytest.mark.parametrize("op", OPS)
def test_a_graph_is_used_once(op):
    """torch's own message stays where nothing was changed in place."""
    leaves = flat(FIRST[op].tensors(torch.float32))
    loss = sum(out.sum() for out in as_tuple(FIRST[op].call(unflat(leaves))))
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def is_grads_batched(outputs, learned, batch):
    return torch.autograd.grad(outputs, learned, batch, is_grads_batched=True, materialize_grads=True)


def create_graph(outputs, learned, batch):
    options = {"is_grads_batched": True, "create_graph": True, "materialize_grads": True}
    return [gradient.detach() for gradient in torch.autograd.grad(outputs, learned, batch, **options)]


def vmap(outputs, learned, batch):
    return torch.func.vmap(partial(torch.autograd.grad, outputs, learned, materialize_grads=True))(batch)


def one_after_the_other(outputs, learned, batch):
    gradients = partial(torch.autograd.grad, outputs, learned, retain_graph=True, materialize_grads=True)
    found = [gradients([one[i] for one in batch]) for i in range(len(batch[0]))]
    return [torch.stack(one) for one in zip(*found, strict=True)]


BATCHED = {function.__name__: function for function in (is_grads_batched, create_graph, vmap)}


def batched(one, function, name, compute=None, nudge=0):
    """The gradients of a case for three random gradients of its outputs."""
    leaves = flat(one.tensors(torch.float32, compute, nudge))
    learned = {leaf: tensor for leaf, tensor in leaves.items() if tensor.requires_grad}
    generator = torch.Generator().manual_seed(1)
    with kernel(name):
        outputs = as_tuple(one.call(unflat(leaves)))
        batch = [torch.randn((3, *out.shape), generator=generator).to(out.dtype) for out in outputs]
        return dict(zip(learned, function(outputs, list(learned.values()), batch), strict=True))


@pytest.mark.parametrize("op", OPS)
@best_kernel
def test_batches_of_gradients(op, name):
    """Every way to a batch of gradients at once, for all small cases of an op."""
    for one in small_inputs(op):
        expected = expect(partial(batched, one, one_after_the_other), torch.float32)
        for how, function in BATCHED.items():
            assert_close(batched(one, function, name), expected, torch.float32, f"{how}, {name}: {one!r}")


JACOBIANS = {
    "vectorize": partial(torch.autograd.functional.jacobian, vectorize=True),
    "vectorize forward": partial(torch.autograd.functional.jacobian, vectorize=True, strategy="forward-mode"),
    "jacrev": lambda function, x: torch.func.jacrev(function)(x),
    "hessian": lambda function, x: torch.autograd.functional.hessian(
        lambda x: function(x).sin().sum(), x, vectorize=True
    ),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("how", JACOBIANS)
@chosen_or_reference
def test_jacobians(op, how, name):
    one = small_inputs(op)[-1]  # smooth, or with given statistics

    def found(name, compute=None, nudge=0):
        leaves = flat(one.tensors(torch.float32, compute, nudge))

        def y(x):
            return as_tuple(one.call(unflat({**leaves, "x": x})))[0]

        with forcing(name):
            return {how: JACOBIANS[how](y, leaves["x"].detach())}

    assert_close(found(name), expect(found, torch.float32), torch.float32, f"{how}, {name}: {one!r}")


@pytest.mark.parametrize("one", [one for op in OPS for one in small_inputs(op)], ids=str)
@pytest.mark.parametrize("name", kernels()[:1])
def test_flop_counter(one, name):
    """FlopCounterMode counts a forward and a training step by the kernels as it counts those of plain torch."""

    def counted(name, training):
        leaves = flat(one.tensors(torch.float32))
        with kernel(name), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
            loss = sum(out.sum() for out in as_tuple(one.call(unflat(leaves))))
            if training:
                loss.backward()
        return counter.get_total_flops()

    for training in (False, True):
        assert counted(name, training) == counted("reference", training)


def test_flop_counter_knows_every_operator():
    """Those in Triton too, which run on GPUs only."""
    names = [schema.name for schema in torch._C._jit_get_all_schemas()]
    operators = [one.split("::") for one in names if one.startswith(("fastnest::", "fastnest_triton::"))]
    # But those of test_library.py, and those that launch single convolutions for measurements.
    operators = [(space, name) for space, name in operators if not name.startswith(("probe", "norm_conv", "conv_"))]
    assert all(getattr(getattr(torch.ops, space), name) in flop_registry for space, name in operators)
