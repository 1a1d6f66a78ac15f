"""What holds for every op, by every kernel that can run here: driven by the cases of fastnest.testing."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from functorch.compile import make_boxed_func
from marks import best_kernel, every_device
from torch._dynamo.backends.common import aot_autograd

import fastnest
from fastnest import functional
from fastnest.testing import (
    OPS,
    as_tuple,
    assert_same_bits,
    bytes_moved,
    check_kernels,
    expect,
    flat,
    flops,
    kernel,
    kernels,
    run,
    sample_inputs,
    small_inputs,
    unflat,
    with_value,
)

KERNELS = kernels()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALL = [one for op in OPS for one in small_inputs(op)]
# One of each op is enough where the machinery around the op is tested, and the best kernel.
ONE_EACH = [small_inputs(op)[0] for op in OPS]

every_op = pytest.mark.parametrize("op", OPS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
one_each = pytest.mark.parametrize("one", ONE_EACH, ids=str)
# Those with weights.
each_map = pytest.mark.parametrize("one", [one for one in ONE_EACH if one.op != "batch_stats"], ids=str)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_there_is_a_kernel():
    """Else most tests here would have nothing to look at, and pass."""
    assert KERNELS, f"cpp: {fastnest.backends()['cpp']}"


@every_op
@every_dtype
@every_device
def test_outputs_and_gradients(op, dtype, device, two_threads):
    """All cases and kernels in one test: each takes milliseconds, and the message repeats the case."""
    for one in sample_inputs(op):
        check_kernels(partial(run, one, dtype=dtype, device=device), kernels(device, op), dtype, repr(one))


@pytest.mark.parametrize("name", ["avx512_bf16", "avx512", "avx2", "portable"])
def test_every_instruction_set_is_among_them(name):
    """Every test above and below that takes KERNELS forces each instruction set that this CPU has."""
    if f"cpp {name}" not in KERNELS:
        pytest.skip(f"this CPU does not run {name}; it runs {', '.join(KERNELS) or 'no kernels, which are not built'}")
    with kernel(f"cpp {name}"):
        assert fastnest._C.instruction_set() == name


@every_op
@every_dtype
def test_threads_and_repeats(op, dtype, two_threads):
    """Right with any number of threads, and the same bits every time."""
    for one in [one for one in sample_inputs(op) if one.sizes["n"] in (5, 7, 33, 193, 700)][::3]:
        results = partial(run, one, dtype=dtype)
        expected = expect(results, dtype)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            what = f"{threads} threads: {one!r}"
            for name in KERNELS:
                assert_same_bits(results(name), results(name), f"{name}, {what}")
            check_kernels(results, KERNELS, dtype, what, expected)


@every_op
@every_device
def test_empty_batch(op, device):
    calls = [("reference", torch.float64), *product(("reference", *kernels(device, op)), DTYPES)]
    for one in [one for one in sample_inputs(op) if one.sizes["n"] == 0]:
        for name, dtype in calls:
            results = run(one, name, dtype=dtype, device=device)
            assert results["y"].shape == one.y_shape
            assert results["dx"].shape == one.shapes()["x"]
            assert all((value == 0).all() for value in results.values()), f"{name}: {one!r}"


@pytest.mark.parametrize("shape", [(2, 5, 0, 3), (2, 5, 3, 0), (0, 5, 0, 0)])
@pytest.mark.parametrize("name", ["reference", *KERNELS])
def test_images_without_pixels(name, shape):
    """Statistics are zeros, as of no image; a convolution has nothing to read."""
    with kernel(name):
        for value in functional.batch_stats(torch.ones(shape)):
            assert torch.equal(value, torch.zeros(5))
        for op in ("dense_block2d", "bottleneck2d", "basic_block2d"):
            one = small_inputs(op)[0]
            with pytest.raises(ValueError, match=f"{op}: x must have at least one pixel an image, got x"):
                one.call({**one.tensors(torch.float32), "x": torch.ones(shape)})


def has_an_inner_pixel(one):
    """What NaN times the zeros around an image is depends on the algorithm, in torch too; so they stay inside."""
    return all(size >= 3 for shape in (one.shapes()["x"], one.y_shape) for size in shape[2:])


@every_op
@every_device
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity(op, device, value, two_threads):
    """They come out where the definition has them, in the outputs and in every gradient."""
    for one in sample_inputs(op):
        if one.sizes["n"] in (3, 49, 50) and one.is_contiguous:
            what = f"{one!r} with x[1, -1] = x[-1, 0] = {value}"
            results = partial(run, one, dtype=torch.float32, change=with_value(value), device=device)
            check_kernels(results, kernels(device, op), torch.float32, what)


@every_op
@every_device
def test_nan_in_weights_and_in_gradients(op, device):
    def change(leaves, gradients):
        for weight in list(leaves.values())[1:2]:
            weight[tuple(size // 2 if i > 1 else -1 for i, size in enumerate(weight.shape))] = float("nan")
        rows, *image = gradients[0].movedim(1, -1).shape[:-1] if gradients[0].dim() > 1 else (2,)
        inner = tuple(size // 2 for size in image)
        gradients[0][(slice(rows // 2, None), *[-1] * (gradients[0].dim() > 1), *inner)] = float("nan")

    for one in filter(has_an_inner_pixel, sample_inputs(op)[8:24]):
        what = f"{one!r} with NaN at the end of the first weight and of half of dy"
        results = partial(run, one, dtype=torch.float32, change=change, device=device)
        check_kernels(results, kernels(device, op), torch.float32, what)


def smooth(one):
    """A case's tensors in float64 with x away from 0, where finite differences would see the kink of relu."""
    leaves = flat(one.tensors(torch.float64))
    with torch.no_grad():
        leaves["x"][leaves["x"] == 0] = 0.7
    return leaves


