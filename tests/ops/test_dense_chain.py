import pytest
import torch
from marks import best_kernel

from fastnest.functional import dense_chain
from fastnest.reference import dense_chain as reference
from fastnest.reference.dense_chain import Weights
from fastnest.testing import flat, kernel, kernels, small_inputs, unflat

SMALL = small_inputs("dense_chain")
BEST = kernels()[:1]


def in_order(tensors):
    """A case's x and lists in the order of the reference."""
    return tensors["x"], Weights(*(tensors.get(name, []) for name in Weights._fields))


@pytest.mark.parametrize("one", SMALL, ids=str)
def test_reference_backward_is_the_gradient_of_the_forward(one):
    x, weights = in_order(one.tensors(torch.float64))
    options = one.options["activation"], one.options["pre_activation"]
    y = reference.dense_chain_forward(x, weights, *options)
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, [x, *(t for tensors in weights for t in tensors)], dy)
    dx, gradients = reference.dense_chain_backward(dy, x, weights, *options)
    actual = [dx, *(t for tensors in gradients for t in tensors)]
    torch.testing.assert_close(actual, list(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("one", SMALL, ids=str)
def test_reference_backward_has_derivatives(one):
    """What a kernel's second derivative runs, by finite differences."""
    leaves = flat(one.tensors(torch.float64))
    with torch.no_grad():
        leaves["x"][leaves["x"] == 0] = 0.7  # away from relu's kink
    dy = torch.randn(6, 10, dtype=torch.float64, requires_grad=True)
    options = one.options["activation"], one.options["pre_activation"]

    def backward(dy, *values):
        x, weights = in_order(unflat(dict(zip(leaves, values, strict=True))))
        dx, gradients = reference.dense_chain_backward(dy, x, weights, *options)
        return dx, *(t for tensors in gradients for t in tensors)

    assert torch.autograd.gradcheck(backward, (dy, *leaves.values()), fast_mode=True)


@best_kernel
def test_columns_are_the_growths(name):
    """x stays in front, and every q_i behind it is the linear map of the columns before."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(7, 5), [torch.randn(2, 5), torch.randn(4, 7)], [torch.randn(2), torch.randn(4)]
    with kernel(name):
        y = dense_chain(x, weight, bias=bias)
    assert y.shape == (7, 11)
    assert torch.equal(y[:, :5], x)
    torch.testing.assert_close(y[:, 5:7], torch.relu(x) @ weight[0].t() + bias[0])
    torch.testing.assert_close(y[:, 7:], torch.relu(y[:, :7]) @ weight[1].t() + bias[1])


@pytest.mark.parametrize("name", BEST)
@pytest.mark.parametrize("one", [SMALL[0], SMALL[3], SMALL[4 * 3 + 2]], ids=str)
def test_keeps_only_the_weights_the_result_and_the_hidden_layers(one, name):
    """One buffer [n, m_L] for all x_i; a post-activation that is not idempotent also needs what it was applied to."""

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor
        return tensor

    kept = {}
    tensors = one.tensors(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), kernel(name):
        y = one.call(tensors)
    for tensor in flat(tensors).values():
        kept.pop(tensor.data_ptr(), None)
    (result,) = (at for at, tensor in kept.items() if torch.equal(tensor, y))  # a copy, under hooks only
    kept.pop(result)
    columns = sum(one.sizes["h"])
    if not one.options["pre_activation"] and one.options["activation"] not in ("relu", "identity"):
        columns += sum(one.sizes["d"])
    assert sum(tensor.nbytes for tensor in kept.values()) == 6 * columns * 4


def arguments(**replaced):
    """Two blocks: 5 features, hidden 4 and 3, growth 2 and 3."""
    return {k: v for k, v in {**SMALL[0].tensors(torch.float32), **replaced}.items() if v is not None}


zeros = torch.zeros
WRONG = [
    (TypeError, {"x": [1.0]}, "x must be a torch.Tensor, got list"),
    (ValueError, {"x": zeros(2, 3, 4)}, "x must be [rows, features] with at least one feature, got x [2, 3, 4]"),
    (TypeError, {"x": zeros(6, 5).int()}, "x must be float64, float32, bfloat16 or float16, got torch.int32"),
    (ValueError, {"weight": []}, "weight must have at least one block, got an empty list"),
    (TypeError, {"weight": zeros(2, 4)}, "weight must be a sequence with one tensor per block, got a torch.Tensor"),
    (TypeError, {"weight": [zeros(2, 4), None]}, "weight[1] must be a torch.Tensor, got NoneType"),
    (ValueError, {"weight": [zeros(2, 4), zeros(3)]}, "weight[1] must be [features out, features in], got [3]"),
    (ValueError, {"weight": [zeros(0, 4), zeros(3, 3)]}, "weight[0] must be [features out, features in], got [0, 4]"),
    (ValueError, {"weight": [zeros(2, 4), zeros(3, 7)]},
     "weight[1] must be [3, 3] to match block 1, which reads 7 features and hides 3, got weight[1] [3, 7]"),
    (ValueError, {"bias": [zeros(2)]}, "bias must have 2 tensors to match weight, got 1"),
    (ValueError, {"bias": [zeros(2), zeros(2)]}, "bias[1] must be [3] to match block 1, which reads 7 features"),
    (TypeError, {"bias": [zeros(2), zeros(3).half()]}, "bias[1] must be torch.float32 as x is, got torch.float16"),
    (ValueError, {"bias": [zeros(2), zeros(3, device="meta")]}, "bias[1] must be on cpu as x is, got meta"),
    (ValueError, {"hidden_weight": None}, "hidden_bias needs hidden_weight, got no hidden_weight"),
    (ValueError, {"hidden_weight": [zeros(4, 5)]}, "hidden_weight must have 2 tensors to match weight, got 1"),
    (ValueError, {"hidden_weight": [zeros(4, 6), zeros(3, 7)]},
     "hidden_weight[0] must be [4, 5] to match block 0, which reads 5 features and hides 4, got hidden_weight[0] ["),
    (ValueError, {"hidden_bias": [zeros(4), zeros(4)]}, "hidden_bias[1] must be [3] to match block 1"),
    (ValueError, {"scale": [zeros(5), zeros(5)]}, "scale[1] must be [7] to match block 1, which reads 7 features"),
    (ValueError, {"shift": None}, "scale and shift go together, got scale alone"),
    (ValueError, {"scale": None}, "scale and shift go together, got shift alone"),
    (TypeError, {"pre_activation": "no"}, "pre_activation must be a bool, got 'no'"),
    (ValueError, {"activation": "Relu"}, "activation must be one of relu, gelu, gelu_tanh, silu, tanh, leaky_relu"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "replaced", "message"), WRONG, ids=[message for _, _, message in WRONG])
def test_bad_input(error, replaced, message):
    with pytest.raises(error) as raised:
        dense_chain(**arguments(**replaced))
    assert str(raised.value).startswith(f"dense_chain: {message}")


def test_good_input():
    """What the bad input differs from; and a sequence need not be a list."""
    assert dense_chain(**arguments()).shape == (6, 10)
    tuples = {k: v if k == "x" else tuple(v) for k, v in arguments().items()}
    assert torch.equal(dense_chain(**tuples), dense_chain(**arguments()))


@best_kernel
def test_weights_shared_between_blocks(name):
    """One tensor in two blocks gets the sum of both gradients."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 3), [torch.randn(2, 3), torch.randn(2, 5)]
    apart = [torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)]
    shared = torch.zeros(2, requires_grad=True)
    with kernel(name):
        dense_chain(x, weight, bias=[shared, shared]).sum().backward()
        dense_chain(x, weight, bias=apart).sum().backward()
    torch.testing.assert_close(shared.grad, apart[0].grad + apart[1].grad)
