"""Bottleneck2d and BasicBlock2d against the same layers in torch's own modules."""

import copy
import pickle

import pytest
import torch
from marks import best_kernel
from nn.norms import without_affine, without_parameters
from torch.nn import functional as F

from fastnest import nn
from fastnest.nn.image import run_residual_block
from fastnest.testing import kernel

BLOCKS = {
    "bottleneck": lambda **options: nn.Bottleneck2d(16, 8, **options),
    "bottleneck, projected": lambda **options: nn.Bottleneck2d(16, 8, 24, stride=2, **options),
    "basic": lambda **options: nn.BasicBlock2d(16, 12, **options),
    "basic, projected": lambda **options: nn.BasicBlock2d(16, 24, 24, stride=2, **options),
}
every_block = pytest.mark.parametrize("make", BLOCKS.values(), ids=list(BLOCKS))


class Plain(torch.nn.Module):
    """The block's modules called one by one: what its parameters mean."""

    def __init__(self, block):
        super().__init__()
        self.block = copy.deepcopy(block)

    def forward(self, x):
        block = self.block
        names = [name[4:] for name, _ in block.named_children() if name.startswith("conv")]
        a = v = None
        for i in names:
            z = x if v is None else block.get_submodule(f"conv{int(i) - 1}")(v)
            v = F.relu(block.get_submodule(f"norm{i}")(z) if hasattr(block, f"norm{i}") else z)
            a = v if a is None else a
        y = block.get_submodule(f"conv{names[-1]}")(v)
        return y + (x if block.downsample is None else block.downsample(a)), v


def block_and_plain(make, dtype=torch.float32, **options):
    torch.manual_seed(0)
    block = make(dtype=dtype, **options)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
        elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return block, Plain(block)


@best_kernel
@every_block
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_is_its_modules_one_by_one(name, make, training, momentum):
    """Outputs, gradients, running statistics and their count; in float64 too, where the reference is exact."""
    for dtype, rtol in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        block, plain = block_and_plain(make, dtype)
        for module in (*block.modules(), *plain.modules()):
            module.momentum = momentum
        block.train(training)
        plain.train(training)
        with kernel("reference" if dtype is torch.float64 else name):
            for _ in range(2):
                x = torch.randn(5, 16, 9, 7, dtype=dtype)
                inputs = [x.contiguous(memory_format=torch.channels_last).requires_grad_() for _ in range(2)]
                outputs = block(inputs[0], return_features=True), plain(inputs[1])
                torch.testing.assert_close(*outputs, rtol=rtol, atol=rtol)
                parameters = (inputs[0], *block.parameters()), (inputs[1], *plain.parameters())
                gradients = [
                    torch.autograd.grad(sum(out.sin().sum() for out in outs), ps)
                    for outs, ps in zip(outputs, parameters, strict=True)
                ]
                torch.testing.assert_close(*gradients, rtol=rtol, atol=rtol * 10)
        torch.testing.assert_close(list(block.buffers()), list(plain.buffers()), rtol=rtol, atol=rtol)
        tracked = [buffer.item() for key, buffer in block.named_buffers() if key.endswith("num_batches_tracked")]
        assert tracked == [2 if training else 0] * len(tracked)


@best_kernel
@every_block
def test_without_batch_norms(name, make):
    block, plain = block_and_plain(make, norm=None)
    assert all(module.bias is not None for module in block.modules() if isinstance(module, torch.nn.Conv2d))
    x = torch.randn(2, 16, 6, 5)
    with kernel(name):
        torch.testing.assert_close(block(x, return_features=True), plain(x))
        torch.testing.assert_close(block(x), plain(x)[0])


@best_kernel
def test_biases_beside_batch_norms_and_of_some_convolutions_only(name):
    block, plain = block_and_plain(BLOCKS["basic, projected"], bias=True)
    for one in (block, plain.block):
        one.conv2.bias = one.downsample.conv.bias = None
    x = torch.randn(4, 16, 6, 5)
    with kernel(name):
        torch.testing.assert_close(block(x, return_features=True), plain(x))


@best_kernel
def test_statistics_of_an_empty_batch_move_nothing(name):
    block, plain = block_and_plain(BLOCKS["bottleneck, projected"])
    x = torch.zeros(0, 16, 6, 5)
    with kernel(name):
        assert block(x).shape == plain(x)[0].shape == (0, 24, 3, 3)
    assert block.norm1.num_batches_tracked == 1
    assert all(map(torch.equal, plain.buffers(), block.buffers()))


@best_kernel
def test_norms_that_do_not_train_or_keep_no_statistics(name):
    """Frozen batch norms beside training convolutions, and batch statistics in evaluation."""
    x = torch.randn(4, 16, 6, 5)
    block, plain = block_and_plain(BLOCKS["basic"])
    for one in (block, plain.block):
        for module in (one.norm1, one.norm2):
            module.eval()
    with kernel(name):
        torch.testing.assert_close(block(x), plain(x)[0])
    assert block.norm1.num_batches_tracked == 0
    for one in (block, plain.block):
        for key in ("norm1", "norm2"):
            setattr(one, key, torch.nn.BatchNorm2d(one.get_submodule(key).num_features, track_running_stats=False))
    with kernel(name):
        torch.testing.assert_close(block.eval()(x), plain.eval()(x)[0])


