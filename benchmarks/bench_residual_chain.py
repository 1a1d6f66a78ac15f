"""residual_chain: L bottleneck blocks on rows (pre-activation, relu, biases), against the same in plain torch."""

import torch
from torch.nn import functional as F

from fastnest import functional, testing
from fastnest.benchmarks.problem import Case, Form, Problem, leaf

SUBJECTS = ("residual_chain",)
PEERS = ("eager", "in-place", "compile")
ALL = (*PEERS, "max-autotune")

# (n, m, k, l), contestants, whether in the two-minute subset. Corners of N x M x K x L and points between.
FORWARD = (
    ((256, 256, 16, 8), ALL, True),
    ((256, 1024, 64, 32), ALL, False),
    ((1024, 512, 32, 16), ALL, True),
    ((1024, 256, 64, 32), PEERS, False),
    ((1024, 1024, 16, 8), PEERS, False),
    ((4096, 256, 16, 32), ALL, False),
    ((4096, 512, 64, 16), PEERS, False),
    ((4096, 1024, 32, 32), PEERS, False),
    ((65536, 256, 16, 8), PEERS, False),
    ((1, 256, 16, 8), ALL, True),
    ((1, 1024, 64, 32), PEERS, False),
    ((4, 256, 32, 16), PEERS, False),
    ((16, 256, 32, 16), PEERS, False),
    ((16, 1024, 64, 32), PEERS, False),
    ((64, 512, 32, 16), PEERS, False),
    ((1024, 256, 32, 32), ("eager",), False),
    ((1024, 256, 32, 256), ("eager",), False),
)
TRAIN = (
    ((256, 256, 16, 8), ALL, False),
    ((256, 1024, 64, 32), PEERS, False),
    ((1024, 512, 32, 16), ALL, True),
    ((4096, 256, 16, 32), PEERS, False),
    ((4096, 512, 64, 16), PEERS, False),
    ((4096, 1024, 32, 8), PEERS, False),
    ((65536, 256, 16, 8), ("eager", "compile"), False),
    ((1, 256, 16, 8), PEERS, False),
    ((16, 256, 32, 16), PEERS, False),
    ((1024, 256, 32, 32), ("eager",), False),
    ((1024, 256, 32, 256), ("eager",), False),
)
BFLOAT16 = (
    ("forward", (256, 1024, 64, 32), PEERS),
    ("forward", (1024, 512, 32, 16), ALL),
    ("forward", (4096, 256, 16, 8), PEERS),
    ("forward", (4096, 512, 64, 16), PEERS),
    ("forward", (65536, 256, 16, 8), PEERS),
    ("train", (1024, 512, 32, 16), PEERS),
    ("train", (4096, 512, 64, 16), PEERS),
)


def cases() -> list[Case]:
    def case(mode, dtype, sizes, peers, quick=False):
        return Case(SUBJECTS[0], mode, dtype, dict(zip("nmkl", sizes, strict=True)), peers, quick)

    return [
        *(case("forward", "float32", *line) for line in FORWARD),
        *(case("train", "float32", *line) for line in TRAIN),
        *(case(mode, "bfloat16", sizes, peers) for mode, sizes, peers in BFLOAT16),
    ]


def eager(x, *parameters):
    """As one writes it: a linear map, an activation and a sum per line."""
    l = len(parameters) // 3
    for down, bias, up in zip(parameters[:l], parameters[l : 2 * l], parameters[2 * l :], strict=True):
        x = x + F.linear(F.relu(F.linear(F.relu(x), down, bias)), up)
    return x


def in_place(x, *parameters):
    """As one writes it for speed: the sum inside the matrix product, no new stream per block."""
    l = len(parameters) // 3
    for i, (down, bias, up) in enumerate(zip(parameters[:l], parameters[l : 2 * l], parameters[2 * l :], strict=True)):
        v = F.linear(F.relu(x), down, bias).relu_()
        x = torch.addmm(x, v, up.t()) if i == 0 else x.addmm_(v, up.t())
    return x


def fused(x, down, down_bias, up):
    return functional.residual_chain(x, down, up, down_bias=down_bias)


def parameters(m: int, k: int, l: int, like: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """down [l, k, m], down_bias [l, k], up [l, m, k], such that the stream keeps its size through any depth."""
    down = torch.randn(l, k, m, generator=generator) * (2 / m) ** 0.5
    bias = torch.randn(l, k, generator=generator) * 0.1
    up = torch.randn(l, m, k, generator=generator) * (1 / (k * l)) ** 0.5
    return [t.to(like) for t in (down, bias, up)]


def by_block(l: int):
    """The gradients of separate blocks as those of the stacked tensors."""

    def collect(gradients):
        dx, *rest = gradients
        return [dx, *(torch.stack(rest[i : i + l]) for i in range(0, len(rest), l))]

    return collect


def problem(case: Case, device: str = "cpu") -> Problem:
    n, m, k, l = (case.sizes[letter] for letter in "nmkl")
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, m, generator=generator).to(device, dtype)
    stacked = parameters(m, k, l, x, generator)
    blocks = [block for tensor in stacked for block in tensor.unbind()]
    cost = testing.Case("residual_chain", case.sizes, absent=("mid", "mid_bias", "scale", "shift"))
    return Problem(
        forms={
            "fastnest": Form(fused, leaf([x, *stacked])),
            "eager": Form(eager, leaf([x, *blocks]), by_block(l)),
            "in-place": Form(in_place, leaf([x, *blocks]), by_block(l)),
        },
        flops=testing.flops(cost, case.mode == "train"),
        bytes=testing.bytes_moved(cost, dtype),
    )


def bench_residual_chain(benchmark, contestant):
    benchmark(contestant)
