"""dense_chain: L concatenating growths on rows (pre-activation, relu, biases), against the same in plain torch."""

import torch
from torch.nn import functional as F

from fastnest import functional, testing
from fastnest.benchmarks.problem import Case, Form, Problem, leaf

SUBJECTS = ("dense_chain",)
FORWARD_PEERS = ("eager", "in-place", "compile")
# addmm(out=) has no derivative, so training has no in-place peer.
TRAIN_PEERS = ("eager", "compile")
AUTOTUNE = ("max-autotune",)

# (n, n_in, d, l, h), contestants, whether in the two-minute subset; h = 0: no hidden layer.
FORWARD = (
    ((256, 64, 32, 8, 0), (*FORWARD_PEERS, *AUTOTUNE), False),
    ((256, 64, 32, 48, 0), FORWARD_PEERS, False),
    ((1024, 64, 32, 16, 0), (*FORWARD_PEERS, *AUTOTUNE), True),
    ((1024, 64, 32, 32, 0), FORWARD_PEERS, False),
    ((4096, 64, 32, 8, 0), FORWARD_PEERS, False),
    ((4096, 64, 32, 32, 0), (*FORWARD_PEERS, *AUTOTUNE), False),
    ((4096, 64, 32, 48, 0), FORWARD_PEERS, False),
    ((65536, 64, 32, 16, 0), FORWARD_PEERS, False),
    ((1024, 64, 32, 16, 128), FORWARD_PEERS, False),
    ((1, 64, 32, 16, 0), FORWARD_PEERS, True),
    ((16, 64, 32, 16, 0), FORWARD_PEERS, False),
)
TRAIN = (
    ((256, 64, 32, 8, 0), TRAIN_PEERS, False),
    ((1024, 64, 32, 32, 0), (*TRAIN_PEERS, *AUTOTUNE), True),
    ((4096, 64, 32, 8, 0), TRAIN_PEERS, False),
    ((4096, 64, 32, 48, 0), TRAIN_PEERS, False),
    ((1024, 64, 32, 16, 128), TRAIN_PEERS, False),
)
BFLOAT16 = (
    ("forward", (1024, 64, 32, 32, 0), FORWARD_PEERS),
    ("forward", (4096, 64, 32, 48, 0), FORWARD_PEERS),
    ("forward", (65536, 64, 32, 16, 0), FORWARD_PEERS),
    ("train", (4096, 64, 32, 32, 0), TRAIN_PEERS),
)


def cases() -> list[Case]:
    def case(mode, dtype, sizes, peers, quick=False):
        return Case(SUBJECTS[0], mode, dtype, dict(zip(("n", "in", "d", "l", "h"), sizes, strict=True)), peers, quick)

    return [
        *(case("forward", "float32", *line) for line in FORWARD),
        *(case("train", "float32", *line) for line in TRAIN),
        *(case(mode, "bfloat16", sizes, peers) for mode, sizes, peers in BFLOAT16),
    ]


def forms(l: int, hidden: bool):
    """fused, eager, in-place: functions of (x, weights, biases[, hidden weights, hidden biases]), one tensor each."""

    def split(parameters):
        lists = [parameters[i : i + l] for i in range(0, len(parameters), l)]
        return lists if hidden else [*lists, (None,) * l, (None,) * l]

    def fused(x, *parameters):
        weight, bias, hidden_weight, hidden_bias = split(parameters)
        if not hidden:
            return functional.dense_chain(x, weight, bias=bias)
        return functional.dense_chain(x, weight, bias=bias, hidden_weight=hidden_weight, hidden_bias=hidden_bias)

    def eager(x, *parameters):
        for weight, bias, hidden_weight, hidden_bias in zip(*split(parameters), strict=True):
            a = F.relu(x)
            if hidden_weight is not None:
                a = F.relu(F.linear(a, hidden_weight, hidden_bias))
            x = torch.cat([x, F.linear(a, weight, bias)], 1)
        return x

    def in_place(x, *parameters):
        lists = split(parameters)
        m = x.shape[1]
        y = x.new_empty(x.shape[0], m + sum(weight.shape[0] for weight in lists[0]))
        y[:, :m] = x
        for weight, bias, hidden_weight, hidden_bias in zip(*lists, strict=True):
            a = F.relu(y[:, :m])
            if hidden_weight is not None:
                a = F.linear(a, hidden_weight, hidden_bias).relu_()
            torch.addmm(bias, a, weight.t(), out=y[:, m : m + weight.shape[0]])
            m += weight.shape[0]
        return y

    return fused, eager, in_place


def parameters(n_in: int, d: int, l: int, h: int, like: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """weights [d, m_{i-1}] (or [d, h]), biases [d], then hidden weights [h, m_{i-1}] and biases [h] if h."""

    def normal(*shape):
        return (torch.randn(*shape, generator=generator) * (shape[1] ** -0.5 if len(shape) == 2 else 0.1)).to(like)

    widths = [n_in + i * d for i in range(l)]
    lists = [[normal(d, h or m) for m in widths], [normal(d) for _ in widths]]
    if h:
        lists += [[normal(h, m) for m in widths], [normal(h) for _ in widths]]
    return [tensor for tensors in lists for tensor in tensors]


def problem(case: Case, device: str = "cpu") -> Problem:
    n, n_in, d, l, h = (case.sizes[letter] for letter in ("n", "in", "d", "l", "h"))
    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, n_in, generator=generator).to(device, dtype)
    tensors = parameters(n_in, d, l, h, x, generator)
    named = zip(("fastnest", "eager", "in-place"), forms(l, bool(h)), strict=True)
    cost = testing.Case(
        "dense_chain", {"n": n, "m": n_in, "d": (d,) * l, "h": (h,) * l if h else ()}, ("scale", "shift")
    )
    return Problem(
        forms={name: Form(call, leaf([x, *tensors])) for name, call in named},
        flops=testing.flops(cost, case.mode == "train"),
        bytes=testing.bytes_moved(cost, dtype),
    )


def bench_dense_chain(benchmark, contestant):
    benchmark(contestant)