def learned(leaves):
    """Those that have gradients."""
    return [leaf for leaf in leaves.values() if leaf.requires_grad]


@pytest.mark.parametrize("one", SMALL, ids=str)
def test_gradcheck_and_gradgradcheck(one):
    leaves = smooth(one)

    def function(*values):
        return one.call(unflat(dict(zip(leaves, values, strict=True))))

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()), fast_mode=True)


def second_derivatives(one, device, name, compute, nudge):
    leaves = flat(one.tensors(torch.float32, compute, nudge, device))
    generator = torch.Generator().manual_seed(2)
    with kernel(name):
        loss = sum(out.sin().sum() for out in as_tuple(one.call(unflat(leaves))))
        first = torch.autograd.grad(loss, learned(leaves), create_graph=True)
        factors = [torch.randn(gradient.shape, generator=generator).to(device) for gradient in first]
        loss = sum((gradient * factor).sum() for gradient, factor in zip(first, factors, strict=True))
        second = torch.autograd.grad(loss, learned(leaves), materialize_grads=True)
    names = [leaf for leaf, tensor in leaves.items() if tensor.requires_grad]
    return {f"d2{leaf}": value for leaf, value in zip(names, second, strict=True)}


@pytest.mark.parametrize("one", SMALL, ids=str)
@every_device
def test_second_derivatives_of_a_kernel(one, device):
    check_kernels(partial(second_derivatives, one, device), kernels(device, one.op)[:1], torch.float32, repr(one))


def x_of(one, n):
    """x of the case with n rows or images."""
    return replace(one, sizes={**one.sizes, "n": n}).tensors(torch.float32)["x"].detach()


