"""What is timed on a GPU, in groups by subject; the first of every group is run first, then the second of every one."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from fastnest import _backend
from fastnest.benchmarks.problem import Case

# Modes of torch.compile, the cheapest first: default, tuned, and tuned with CUDA graphs of its own. The first two are
# captured in a CUDA graph like every other contestant.
COMPILED = ("compile", "max-autotune-no-cudagraphs", "max-autotune")
AT_ONCE = ("eager", "memory-efficient", "triton")  # need not be compiled
PEERS = (*AT_ONCE, *COMPILED)


def _residual(mode: str, dtype: str, *sizes: tuple[int, int, int, int]) -> list[Case]:
    peers = ("eager", *COMPILED)
    return [Case("residual_chain", mode, dtype, dict(zip("nmkl", one, strict=True)), peers) for one in sizes]


def _dense(mode: str, *sizes: tuple[int, int]) -> list[Case]:
    return [
        Case("dense_chain", mode, "bfloat16", {"n": n, "in": 64, "d": 32, "l": l, "h": 0}, ("eager", *COMPILED))
        for n, l in sizes
    ]


def _densenet(mode: str, *images: int) -> list[Case]:
    """In evaluation beside the kernels in Triton, where there are some in CUDA C++."""
    beside = ("triton",) if "cuda" in _backend.registered("dense_block2d_forward") else ()
    peers = ("eager", *(("memory-efficient",) if mode == "train" else beside), *COMPILED)
    return [Case("DenseNet-121", mode, "bfloat16", {"n": n, "px": 224}, peers) for n in images]


def _stages(mode: str) -> list[Case]:
    """Those of ResNet-50: blocks 256-64-64-256 on 56 x 56 pixels, 1024-256-256-1024 on 14 x 14."""
    return [
        Case("bottleneck stage", mode, "bfloat16", {"n": 64, "px": px, "c": c, "k": k, "b": b}, ("eager", *COMPILED))
        for px, c, k, b in ((56, 256, 64, 3), (14, 1024, 256, 6))
    ]


def groups() -> dict[str, list[Case]]:
    many = [(16384, 512, 64, 16), (65536, 256, 64, 8), (65536, 1024, 64, 32), (4096, 1024, 64, 32), (4096, 256, 64, 8)]
    few = [(256, 512, 64, 16), (1, 256, 64, 8), (1024, 1024, 64, 32), (16, 512, 64, 16), (64, 256, 64, 32)]
    found = {
        "residual_chain, many rows": _residual("forward", "bfloat16", *many),
        "residual_chain, training": _residual("train", "bfloat16", *many[:4]),
        "residual_chain, few rows": _residual("forward", "bfloat16", *few),
        "residual_chain, few rows, training": _residual("train", "bfloat16", *few[:3]),
        "DenseNet-121": _densenet("forward", 64, 1, 256, 8),
        "DenseNet-121, training": _densenet("train", 64),
        "bottleneck stages": _stages("forward"),
        "bottleneck stages, training": _stages("train"),
        "dense_chain": _dense("forward", (16384, 16), (65536, 48), (4096, 48), (256, 8)),
        "dense_chain, training": _dense("train", (16384, 16), (4096, 48)),
        "residual_chain, other dtypes": [
            *_residual("forward", "float32", many[0]),
            *_residual("forward", "float16", many[0]),
            *_residual("train", "float32", many[0]),
        ],
    }
    return found | _in_cuda(found)


def _in_cuda(found: dict[str, list[Case]]) -> dict[str, list[Case]]:
    """The same cases of every op that has kernels in CUDA C++, forced on them, beside Triton's."""

    def forced(case: Case) -> Case:
        return replace(case, backend="cuda", peers=("triton", "eager"))

    return {
        f"{name}, in CUDA C++": [forced(case) for case in group]
        for name, group in found.items()
        if "cuda" in _backend.registered(f"{group[0].subject}_forward")
    }


def in_order() -> list[Case]:
    """By worth: whatever is cut off, every group has been begun."""
    rounds = zip_longest(*groups().values())
    return [case for one_round in rounds for case in one_round if case is not None]


def named(name: str) -> Case:
    return next(case for case in in_order() if case.name == name)


def is_network(case: Case) -> bool:
    """Whether torch.compile takes minutes for it: it has hundreds of kernels."""
    return case.subject == "DenseNet-121"


def compiled_pairs(peers: Sequence[str] = COMPILED) -> list[tuple[Case, str]]:
    """Every case with each of its peers that are compiled: quick ones first, whole networks last."""
    pairs = [(case, peer) for case in in_order() for peer in case.peers if peer in COMPILED and peer in peers]
    return sorted(
        pairs, key=lambda pair: (is_network(pair[0]) * (1 + (pair[0].mode == "train")), COMPILED.index(pair[1]))
    )


def compile_limit(case: Case) -> float:
    """Seconds for one peer: on a single core beside others or, for a network, on all cores.

    On 16 slow cores a training step of DenseNet-121 took more than 95.
    """
    return (150 if case.mode == "forward" else 300) if is_network(case) else 90
