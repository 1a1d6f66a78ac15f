"""bottleneck2d and basic_block2d, which differ in the convolutions they are made of."""

from functools import partial

import pytest
import torch
from marks import best_kernel, needs_cpp
from torch.nn import functional as F

from fastnest import _backend, functional
from fastnest.reference import basic_block2d, bottleneck2d
from fastnest.testing import Case, check_kernels, flat, kernel, kernels, run, sample_inputs, small_inputs, unflat

OPS = ("bottleneck2d", "basic_block2d")
KINDS = {"bottleneck2d": bottleneck2d.KIND, "basic_block2d": basic_block2d.KIND}
SMALL = [one for op in OPS for one in small_inputs(op)]
FIRST = [small_inputs(op)[0] for op in OPS]  # batch statistics, no biases, x added
BEST = kernels()[:1]
either_op = pytest.mark.parametrize("op", OPS)


def plain_block(op, tensors, stride, **_):
    """The block written with torch alone: y, features, and the images that batch norms read."""
    read = []

    def relu_norm(z, i):
        read.append(z)
        if "norm_weight" not in tensors:
            return F.relu(z)
        mean, var = (tensors.get(name, [None] * 3)[i] for name in ("norm_mean", "norm_var"))
        return F.relu(F.batch_norm(z, mean, var, tensors["norm_weight"][i], tensors["norm_bias"][i], mean is None))

    def conv(v, i):
        bias = tensors["conv_bias"][i] if "conv_bias" in tensors else None
        return (
            F.conv2d(v, tensors["conv"][i], bias, *((2, 1) if (i, stride) == (strided, 2) else (1, 1)))
            if (tensors["conv"][i].shape[-1] == 3)
            else F.conv2d(v, tensors["conv"][i], bias)
        )

    strided, l = KINDS[op].strided, len(tensors["conv"])
    a = v = relu_norm(tensors["x"], 0)
    for i in range(1, l):
        v = relu_norm(conv(v, i - 1), i)
    shortcut = tensors["x"]
    if "projection" in tensors:
        shortcut = F.conv2d(a, tensors["projection"], tensors.get("projection_bias"), stride)
    return conv(v, l - 1) + shortcut, v, read


@pytest.mark.parametrize("one", SMALL, ids=str)
def test_reference_is_the_layers(one):
    tensors = one.tensors(torch.float64)
    outputs = getattr(functional, one.op)(**tensors, **(one.options | {"return_features": True}))
    expected = plain_block(one.op, tensors, **one.options)[:2]
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    learned = [t for t in flat(tensors).values() if t.requires_grad]
    both = [torch.autograd.grad(sum(out.sin().sum() for out in outs), learned) for outs in (outputs, expected)]
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-9)


def batch_cases(op):
    return [one for one in sample_inputs(op) if "norm_mean" in one.absent and "norm_weight" not in one.absent]


