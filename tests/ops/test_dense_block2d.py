from functools import partial

import pytest
import torch
from marks import best_kernel
from torch.nn import functional as F

from fastnest.functional import dense_block2d
from fastnest.testing import Case, check_kernels, flat, kernel, kernels, run, sample_inputs, small_inputs, unflat

SMALL = small_inputs("dense_block2d")
BEST = kernels()[:1]


def plain_layers(x, tensors):
    """The layers written with torch alone, statistics of every batch norm's input computed by itself."""

    def norm(x, which, i):
        weight, bias, mean, var = (
            tensors.get(f"{which}_{name}", [None] * 9)[i] for name in ("weight", "bias", "mean", "var")
        )
        return F.relu(F.batch_norm(x, mean, var, weight, bias, training=mean is None))

    for i, conv2 in enumerate(tensors["conv2"]):
        a = norm(x, "norm1", i)
        if "conv1" in tensors:
            a = norm(F.conv2d(a, tensors["conv1"][i]), "norm2", i)
        q = F.conv2d(a, conv2, padding=1)
        x = torch.cat([x, q * tensors["dropout"][i] if "dropout" in tensors else q], 1)
    return x


@pytest.mark.parametrize("one", SMALL, ids=str)
def test_reference_is_the_layers(one):
    tensors = one.tensors(torch.float64)
    y, expected = one.call(tensors), plain_layers(tensors["x"], tensors)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    learned = [t for t in flat(tensors).values() if t.requires_grad]
    actual, expected = (torch.autograd.grad(out.sin().sum(), learned) for out in (y, expected))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_statistics(dtype):
    """They are those of the images that the layers saw, and have no gradient of their own."""

    def statistics(one, backend, compute, nudge):
        with kernel(backend), torch.set_grad_enabled(nudge == 0):
            tensors = one.tensors(dtype, compute, nudge)
            y, stats = dense_block2d(**tensors, return_statistics=True)
        lists = {f"{k}[{i}]": v for k in ("hidden_mean", "hidden_var") for i, v in enumerate(getattr(stats, k))}
        assert not any(t.requires_grad for t in (stats.mean, stats.var, *lists.values()))
        return {"y": y.detach(), "mean": stats.mean, "var": stats.var} | lists

    with_batch = [one for one in sample_inputs("dense_block2d") if "norm1_mean" in one.absent and one.sizes["n"]]
    for one in with_batch[::4]:
        check_kernels(partial(statistics, one), kernels(), dtype, repr(one))


def test_no_statistics_where_some_are_given():
    y, statistics = dense_block2d(**SMALL[-1].tensors(torch.float32), return_statistics=True)
    assert statistics is None
    assert y.shape == SMALL[-1].y_shape


@best_kernel
def test_x_stays_in_front(name):
    one = SMALL[0]
    tensors = one.tensors(torch.float32)
    with kernel(name):
        y = one.call(tensors)
    assert torch.equal(y[:, :5], tensors["x"])


@best_kernel
def test_memory_format_is_that_of_x(name):
    for one in SMALL[:2]:
        tensors = one.tensors(torch.float32)
        with kernel(name):
            assert one.call(tensors).is_contiguous(memory_format=torch.channels_last)
            tensors["x"] = tensors["x"].detach().contiguous().requires_grad_()
            y = one.call(tensors)
            assert y.is_contiguous()
            y.sum().backward()
        assert tensors["x"].grad.is_contiguous()


@pytest.mark.parametrize("name", BEST)
def test_keeps_the_result_and_the_hidden_images(name):
    """Of images, y and what conv1 yields; no normalised one, no concatenation."""

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    kept = {}
    one = sample_inputs("dense_block2d")[-3]
    tensors = one.tensors(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), kernel(name):
        y = one.call(tensors)
    for tensor in flat(tensors).values():
        kept.pop(tensor.data_ptr(), None)
    (result,) = (at for at, tensor in kept.items() if torch.equal(tensor, y))  # a copy, under hooks only
    kept.pop(result)
    images = [tensor for tensor in kept.values() if tensor.dim() == 4]
    n, _, h, w = one.shapes()["x"]
    assert sum(tensor.numel() for tensor in images) == n * h * w * sum(one.sizes["b"])
    assert sum(tensor.numel() for tensor in kept.values() if tensor.dim() == 1) <= 2 * (
        y.shape[1] + sum(one.sizes["b"])
    )


