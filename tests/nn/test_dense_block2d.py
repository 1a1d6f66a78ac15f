"""DenseBlock2d against the same layers in torch's own modules."""

import copy
import pickle

import pytest
import torch
from marks import best_kernel
from nn.norms import without_affine, without_parameters
from torch.nn import functional as F

import fastnest
from fastnest import nn
from fastnest.testing import kernel

either = pytest.mark.parametrize("bottleneck", [True, False])


class Plain(torch.nn.Module):
    """The block's modules called one by one: what its parameters mean."""

    def __init__(self, block):
        super().__init__()
        self.block = copy.deepcopy(block)

    def forward(self, x):
        for layer in self.block.values():
            a = layer.conv1(F.relu(layer.norm1(x)))
            if hasattr(layer, "conv2"):
                a = layer.conv2(F.relu(layer.norm2(a)))
            x = torch.cat([x, a], 1)
        return x


def block_and_plain(bottleneck=True, dtype=torch.float32, **options):
    torch.manual_seed(0)
    block = nn.DenseBlock2d(16, 12, 4, bottleneck=bottleneck, dtype=dtype, **options)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
    return block, Plain(block)


@best_kernel
@either
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_is_its_modules_one_by_one(name, bottleneck, training, momentum):
    """Outputs, gradients, running statistics and their count; in float64 too, where the reference is exact."""
    for dtype, rtol in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        block, plain = block_and_plain(bottleneck, dtype)
        for module in (*block.modules(), *plain.modules()):
            module.momentum = momentum
        block.train(training)
        plain.train(training)
        with kernel("reference" if dtype is torch.float64 else name):
            for _ in range(2):
                x = torch.randn(5, 16, 9, 7, dtype=dtype)
                y, expected = block(x), plain(x)
        torch.testing.assert_close(y, expected, rtol=rtol, atol=rtol)
        dy = torch.randn_like(y)
        y.backward(dy)
        expected.backward(dy)
        for (key, value), other in zip(block.named_parameters(), plain.parameters(), strict=True):
            scale = other.grad.abs().max()
            torch.testing.assert_close(
                value.grad / scale, other.grad / scale, rtol=0, atol=rtol, msg=lambda m, k=key: f"{k}: {m}"
            )
        for value, other in zip(block.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(value, other, rtol=rtol, atol=rtol)
        counts = {int(v) for k, v in block.state_dict().items() if k.endswith("num_batches_tracked")}
        assert counts == {2 if training else 0}


def test_parameter_names():
    block = nn.DenseBlock2d(16, 12, 2)
    assert [name for name, _ in block.named_parameters()] == [
        f"denselayer{i}.{name}" for i in (1, 2)
        for name in ("norm1.weight", "norm1.bias", "conv1.weight", "norm2.weight", "norm2.bias", "conv2.weight")
    ]  # fmt: skip
    assert block.out_channels == 40
    assert block.denselayer2.conv1.weight.shape == (48, 28, 1, 1)


@best_kernel
def test_dropout(name):
    """Zeroes its share of the growths in training, scales up the rest, lets the same elements through backwards."""
    block, _ = block_and_plain(drop_rate=0.25)
    x = torch.randn(8, 16, 16, 16)
    with kernel(name):
        torch.manual_seed(1)
        y = block(x)
        torch.manual_seed(1)
        assert torch.equal(block(x), y)
        zero = (y[:, 16:] == 0).float().mean().item()
        assert abs(zero - 0.25) < 0.01
        assert torch.equal(y[:, :16], x)
        assert (block.eval()(x)[:, 16:] == 0).float().mean() < 1e-3
        block.train()
        for layer in list(block.values())[1:]:
            torch.nn.init.zeros_(layer.conv2.weight)
        torch.manual_seed(1)
        y = block(x)[:, 16:28]
        plain = F.conv2d(F.relu(_hidden(block, x)), block.denselayer1.conv2.weight, padding=1)
    kept = y != 0
    torch.testing.assert_close(y[kept], plain[kept] / 0.75, rtol=1e-4, atol=1e-4)


def _hidden(block, x):
    layer = block.denselayer1
    a = F.relu(F.batch_norm(x, None, None, layer.norm1.weight, layer.norm1.bias, training=True))
    return F.batch_norm(layer.conv1(a), None, None, layer.norm2.weight, layer.norm2.bias, training=True)


@best_kernel
@without_parameters
@either
def test_norms_without_parameters(name, tracks, bottleneck):
    for dtype, rtol in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        block, _ = block_and_plain(bottleneck, dtype)
        plain = Plain(without_affine(block, tracks))
        with kernel("reference" if dtype is torch.float64 else name):
            for training in (True, False):
                block.train(training), plain.train(training)
                x = torch.randn(3, 16, 5, 5, dtype=dtype, requires_grad=True)
                outputs = block(x), plain(x)
                torch.testing.assert_close(*outputs, rtol=rtol, atol=rtol)
                gradients = [
                    torch.autograd.grad(y.sin().sum(), [x, *one.parameters()])
                    for y, one in zip(outputs, (block, plain), strict=True)
                ]
                torch.testing.assert_close(*gradients, rtol=rtol, atol=rtol * 10)
        torch.testing.assert_close(list(block.buffers()), list(plain.buffers()), rtol=rtol, atol=rtol)


@without_parameters
@either
def test_norms_without_parameters_on_another_device(tracks, bottleneck):
    block = without_affine(nn.DenseBlock2d(16, 12, 4, bottleneck=bottleneck, device="meta"), tracks)
    x = torch.randn(3, 16, 5, 5, device="meta", requires_grad=True)
    y, expected = block(x), Plain(block)(x)
    assert (y.shape, y.dtype, y.device) == (expected.shape, expected.dtype, expected.device)
    y.sum().backward()
    assert all(tensor.grad.is_meta for tensor in (x, *block.parameters()))


@best_kernel
@without_parameters
def test_norms_without_parameters_in_bfloat16(name, tracks):
    """A block of bfloat16; float32 modules under autocast; and bfloat16 convolutions beside norms in float32."""
    x = torch.randn(3, 16, 5, 5)
    with kernel(name):
        for one in (x, x.bfloat16()):
            block = without_affine(nn.DenseBlock2d(16, 12, 4), tracks)
            with torch.autocast("cpu", torch.bfloat16):
                assert block(one).dtype is torch.bfloat16
        assert block.bfloat16()(x.bfloat16()).dtype is torch.bfloat16
        block.denselayer2.norm2 = torch.nn.BatchNorm2d(48, track_running_stats=tracks)
        for norm in block.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.float()
        y = block(x.bfloat16())
    torch.testing.assert_close(y, Plain(block)(x.bfloat16()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 12, 4), ValueError, "DenseBlock2d: in_channels must be at least 1, got 0"),
        ((16, 1.5, 4), TypeError, "DenseBlock2d: growth must be an int, got float"),
        ((16, 12, 0), ValueError, "DenseBlock2d: layers must be at least 1, got 0"),
        (
            (16, 12, 2**20),
            ValueError,
            "DenseBlock2d: layers must be fewer: 1048576 would have more than 1099511627776 ",
        ),
    ],
)
def test_bad_sizes(arguments, error, message):
    with pytest.raises(error, match=message):
        nn.DenseBlock2d(*arguments)
    with pytest.raises(ValueError, match="DenseBlock2d: drop_rate must be at least 0 and less than 1, got 1"):
        nn.DenseBlock2d(16, 12, 2, drop_rate=1)
    with pytest.raises(TypeError, match="DenseBlock2d: drop_rate must be a number, got '0'"):
        nn.DenseBlock2d(16, 12, 2, drop_rate="0")