@either_op
@pytest.mark.parametrize("name", kernels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_statistics(op, name, dtype):
    """They are those of the images that the batch norms read, and have no gradients of their own."""

    def statistics(one, backend, compute, nudge):
        with kernel(backend):
            tensors = one.tensors(dtype, compute, nudge)
            *_, (mean, var) = getattr(functional, op)(**tensors, **one.options, return_statistics=True)
        lists = {f"mean[{i}]": one for i, one in enumerate(mean)} | {f"var[{i}]": one for i, one in enumerate(var)}
        assert not any(t.requires_grad for t in lists.values())
        assert all(t.dtype is torch.float64 if compute is torch.float64 else torch.float32 for t in lists.values())
        return {name: t.to(compute or dtype) for name, t in lists.items()}

    for one in [one for one in batch_cases(op) if one.sizes["n"]][::4]:
        check_kernels(partial(statistics, one), [name], dtype, repr(one))


@pytest.mark.parametrize("one", FIRST, ids=str)
@best_kernel
def test_statistics_are_of_what_the_norms_read(one, name):
    tensors = one.tensors(torch.float32)
    with kernel(name):
        *_, (means, variances) = one.call({**tensors, "return_statistics": True})
    *_, read = plain_block(one.op, tensors, **one.options)
    for mean, var, image in zip(means, variances, read, strict=True):
        torch.testing.assert_close((var, mean), torch.var_mean(image.detach(), (0, 2, 3), correction=0))


@either_op
@best_kernel
def test_returns_what_is_asked_for(op, name):
    """y, then the features, then the statistics: None where they were given or there are no batch norms."""
    for one in small_inputs(op):
        tensors, options = one.tensors(torch.float32), {**one.options, "return_features": False}
        batch = "norm_mean" in one.absent and "norm_weight" not in one.absent
        with kernel(name):
            y = getattr(functional, op)(**tensors, **options)
            same, statistics = getattr(functional, op)(**tensors, **options, return_statistics=True)
            options["return_features"] = True
            again, v, more = getattr(functional, op)(**tensors, **options, return_statistics=True)
        assert torch.equal(y, same)
        assert torch.equal(y, again)
        assert v.shape == (3, 4, *y.shape[2:])
        assert (statistics is not None) == (more is not None) == batch


@pytest.mark.parametrize("one", FIRST, ids=str)
@best_kernel
def test_memory_format_is_that_of_x(one, name):
    tensors = one.tensors(torch.float32)
    options = {**one.options, "return_features": True}
    op = getattr(functional, one.op)
    with kernel(name):
        assert all(out.is_contiguous(memory_format=torch.channels_last) for out in op(**tensors, **options))
        tensors["x"] = tensors["x"].detach().contiguous().requires_grad_()
        outputs = op(**tensors, **options)
    assert all(out.is_contiguous() for out in outputs)
    sum(out.sum() for out in outputs).backward()
    assert tensors["x"].grad.is_contiguous()


@needs_cpp
@pytest.mark.parametrize("one", FIRST, ids=str)
def test_explains_the_copy(one):
    tensors = one.tensors(torch.float32)
    with _backend.logging_choices() as log:
        one.call(tensors)
        one.call(tensors | {"x": tensors["x"].contiguous()})
    assert log[0].reason == ""
    assert log[1].reason.startswith("x is copied to channels-last memory, and the result back")


@either_op
@pytest.mark.parametrize("name", BEST)
def test_keeps_the_images_between_convolutions(op, name):
    """And x; no normalised image, and none of float32 beside a bfloat16 one."""

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    kept = {}
    one = next(one for one in sample_inputs(op) if one.sizes["h"] == 56)
    tensors = one.tensors(torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), kernel(name):
        one.call(tensors)
    for tensor in flat(tensors).values():
        kept.pop(tensor.data_ptr(), None)
    images = [tensor for tensor in kept.values() if tensor.dim() == 4]
    assert len(images) == len(KINDS[op].kernels) - 1
    assert {tensor.dtype for tensor in images} == {torch.bfloat16}


@pytest.mark.parametrize("one", FIRST, ids=str)
@best_kernel
def test_autocast_leaves_batch_norms_in_float32(one, name):
    """As torch's own batch norm, which takes float32 parameters beside a bfloat16 image."""
    leaves = flat(one.tensors(torch.float32))
    half = {n: t.detach().bfloat16() if "norm" not in n else t.detach() for n, t in leaves.items()}
    with kernel(name):
        expected = one.call(unflat(half))
        with torch.autocast("cpu", torch.bfloat16):
            actual = one.call(unflat(leaves))
    assert actual.dtype is torch.bfloat16
    assert torch.equal(actual, expected)
    gradients = torch.autograd.grad(actual.float().sum(), list(leaves.values()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@either_op
@pytest.mark.parametrize("name", BEST)
def test_gradients_of_the_features_alone(op, name):
    """y unused, as in the last block of an A-ResNEst; a gradient in NCHW memory; and only y's where both are there."""

    def gradients(one, used, backend, compute, nudge):
        leaves = flat(one.tensors(torch.float32, compute, nudge))
        learned = {leaf: tensor for leaf, tensor in leaves.items() if tensor.requires_grad}
        with kernel(backend):
            out = one.call(unflat(leaves))[used]
            given = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
            found = torch.autograd.grad(out, list(learned.values()), given, materialize_grads=True)
        return {f"d{leaf}": gradient for leaf, gradient in zip(learned, found, strict=True)}

    for one in [one for one in small_inputs(op) if one.options["return_features"]]:
        for used in (0, 1):
            check_kernels(partial(gradients, one, used), [name], torch.float32, f"{one!r}, output {used} alone")


NORMS = ("norm_weight", "norm_bias", "norm_mean", "norm_var")
zeros = torch.zeros


def arguments(op="bottleneck2d", **replaced):
    """Everything there is: 5 channels, 4 between the convolutions, 6 behind them."""
    one = next(one for one in small_inputs(op) if not one.absent)
    return {k: v for k, v in {**one.tensors(torch.float32), "stride": 2, **replaced}.items() if v is not None}


def conv(*replaced):
    """The weights of `arguments`, one of them another."""
    shapes = [(4, 5, 1, 1), (4, 4, 3, 3), (6, 4, 1, 1)]
    return [zeros(shape) if other is None else other for shape, other in zip(shapes, replaced, strict=True)]


FITS = "to match x [3, 5, 2, 3] and conv [[4, 5, 1, 1], [4, 4, 3, 3], [6, 4, 1, 1]]"
WRONG = [
    (TypeError, {"x": [1.0]}, "x must be a torch.Tensor, got list"),
    (ValueError, {"x": zeros(2, 3)}, "x must be [n, channels, height, width] with at least one channel, got [2, 3]"),
    (TypeError, {"x": zeros(3, 5, 2, 3).int()}, "x must be float64, float32, bfloat16 or float16, got torch.int32"),
    (ValueError, {"x": zeros(3, 6, 2, 3)}, "conv[0] must be [4, 6, 1, 1] to match x [3, 6, 2, 3]"),
    (TypeError, {"conv": zeros(3, 4, 5, 1, 1)}, "conv must be a sequence of 3 tensors, got a torch.Tensor"),
    (ValueError, {"conv": conv(None, None, None)[:2]}, "conv must have 3 tensors, got 2"),
    (TypeError, {"conv": conv(None, 2.0, None)}, "conv[1] must be a torch.Tensor, got float"),
    (ValueError, {"conv": conv(None, zeros(4, 4), None)}, "conv[1] must be a 4-d convolution weight, got [4, 4]"),
    (ValueError, {"conv": conv(None, zeros(4, 4, 1, 1), None)}, "conv[1] must be [4, 4, 3, 3] to match x [3, 5, 2, 3]"),
    (TypeError, {"conv": conv(None, None, zeros(6, 4, 1, 1).half())},
     "conv[2] must be torch.float32 as x is, got torch.float16"),
    (ValueError, {"conv_bias": [zeros(4)]}, "conv_bias must have 3 tensors, got 1"),
    (ValueError, {"conv_bias": [zeros(4), zeros(5), zeros(6)]}, f"conv_bias[1] must be [4] {FITS}"),
    (ValueError, {"norm_bias": None}, "norm_bias and norm_weight go together, got no norm_bias"),
    (ValueError, {"norm_var": None}, "norm_var and norm_mean go together, got no norm_var"),
    (ValueError, {"norm_weight": None, "norm_bias": None}, "norm_weight and norm_mean go together, got no norm_weight"),
    (ValueError, {"norm_weight": [zeros(5), zeros(5), zeros(4)]}, f"norm_weight[1] must be [4] {FITS}"),
    (TypeError, {"norm_mean": [zeros(5), zeros(4).half(), zeros(4)]},
     "norm_mean[1] must be torch.float32 as x is, got torch.float16"),
    (ValueError, {"norm_bias": [zeros(5), zeros(4), zeros(4, device="meta")]},
     "norm_bias[2] must be on cpu as x is, got meta"),
    (ValueError, {"projection": zeros(6, 5, 3, 3)}, f"projection must be [6, 5, 1, 1] {FITS}, got"),
    (ValueError, {"projection_bias": zeros(5)}, f"projection_bias must be [6] {FITS}, got projection_bias [5]"),
    (ValueError, {"projection": None}, "projection_bias needs projection, got projection None"),
    (ValueError, {"projection": None, "projection_bias": None},
     "projection must be given where the shape changes, got 5 to 6, stride 2"),
    (ValueError, {"stride": 3}, "stride must be 1 or 2, got 3"),
    (ValueError, {"stride": "1"}, "stride must be 1 or 2, got '1'"),
    (ValueError, {"stride": True}, "stride must be 1 or 2, got True"),
    (ValueError, {"eps": -1e-5}, "eps must be at least 0, got -1e-05"),
    (ValueError, {"eps": 0, "norm_mean": None, "norm_var": None},
     "eps must be positive where the statistics are the batch's own, got 0"),
    (TypeError, {"eps": "relu"}, "eps must be a number, got 'relu'"),
    (TypeError, {"return_features": "no"}, "return_features must be a bool, got 'no'"),
    (TypeError, {"return_statistics": 1}, "return_statistics must be a bool, got 1"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "replaced", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_bad_input(error, replaced, message):
    with pytest.raises(error) as raised:
        functional.bottleneck2d(**arguments(**replaced))
    assert str(raised.value).startswith(f"bottleneck2d: {message}")


def test_bad_input_of_a_basic_block():
    with pytest.raises(ValueError, match=r"^basic_block2d: conv must have 2 tensors, got 3"):
        functional.basic_block2d(**arguments("basic_block2d", conv=conv(None, None, None)))


@either_op
def test_good_input(op):
    """What the bad input differs from; and a sequence need not be a list."""
    y = getattr(functional, op)(**arguments(op))
    assert y.shape == (3, 6, 1, 2)
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments(op).items()}
    assert torch.equal(getattr(functional, op)(**tuples), y)


@either_op
@best_kernel
def test_one_value_a_channel_has_no_batch_statistics(op, name):
    """Neither of x, nor of an image behind the stride; an empty batch is no error."""
    batch = {"norm_mean": None, "norm_var": None}
    message = rf"^{op}: batch statistics need more than one value per channel"
    with kernel(name):
        for size in ((1, 5, 1, 1), (1, 5, 2, 2)):
            with pytest.raises(ValueError, match=message):
                getattr(functional, op)(**arguments(op, x=zeros(size), **batch))
        assert getattr(functional, op)(**arguments(op, x=zeros(1, 5, 2, 2))).shape == (1, 6, 1, 1)
        assert getattr(functional, op)(**arguments(op, x=zeros(0, 5, 2, 2), **batch)).shape == (0, 6, 1, 1)


@either_op
@best_kernel
def test_weights_shared_between_convolutions(op, name):
    """One bias given twice gets the sum of both gradients, by the definition of a second derivative too."""
    one = next(one for one in small_inputs(op) if "norm_weight" in one.absent and "conv_bias" not in one.absent)
    tensors = one.tensors(torch.float32)
    tensors["conv"] = [t[:4, :4] if t.shape[0] != 4 else t for t in tensors["conv"]]
    tensors = {k: v for k, v in tensors.items() if k != "projection_bias"}
    tensors["x"], tensors["projection"] = torch.randn(3, 5, 4, 4), torch.randn(4, 5, 1, 1)
    apart = [torch.full((4,), 0.1, requires_grad=True) for _ in tensors["conv"]]
    shared = torch.full((4,), 0.1, requires_grad=True)

    def gradients(biases, wanted, create_graph):
        outputs = one.call({**tensors, "conv_bias": biases})
        return torch.autograd.grad(outputs[0].sin().sum(), wanted, create_graph=create_graph)

    with kernel(name):
        for create_graph in (False, True):
            (once,) = gradients([shared] * len(apart), [shared], create_graph)
            torch.testing.assert_close(once, sum(gradients(apart, apart, create_graph)))


@either_op
@pytest.mark.parametrize("name", BEST)
def test_nan_in_the_gradient(op, name):
    """It reaches what torch's reaches, also the biases that a batch norm behind them leaves without a gradient.

    In float32, where torch's convolutions do not multiply the gradient by the padding's zeros as in float64 they do.
    """

    def change(leaves, gradients):
        gradients[0][0] = float("nan")

    for one in small_inputs(op):
        expected = run(one, "reference", dtype=torch.float32, change=change)
        for key, value in run(one, name, dtype=torch.float32, change=change).items():
            assert torch.equal(value.isnan(), expected[key].isnan()), f"{key} of {one!r}"


@either_op
@pytest.mark.parametrize("name", kernels())
def test_one_channel(op, name):
    """Of images and features; evaluation, where gradients are more than what cancels in them."""
    options = {"stride": 1, "return_features": True}
    for absent in (("projection", "projection_bias"), ("norm_weight", "norm_bias", "norm_mean", "norm_var")):
        one = Case(op, {"n": 3, "c": 1, "h": 5, "w": 4, "k": 1, "m": 1}, absent, options)
        check_kernels(partial(run, one, dtype=torch.float32), [name], torch.float32, repr(one))