@best_kernel
def test_autocast_leaves_batch_norms_in_float32(name):
    """As torch's own batch norm, which takes float32 parameters beside a bfloat16 image."""
    one = SMALL[0]
    leaves = flat(one.tensors(torch.float32))
    half = {n: t.detach().bfloat16() if "norm" not in n else t.detach() for n, t in leaves.items()}
    with kernel(name):
        expected = one.call(unflat(half))
        with torch.autocast("cpu", torch.bfloat16):
            actual, statistics = dense_block2d(**unflat(leaves), return_statistics=True)
    assert actual.dtype is torch.bfloat16
    assert statistics.mean.dtype is torch.float32
    assert torch.equal(actual, expected)
    gradients = torch.autograd.grad(actual.float().sum(), list(leaves.values()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def arguments(**replaced):
    """Two layers on 5 channels: hidden 4 and 3, growth 2 and 3."""
    return {k: v for k, v in {**SMALL[2].tensors(torch.float32), **replaced}.items() if v is not None}


zeros = torch.zeros
WRONG = [
    (TypeError, {"x": [1.0]}, "x must be a torch.Tensor, got list"),
    (ValueError, {"x": zeros(2, 3)}, "x must be [n, channels, height, width] with at least one channel, got [2, 3]"),
    (TypeError, {"x": zeros(3, 5, 2, 3).int()}, "x must be float64, float32, bfloat16 or float16, got torch.int32"),
    (ValueError, {"conv2": []}, "conv2 must have at least one layer, got an empty list"),
    (TypeError, {"conv2": zeros(2, 4, 3, 3)}, "conv2 must be a sequence with one tensor per layer, got a torch.Tensor"),
    (TypeError, {"conv2": [zeros(2, 4, 3, 3), None]}, "conv2[1] must be a torch.Tensor, got NoneType"),
    (ValueError, {"conv2": [zeros(2, 4, 3, 3), zeros(3, 3)]}, "conv2[1] must be a 4-d convolution weight, got [3, 3]"),
    (ValueError, {"conv2": [zeros(2, 4, 3, 3), zeros(3, 3, 1, 1)]},
     "conv2[1] must be [3, 3, 3, 3] to match layer 1, which reads 7 channels and hides 3, got conv2[1] [3, 3, 1, 1]"),
    (ValueError, {"conv1": [zeros(4, 5, 1, 1)]}, "conv1 must have 2 tensors to match conv2, got 1"),
    (ValueError, {"conv1": [zeros(4, 5, 1, 1), zeros(3, 6, 1, 1)]},
     "conv1[1] must be [3, 7, 1, 1] to match layer 1, which reads 7 channels and hides 3"),
    (ValueError, {"norm1_bias": []}, "norm1_bias and conv2 go together, got no norm1_bias"),
    (ValueError, {"norm2_weight": None}, "norm2_weight and conv1 go together, got no norm2_weight"),
    (ValueError, {"conv1": None}, "norm2_weight and conv1 go together, got norm2_weight"),
    (ValueError, {"norm1_var": None}, "norm1_var and norm1_mean go together, got no norm1_var"),
    (ValueError, {"norm2_mean": None}, "norm2_mean and norm1_mean and conv1 go together, got no norm2_mean"),
    (ValueError, {"norm1_weight": [zeros(5), zeros(6)]}, "norm1_weight[1] must be [7] to match layer 1"),
    (ValueError, {"norm2_bias": [zeros(5), zeros(3)]}, "norm2_bias[0] must be [4] to match layer 0"),
    (TypeError, {"norm2_bias": [zeros(4).half(), zeros(3)]}, "norm2_bias[0] must be torch.float32 as x is, got torch.float16"),  # noqa: E501
    (ValueError, {"norm2_bias": [zeros(4), zeros(3, device="meta")]}, "norm2_bias[1] must be on cpu as x is, got meta"),
    (ValueError, {"dropout": [zeros(3, 2, 2, 3), zeros(3, 3, 2, 2)]}, "dropout[1] must be [3, 3, 2, 3] to match layer 1"),  # noqa: E501
]  # fmt: skip


@pytest.mark.parametrize(("error", "replaced", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_bad_input(error, replaced, message):
    with pytest.raises(error) as raised:
        dense_block2d(**arguments(**replaced))
    assert str(raised.value).startswith(f"dense_block2d: {message}")


def test_one_value_a_channel_has_no_batch_statistics():
    tensors = SMALL[0].tensors(torch.float32)
    tensors["x"] = torch.zeros(1, 5, 1, 1)
    with pytest.raises(
        ValueError, match=r"dense_block2d: batch statistics need more than one value per channel, got x \["
    ):
        SMALL[0].call(tensors)


def test_good_input():
    """What the bad input differs from; and a sequence need not be a list."""
    assert dense_block2d(**arguments()).shape == (3, 10, 2, 3)
    tuples = {k: v if k == "x" else tuple(v) for k, v in arguments().items()}
    assert torch.equal(dense_block2d(**tuples), dense_block2d(**arguments()))


@pytest.mark.parametrize("name", BEST)
def test_gradients_of_a_part_of_y(name):
    """Channels that nothing reads, and a gradient in NCHW memory."""

    def change(leaves, gradients):
        gradients[0][:, 6:9] = 0
        gradients[0] = gradients[0].contiguous()

    one = SMALL[0]
    check_kernels(partial(run, one, dtype=torch.float32, change=change), [name], torch.float32, one)


@pytest.mark.parametrize("name", kernels())
def test_one_channel(name):
    """Of images, growths and hidden images; evaluation, where gradients are more than what cancels in them."""
    sizes = {"n": 3, "c": 1, "h": 5, "w": 4, "d": (1, 3), "b": (1, 2)}
    for one in (Case("dense_block2d", sizes, ("dropout",)), Case("dense_block2d", {**sizes, "b": ()}, ("dropout",))):
        check_kernels(partial(run, one, dtype=torch.float32), [name], torch.float32, repr(one))