def test_bad_input():
    block = nn.DenseBlock2d(16, 12, 2)
    with pytest.raises(ValueError, match=r"DenseBlock2d: x must be \[n, 16, height, width\], got x \[2, 3, 4, 4\]"):
        block(torch.randn(2, 3, 4, 4))
    with pytest.raises(TypeError, match=r"DenseBlock2d: x must be a torch\.Tensor, got list"):
        block([1.0])


@best_kernel
def test_copies(name):
    block, _ = block_and_plain()
    x = torch.randn(3, 16, 5, 5)
    with kernel(name):
        expected = block.eval()(x)
        for copied in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert torch.equal(copied(x), expected)
        other = nn.DenseBlock2d(16, 12, 4)
        other.load_state_dict(block.state_dict())
        assert torch.equal(other.eval()(x), expected)


@best_kernel
@pytest.mark.parametrize("training", [True, False])
def test_compiles_whole(name, training):
    block, _ = block_and_plain()
    block.train(training)
    other = copy.deepcopy(block)
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True)
    with kernel(name):
        for _ in range(2):
            x = torch.randn(3, 16, 5, 5)
            y, expected = compiled(x), block(x)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        y.square().sum().backward()
        expected.square().sum().backward()
    for value, plain in zip(other.parameters(), block.parameters(), strict=True):
        torch.testing.assert_close(value.grad, plain.grad, rtol=1e-3, atol=1e-2)
    for value, plain in zip(other.buffers(), block.buffers(), strict=True):
        torch.testing.assert_close(value, plain, rtol=1e-4, atol=1e-4)


def test_an_empty_batch_counts_and_moves_nothing():
    """As torch's batch norm."""
    block, plain = block_and_plain()
    for _ in range(2):
        assert block(torch.zeros(0, 16, 5, 5)).shape == (0, 64, 5, 5)
        plain(torch.zeros(0, 16, 5, 5))
    for mine, theirs in zip(block.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    assert block.denselayer1.norm1.num_batches_tracked == 2


def test_explain():
    block = nn.DenseBlock2d(16, 12, 2)
    backend = "cpp" if fastnest.backends()["cpp"] == "available" else "reference"
    (row,) = fastnest.explain(block, torch.randn(3, 16, 5, 5).contiguous(memory_format=torch.channels_last)).rows
    assert (row.kind, row.runs, row.backend) == ("DenseBlock2d", "dense_block2d float32", backend)
    (row,) = fastnest.explain(block, torch.randn(3, 16, 5, 5)).rows
    if backend == "cpp":
        assert row.reason.startswith("x is copied to channels-last memory, and the result back: 0.0 MB each way")
