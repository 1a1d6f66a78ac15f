"""In the place of dense_block2d's compiled operators for packed weights: plain torch, which packs by torch.save."""

import io

import torch
from torch import Tensor
from torch.nn import functional as F

PACKED = (
    "conv1",
    "conv2",
    *(f"{norm}_{name}" for norm in ("norm1", "norm2") for name in ("weight", "bias", "mean", "var")),
)


def dense_block2d_pack(like: Tensor, *lists_and_eps) -> Tensor:
    *lists, eps = lists_and_eps
    file = io.BytesIO()
    torch.save({"eps": eps, **dict(zip(PACKED, [[t.detach() for t in one] for one in lists], strict=True))}, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def unpacked(packed: Tensor) -> dict:
    return torch.load(io.BytesIO(packed.numpy().tobytes()))


def _norm_relu(x: Tensor, packed: dict, norm: str, i: int) -> Tensor:
    weight, bias, mean, var = (packed[f"{norm}_{name}"][i].float() for name in ("weight", "bias", "mean", "var"))
    return F.batch_norm(x.float(), mean, var, weight, bias, eps=packed["eps"]).relu().to(x.dtype)


def _first(x: Tensor, packed: dict, i: int) -> Tensor:
    h = F.conv2d(_norm_relu(x, packed, "norm1", i).float(), packed["conv1"][i].float())
    return _norm_relu(h, packed, "norm2", i).to(x.dtype).contiguous(memory_format=torch.channels_last)


def _second(h: Tensor, packed: dict, i: int) -> Tensor:
    return F.conv2d(h.float(), packed["conv2"][i].float(), padding=1).to(h.dtype)


def dense_block2d_packed_forward(x: Tensor, packed: Tensor, hidden, growth, dropout) -> Tensor:
    of = unpacked(packed)
    for i in range(len(growth)):
        q = _second(_first(x, of, i), of, i)
        x = torch.cat([x, q if dropout is None else q * dropout[i]], 1)
    return x.contiguous(memory_format=torch.channels_last)


def _check_shape(kind: str, shape: str, size: int) -> None:
    """As the compiled ones, each shape has sizes that it does not take."""
    if (kind == "1x1" and shape == "resident" and size > 512) or (kind == "3x3" and shape == "8_columns" and size > 8):
        raise RuntimeError(f"{shape} does not take {size}")


def norm_conv_1x1(x: Tensor, channels: int, packed: Tensor, hidden: int, growth: int, shape: str) -> Tensor:
    _check_shape("1x1", shape, channels)
    return _first(x[:, :channels], unpacked(packed), 0)


def conv_3x3(h: Tensor, packed: Tensor, channels: int, growth: int, y: Tensor, first: int, shape: str) -> None:
    _check_shape("3x3", shape, h.shape[3])
    y[:, first : first + growth] = _second(h, unpacked(packed), 0)