@each_map
@best_kernel
def test_compiles_whole_for_any_number_of_rows(one, name):
    """One graph forward and one backward, with the kernels in them, for every number of rows."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    leaves = flat(one.tensors(torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda leaves: one.call(unflat(leaves)),
        fullgraph=True,
        dynamic=True,
        backend=aot_autograd(fw_compiler=keep, bw_compiler=keep),
    )

    def outputs_and_gradients(function):
        outputs = as_tuple(function(leaves))
        return *outputs, *torch.autograd.grad(sum(out.sin().sum() for out in outputs), list(leaves.values()))

    with kernel(name):
        for n in (6, 9, 15):  # from 16 images on torch chooses its convolutions anew
            leaves["x"] = x_of(one, n).requires_grad_()
            actual = outputs_and_gradients(compiled)
            torch.testing.assert_close(actual, outputs_and_gradients(lambda leaves: one.call(unflat(leaves))))
    assert len(graphs) == 2
    called = [node.target for graph in graphs for node in graph.graph.nodes if "fastnest" in str(node.target)]
    if name == "reference":
        assert called == []
    else:
        names = f"{one.op}_forward", f"{one.op}_backward"
        assert called == [getattr(torch.ops.fastnest, called_name).default for called_name in names]


@pytest.mark.parametrize("name", KERNELS[:1])
def test_inductor_and_the_forced_backend(name):
    """inductor runs the kernels too, and code compiled for one backend is not used where another is forced."""
    one = ONE_EACH[0]
    tensors = one.tensors(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(one.call, fullgraph=True)
    for forced in (None, "reference", name.split()[0]):
        with kernel(forced) if forced else torch.enable_grad():
            torch.testing.assert_close(compiled(tensors), one.call(tensors))
    gradients = [torch.autograd.grad(f(tensors)[0].sum(), list(tensors.values())) for f in (compiled, one.call)]
    torch.testing.assert_close(*gradients)


@each_map
@best_kernel
def test_autocast(one, name):
    """Tensors take autocast's dtype, as a linear map's do, except float64 and batch norms; gradients keep their own."""

    def y(leaves):
        return as_tuple(one.call(unflat(leaves)))[0]

    leaves = flat(one.tensors(torch.float32))
    with kernel(name):
        detached = {leaf: tensor.detach() for leaf, tensor in leaves.items()}
        expected = y({leaf: t if "norm" in leaf else t.bfloat16() for leaf, t in detached.items()})
        with torch.autocast("cpu", torch.bfloat16):
            actual = y(leaves)
        assert actual.dtype is torch.bfloat16
        assert torch.equal(actual, expected)
        gradients = torch.autograd.grad(actual.float().sum(), list(leaves.values()))
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert y(flat(one.tensors(torch.float64))).dtype is torch.float64


@each_map
def test_torch_func(one):
    """Transforms that a kernel's autograd.Function cannot follow go through the reference."""
    if "norm_mean" in one.absent or "norm1_mean" in one.absent:  # rows would share the batch's statistics
        one = next(other for other in small_inputs(one.op) if not any("norm" in name for name in other.absent))
    leaves = flat(one.tensors(torch.float32))
    last = [leaf for leaf, tensor in leaves.items() if tensor.requires_grad][-1]
    leaves = {leaf: tensor.detach() for leaf, tensor in leaves.items()}

    def loss(weight, x):
        return as_tuple(one.call(unflat({**leaves, last: weight, "x": x})))[0].square().sum()

    weight, x = leaves[last], leaves["x"]
    gradient = torch.func.grad(loss)(weight, x)
    leaf = weight.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf, x), leaf)[0])
    per_row = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x[:, None])
    torch.testing.assert_close(per_row.sum(0), gradient)
    _, tangent = torch.func.jvp(loss, (weight, x), (torch.ones_like(weight), torch.zeros_like(x)))
    torch.testing.assert_close(tangent, gradient.sum())


class Holding(torch.nn.Module):
    """A case's weights as parameters."""

    def __init__(self, one):
        super().__init__()
        leaves = flat(one.tensors(torch.float32))
        leaves.pop("x")
        self.one, self.names, self.weights = one, list(leaves), torch.nn.ParameterList(leaves.values())

    def forward(self, x):
        return self.one.call(unflat({"x": x, **dict(zip(self.names, self.weights, strict=True))}))


@each_map
@best_kernel
def test_export(one, name):
    model = Holding(one)
    with kernel(name):
        exported = torch.export.export(model, (x_of(one, 6),), dynamic_shapes=({0: torch.export.Dim("n")},))
        x = x_of(one, 11)
        torch.testing.assert_close(exported.module()(x), model(x))
    called = {str(node.target) for node in exported.graph.nodes if "fastnest" in str(node.target)}
    assert called == (set() if name == "reference" else {f"fastnest.{one.op}_forward.default"})


@one_each
@best_kernel
def test_expanded_gradient(one, name):
    """The gradient that sum() hands down is one number with strides 0."""

    def gradients(name):
        leaves = flat(one.tensors(torch.float32))
        with kernel(name):
            loss = sum(out.sum() for out in as_tuple(one.call(unflat(leaves))))
            return torch.autograd.grad(loss, list(leaves.values()))

    torch.testing.assert_close(gradients(name), gradients("reference"))


@one_each
def test_flops_and_bytes(one):
    """By torch's counter of the reference's linear maps, and by the tensors themselves."""
    from torch.utils.flop_counter import FlopCounterMode

    tensors = one.tensors(torch.float32)
    with kernel("reference"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = as_tuple(one.call(tensors))[0]
    assert flops(one) == counter.get_total_flops()
    leaves = flat(tensors)
    with kernel("reference"), FlopCounterMode(display=False) as counter:
        y = as_tuple(one.call(unflat(leaves)))[0]
        torch.autograd.grad(y.sum(), list(leaves.values()), allow_unused=True)
    assert flops(one, training=True) == counter.get_total_flops()
    assert bytes_moved(one, torch.float32) == sum(t.nbytes for t in (y, *flat(tensors).values()))


@best_kernel
def test_forced_backend_says_so(name):
    with kernel(name), fastnest._backend.logging_choices() as log:
        for one in ONE_EACH:
            one.call(one.tensors(torch.float32))
    assert [(choice.op, choice.backend) for choice in log] == [(op, name.split()[0]) for op in OPS]
