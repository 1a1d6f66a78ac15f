from functools import partial

import pytest
import torch
from marks import best_kernel

from fastnest.functional import residual_chain
from fastnest.reference import residual_chain as reference
from fastnest.reference.activation import ACTIVATIONS, second_moment
from fastnest.testing import Case, check_kernels, flat, kernel, kernels, run, small_inputs

SMALL = small_inputs("residual_chain")
BEST = kernels()[:1]


def in_order(tensors):
    """A case's tensors in the order of reference.residual_chain_forward."""
    return [tensors.get(name) for name in reference.Inputs._fields]


@pytest.mark.parametrize("one", SMALL, ids=str)
def test_reference_backward_is_the_gradient_of_the_forward(one):
    tensors = in_order(one.tensors(torch.float64))
    options = one.options["activation"], one.options["pre_activation"]
    outputs = reference.residual_chain_forward(*tensors, *options, True)
    dy, dfeatures = (torch.randn_like(out) for out in outputs)
    leaves = [t for t in tensors if t is not None]
    expected = torch.autograd.grad(outputs, leaves, (dy, dfeatures))
    actual = [g for g in reference.residual_chain_backward(dy, dfeatures, *tensors, *options) if g is not None]
    torch.testing.assert_close(actual, list(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("one", SMALL, ids=str)
def test_reference_backward_has_derivatives(one):
    """What a kernel's second derivative runs, by finite differences."""
    leaves = one.tensors(torch.float64)
    with torch.no_grad():
        leaves["x"][leaves["x"] == 0] = 0.7  # away from relu's kink
    dy = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    dfeatures = torch.randn(6, 3, 4, dtype=torch.float64, requires_grad=True)
    options = one.options["activation"], one.options["pre_activation"]

    def backward(dy, dfeatures, *values):
        tensors = in_order(dict(zip(leaves, values, strict=True)))
        return tuple(g for g in reference.residual_chain_backward(dy, dfeatures, *tensors, *options) if g is not None)

    assert torch.autograd.gradcheck(backward, (dy, dfeatures, *leaves.values()), fast_mode=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_backward_at_kinks_and_nan(activation):
    """Where the derivative jumps the reference has torch's value, and a NaN goes where torch lets it go."""
    x = torch.tensor([[0.0, -0.0, 1.0, -1.0, float("nan")]], dtype=torch.float64, requires_grad=True)
    eye = torch.eye(5, dtype=torch.float64)[None]
    tensors = (x, eye, None, None, None, eye, None, None)
    y, _ = reference.residual_chain_forward(*tensors, activation, True, False)
    (expected,) = torch.autograd.grad(y, x, torch.ones_like(y))
    actual = reference.residual_chain_backward(torch.ones_like(y), None, *tensors, activation, True).x
    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_second_moments():
    """relu halves the mean square (He et al. 2015); leaky_relu keeps slope^2 of the other half; identity all of it."""
    assert second_moment("identity") == pytest.approx(1)
    assert second_moment("relu") == pytest.approx(0.5)
    assert second_moment("leaky_relu") == pytest.approx((1 + 0.01**2) / 2)


@best_kernel
def test_what_an_augmented_resnest_needs(name):
    """With l - 1 blocks in up: the features of the whole chain, and y of the chain without its last block."""
    tensors = {k: v.detach() for k, v in SMALL[1].tensors(torch.float32).items()}
    up = torch.cat([tensors["up"], torch.randn(1, 5, 4)])
    whole = {**tensors, "up": up}
    shorter = {k: v if k in ("x", "up") else v[:2] for k, v in tensors.items()}
    with kernel(name):
        y, features = residual_chain(**tensors, return_features=True)
        torch.testing.assert_close(features, residual_chain(**whole, return_features=True)[1])
        torch.testing.assert_close(y, residual_chain(**shorter))
        only, _ = residual_chain(**{k: v[:0] if k == "up" else v if k == "x" else v[:1] for k, v in tensors.items()},
                                 return_features=True)  # fmt: skip
    assert torch.equal(only, tensors["x"])
    assert only.data_ptr() != tensors["x"].data_ptr()


@best_kernel
@pytest.mark.parametrize("of", [0, 1])
def test_gradient_of_one_output_alone(name, of):
    """An A-ResNEst reads the features only."""
    for one in (SMALL[0], SMALL[1], Case("residual_chain", SMALL[0].sizes, ("mid", "mid_bias"), SMALL[0].options)):
        gradients = []
        for backend in (name, "reference"):
            leaves = flat(one.tensors(torch.float32))
            with kernel(backend):
                loss = one.call(leaves)[of].sin().sum()
                gradients.append(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", BEST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keeps_only_the_inputs_the_stream_and_the_hidden_layers(name, dtype):
    """O(N sum K + N M) of activations, whatever the depth: the promise the backward's reconstruction is for."""

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    n, m, k, l = 64, 40, 8, 6
    for absent, layers in ((("mid", "mid_bias"), 1), ((), 2)):
        kept = {}
        tensors = Case("residual_chain", {"n": n, "m": m, "k": k, "l": l}, absent).tensors(dtype)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), kernel(name):
            residual_chain(**tensors, return_features=layers == 1)
        for tensor in tensors.values():
            kept.pop(tensor.data_ptr(), None)
        stream, hidden = n * m * 4, n * l * layers * k * dtype.itemsize
        assert sorted(tensor.nbytes for tensor in kept.values()) == sorted([stream, hidden])


@pytest.mark.parametrize("name", BEST)
def test_deep(name):
    """256 blocks: the stream steps back through all of them without losing accuracy."""
    one = Case("residual_chain", {"n": 33, "m": 24, "k": 8, "l": 256}, ("mid", "mid_bias", "scale", "shift"))
    for dtype in (torch.float32, torch.bfloat16):
        check_kernels(partial(run, one, dtype=dtype), [name], dtype, repr(one))


def arguments(**replaced):
    tensors = {name: tensor.detach() for name, tensor in SMALL[0].tensors(torch.float32).items()}
    return {**tensors, **replaced}


zeros = torch.zeros
WRONG = [
    (TypeError, {"x": [1.0]}, "x must be a torch.Tensor, got list"),
    (ValueError, {"x": zeros(5)}, "x must be [rows, features] with at least one feature, got x [5]"),
    (ValueError, {"x": zeros(6, 0)}, "x must be [rows, features] with at least one feature, got x [6, 0]"),
    (TypeError, {"x": zeros(6, 5).long()}, "x must be float64, float32, bfloat16 or float16, got torch.int64"),
    (TypeError, {"x": zeros(6, 5) * 1j}, "x must be float64, float32, bfloat16 or float16, got torch.complex64"),
    (ValueError, {"x": zeros(6, 7)}, "x must have 5 features to match down [3, 4, 5], got x [6, 7]"),
    (TypeError, {"x": zeros(6, 5).double()}, "down must be torch.float64 as x is, got torch.float32"),
    (ValueError, {"down": zeros(4, 5)}, "down must be [blocks, bottleneck, width] with no size 0, got [4, 5]"),
    (ValueError, {"down": zeros(0, 4, 5)}, "down must be [blocks, bottleneck, width] with no size 0, got [0, 4, 5]"),
    (TypeError, {"down": [zeros(4, 5)]}, "down must be [blocks, bottleneck, width] with no size 0, got list"),
    (ValueError, {"up": zeros(3, 4, 5)}, "up must be [3, 5, 4] to match down [3, 4, 5], got up [3, 4, 5]"),
    (ValueError, {"up": zeros(2, 5, 4)}, "up must be [3, 5, 4] to match down [3, 4, 5], got up [2, 5, 4]"),
    (ValueError, {"up": zeros(1, 5, 4), "return_features": True}, "up must be [3, 5, 4] to match down [3, 4, 5], got"),
    (ValueError, {"up": zeros(())}, "up must be [3, 5, 4] to match down [3, 4, 5], got up []"),
    (ValueError, {"up": zeros(()), "return_features": True}, "up must be [3, 5, 4] to match down [3, 4, 5], got up []"),
    (TypeError, {"up": None}, "up must be a torch.Tensor, got NoneType"),
    (TypeError, {"up": zeros(3, 5, 4).bfloat16()}, "up must be torch.float32 as x is, got torch.bfloat16"),
    (ValueError, {"up": zeros(3, 5, 4, device="meta")}, "up must be on cpu as x is, got meta"),
    (ValueError, {"down_bias": zeros(4)}, "down_bias must be [3, 4] to match down [3, 4, 5], got down_bias [4]"),
    (ValueError, {"mid": zeros(4, 4)}, "mid must be [3, 4, 4] to match down [3, 4, 5], got mid [4, 4]"),
    (ValueError, {"mid_bias": zeros(3, 5)}, "mid_bias must be [3, 4] to match down [3, 4, 5], got mid_bias [3, 5]"),
    (ValueError, {"mid": None}, "mid_bias needs mid, got mid None"),
    (ValueError, {"scale": zeros(5)}, "scale must be [3, 5] to match down [3, 4, 5], got scale [5]"),
    (ValueError, {"shift": zeros(3)}, "shift must be [3, 5] to match down [3, 4, 5], got shift [3]"),
    (ValueError, {"shift": None}, "scale and shift go together, got scale alone"),
    (ValueError, {"scale": None}, "scale and shift go together, got shift alone"),
    (TypeError, {"pre_activation": "no"}, "pre_activation must be a bool, got 'no'"),
    (TypeError, {"return_features": 1}, "return_features must be a bool, got 1"),
    (ValueError, {"activation": "swish"}, "activation must be one of relu, gelu, gelu_tanh, silu, tanh, leaky_relu"),
]


@pytest.mark.parametrize(("error", "replaced", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_bad_input(error, replaced, message):
    with pytest.raises(error) as raised:
        residual_chain(**arguments(**replaced))
    assert str(raised.value).startswith(f"residual_chain: {message}")


def test_good_input():
    """What the bad input differs from."""
    assert residual_chain(**arguments()).shape == (6, 5)