@best_kernel
@every_block
@without_parameters
def test_norms_without_parameters(name, make, tracks):
    for dtype, rtol in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        block = without_affine(make(dtype=dtype), tracks)
        plain = Plain(block)
        with kernel("reference" if dtype is torch.float64 else name):
            for training in (True, False):
                block.train(training), plain.train(training)
                x = torch.randn(3, 16, 6, 5, dtype=dtype, requires_grad=True)
                outputs = block(x, return_features=True), plain(x)
                torch.testing.assert_close(*outputs, rtol=rtol, atol=rtol)
                gradients = [
                    torch.autograd.grad(sum(out.sin().sum() for out in outs), [x, *one.parameters()])
                    for outs, one in zip(outputs, (block, plain), strict=True)
                ]
                torch.testing.assert_close(*gradients, rtol=rtol, atol=rtol * 10)
        torch.testing.assert_close(list(block.buffers()), list(plain.buffers()), rtol=rtol, atol=rtol)


@every_block
@without_parameters
def test_norms_without_parameters_on_another_device(make, tracks):
    block = without_affine(make(device="meta"), tracks)
    x = torch.randn(3, 16, 6, 5, device="meta", requires_grad=True)
    y, (expected, _) = block(x), Plain(block)(x)
    assert (y.shape, y.dtype, y.device) == (expected.shape, expected.dtype, expected.device)
    y.sum().backward()
    assert all(tensor.grad.is_meta for tensor in (x, *block.parameters()))


@best_kernel
@every_block
@without_parameters
def test_norms_without_parameters_in_bfloat16(name, make, tracks):
    """A block of bfloat16; float32 modules under autocast; and bfloat16 convolutions beside norms in float32."""
    x = torch.randn(3, 16, 6, 5)
    with kernel(name):
        for one in (x, x.bfloat16()):
            block = without_affine(make(), tracks)
            with torch.autocast("cpu", torch.bfloat16):
                assert block(one).dtype is torch.bfloat16
        assert block.bfloat16()(x.bfloat16()).dtype is torch.bfloat16
        block.norm2 = torch.nn.BatchNorm2d(block.norm2.num_features, track_running_stats=tracks)
        block.norm1.float()
        if hasattr(block, "norm3"):
            block.norm3.float()
        y = block(x.bfloat16())
    torch.testing.assert_close(y, Plain(block)(x.bfloat16())[0], rtol=0.05, atol=0.05)


def test_keys_are_those_of_timm():
    keys = {key.rsplit(".", 1)[0] for key in BLOCKS["bottleneck, projected"]().state_dict()}
    assert keys == {"norm1", "conv1", "norm2", "conv2", "norm3", "conv3", "downsample.conv"}
    keys = {key.rsplit(".", 1)[0] for key in BLOCKS["basic"]().state_dict()}
    assert keys == {"norm1", "conv1", "norm2", "conv2"}


@every_block
def test_copies_and_checkpoints(make):
    block, x = make().eval(), torch.randn(2, 16, 6, 5)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(x), block(x))
    other = make().eval()
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(x), block(x))


@every_block
def test_compiles_whole(make):
    block, x = make(), torch.randn(3, 16, 6, 5)
    expected = copy.deepcopy(block)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    outputs = compiled(x, return_features=True), expected(x, return_features=True)
    torch.testing.assert_close(*outputs)
    gradients = [
        torch.autograd.grad(sum(out.sin().sum() for out in outs), list(one.parameters()))
        for outs, one in zip(outputs, (block, expected), strict=True)
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(list(block.buffers()), list(expected.buffers()))
    block.eval(), expected.eval()
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), expected(x))


@every_block
def test_autocast(make):
    block, x = make(), torch.randn(3, 16, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert {p.grad.dtype for p in block.parameters()} == {torch.float32}
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in block.buffers())


@every_block
def test_half_precision(make):
    block = make(dtype=torch.bfloat16)
    y = block(torch.randn(3, 16, 6, 5).bfloat16())
    assert y.dtype is torch.bfloat16
    assert {buffer.dtype for buffer in block.buffers()} == {torch.bfloat16, torch.int64}


def test_repr():
    assert "in_channels=16, out_channels=24, stride=2" in repr(BLOCKS["basic, projected"]())


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (TypeError, lambda: nn.Bottleneck2d(1.5, 4), "Bottleneck2d: in_channels must be an int, got float"),
        (ValueError, lambda: nn.Bottleneck2d(16, 0), "Bottleneck2d: channels must be at least 1, got 0"),
        (ValueError, lambda: nn.BasicBlock2d(16, 4, -1), "BasicBlock2d: out_channels must be at least 1, got -1"),
        (ValueError, lambda: nn.BasicBlock2d(16, 4, stride=3), "BasicBlock2d: stride must be 1 or 2, got 3"),
        (ValueError, lambda: nn.BasicBlock2d(16, 4, norm="layer"), "BasicBlock2d: norm must be None or 'batch'"),
        (TypeError, lambda: BLOCKS["basic"]()([1.0]), "BasicBlock2d: x must be a torch.Tensor, got list"),
        (ValueError, lambda: BLOCKS["basic"]()(torch.zeros(2, 15, 3, 3)),
         "BasicBlock2d: x must be [n, 16, height, width], got x [2, 15, 3, 3]"),
        (ValueError, lambda: BLOCKS["basic"]()(torch.zeros(1, 16, 1, 1)),
         "basic_block2d: batch statistics need more than one value per channel, got x [1, 16, 1, 1]"),
        (ValueError, lambda: BLOCKS["bottleneck, projected"]()(torch.zeros(1, 16, 2, 2)),
         "bottleneck2d: batch statistics need more than one value per channel"),
        (ValueError, lambda: run_residual_block(torch.zeros(1, 1, 1, 1), [], [torch.nn.Conv2d(1, 1, 1)], None),
         "run_residual_block: convs must be 2 or 3 convolutions, got 1"),
    ],
    ids=range(10),
)  # fmt: skip
def test_bad_input(error, make, message):
    with pytest.raises(error) as raised:
        make()
    assert str(raised.value).startswith(message)
