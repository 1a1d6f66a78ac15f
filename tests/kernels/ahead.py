"""An op's Triton kernels compiled ahead of time for GPUs that are not here, and what the compiler says they need.

    ahead.py OP|all [TARGET ...] [PRODUCT ...] [NAME=VALUE ...]

prints a line for every launch and ends with 1 where one spills registers, wants more shared memory than the part has,
or leaves a dot to other units than tensor cores. Without more words it takes what CALLS lists, as test_ahead.py does.
TARGET and PRODUCT choose from it; NAME=VALUE are sizes and options of the op in place of those listed:

    ahead.py residual_chain sm_80 tf32x3 m=512 k=32 mid=True
"""

import ast
import re
import subprocess
import sys
import tempfile
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction, create_function_from_signature

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Part(NamedTuple):
    target: GPUTarget
    shared: int  # KiB that a program may have
    tensor_core: str  # instructions, as a pattern


TARGETS = {
    "sm_80": Part(GPUTarget("cuda", 80, 32), 163, r"\bHMMA"),
    "sm_90": Part(GPUTarget("cuda", 90, 32), 227, r"\bHG?MMA"),
    "sm_100": Part(GPUTarget("cuda", 100, 32), 227, r"\b(UTC)?HMMA"),
    "gfx942": Part(GPUTarget("hip", "gfx942", 64), 64, r"\bv_mfma"),
}
# How float32 is multiplied (kernels/launch.py; on AMD as it is), or the tensors' dtype.
PRODUCTS = {"tf32": "float32", "tf32x3": "float32", "bfloat16": "bfloat16", "float16": "float16"}


def launchers(op: str) -> list:
    """The functions that launch an op's kernels."""
    module = import_module(f"fastnest.kernels.{op}")
    return [getattr(module, f"{op}_{way}") for way in ("forward", "backward")]


def residual_chain(
    new, n=4096, m=256, k=64, l=8, activation="relu", mid=False, affine=False, features=False, train=True
):
    forward, backward = launchers("residual_chain")
    x, down, up, bias = new(n, m), new(l, k, m), new(l, m, k), new(l, k)
    middle = (new(l, k, k), bias) if mid else (None, None)
    scales = (new(l, m), new(l, m)) if affine else (None, None)
    arguments = (down, bias, *middle, up, *scales)
    y, _, hidden, stream = forward(x, *arguments, activation, True, features, train)
    if not train:
        return
    end = stream if stream.numel() else y
    backward(y, new(n, l, k) if features else None, x, end, hidden, *arguments, activation, True)


def dense_chain(new, n=4096, m=64, d=32, h=128, l=8, activation="relu", pre_activation=True, affine=False, train=True):
    forward, backward = launchers("dense_chain")
    widths = [m + i * d for i in range(l)]
    weight, bias = [new(d, h or width) for width in widths], [new(d)] * l
    hidden_weight, hidden_bias = [new(h, width) for width in widths if h], [new(h)] * l if h else []
    scales = [[new(width) for width in widths] if affine else [] for _ in range(2)]
    arguments = (weight, bias, hidden_weight, hidden_bias, *scales, activation, pre_activation)
    y, hidden = forward(new(n, m), *arguments, train)
    if train:
        backward(y, y, hidden, *arguments)


def image(new, n: int, c: int, size: int) -> torch.Tensor:
    return new(n, c, size, size).contiguous(memory_format=torch.channels_last)


def batch_stats(new, n=8, c=256, size=56):
    import_module("fastnest.kernels.batch_stats").batch_stats(image(new, n, c, size))


def dense_block2d(new, n=8, c=64, size=56, d=32, b=128, l=2, batch=True, dropout=False, train=True):
    forward, backward = launchers("dense_block2d")
    widths, hidden = [c + i * d for i in range(l)], [b] * l if b else []
    conv1 = [new(b, width, 1, 1) for width in widths] if b else []
    conv2 = [new(d, b or width, 3, 3) for width in widths]

    def norms(statistics: bool) -> list[list[torch.Tensor]]:
        def four(sizes: list[int]) -> list[list[torch.Tensor]]:
            return [[new(s).float() for s in sizes] if i < 2 or statistics else [] for i in range(4)]

        return [*four(widths), *four(hidden)]

    masks = [image(new, n, d, size)] * l if dropout else []
    x = image(new, n, c, size)
    y, z, *_ = forward(x, conv1, conv2, *norms(not batch), masks, 1e-5, train)
    if train:
        backward(y, y, z, conv1, conv2, *norms(True), masks, 1e-5, batch)


def residual_block2d(
    op, new, n=8, c=256, k=64, size=56, stride=1, projection=False, norm=True, batch=True, bias=False, train=True
):
    forward, backward = launchers(op)
    shapes = [(k, c, 1), (k, k, 3), (c, k, 1)] if op == "bottleneck2d" else [(k, c, 3), (c, k, 3)]
    conv = [new(o, i, side, side).contiguous(memory_format=torch.channels_last) for o, i, side in shapes]
    bias_of_conv = [new(o).float() for o, _, _ in shapes if bias]

    def norms(statistics: bool) -> list[list[torch.Tensor]]:
        return [[new(i).float() for _, i, _ in shapes] if norm and (j < 2 or statistics) else [] for j in range(4)]

    shortcut = (new(c, c, 1, 1) if projection else None, new(c).float() if projection and bias else None)
    x = image(new, n, c, size)
    y, v, hidden, *_ = forward(x, conv, bias_of_conv, *norms(not batch), *shortcut, stride, 1e-5, True, train)
    if train:
        statistics = norms(True)
        backward(y, v, x, hidden, conv, bias_of_conv, *statistics, *shortcut, stride, 1e-5, norm and batch)


EVERY = tuple(TARGETS)
# Of every op: what calls its launchers, and with what (targets, products, sizes and options): the shipped choices at
# one typical size each. Few, as a kernel takes a second or more. `new` makes a tensor of the dtype.
CALLS = {
    "residual_chain": (
        residual_chain,
        [
            (EVERY, ("tf32x3", "bfloat16"), {}),
            (("sm_90",), ("tf32", "float16"), {}),
            (("sm_90",), ("bfloat16",), {"train": False, "tuned": True}),
            (("sm_80",), ("tf32x3", "bfloat16"), {"m": 1024, "k": 128}),
            (
                ("sm_90", "gfx942"),
                ("tf32x3", "bfloat16"),
                {"mid": True, "affine": True, "features": True, "activation": "gelu"},
            ),
        ],
    ),
    "dense_chain": (
        dense_chain,
        [
            (EVERY, ("tf32x3", "bfloat16"), {}),
            (("sm_90",), ("tf32", "float16"), {}),
            (("sm_90",), ("bfloat16",), {"train": False, "tuned": True}),
            (("sm_80",), ("tf32x3", "bfloat16"), {"h": 0, "affine": True, "activation": "gelu"}),
            (("sm_90",), ("bfloat16",), {"h": 0, "pre_activation": False, "activation": "gelu"}),
        ],
    ),
    "batch_stats": (batch_stats, [(EVERY, ("tf32x3", "bfloat16", "float16"), {})]),
    "dense_block2d": (
        dense_block2d,
        [
            (EVERY, ("tf32x3", "bfloat16"), {}),
            (("sm_90",), ("tf32", "float16"), {}),
            (("sm_90",), ("bfloat16",), {"train": False, "batch": False, "tuned": True}),
            (("sm_80",), ("bfloat16",), {"size": 28, "b": 0, "dropout": True}),
        ],
    ),
    "bottleneck2d": (
        partial(residual_block2d, "bottleneck2d"),
        [
            (EVERY, ("tf32x3", "bfloat16"), {}),
            (("sm_90",), ("tf32", "float16"), {}),
            (("sm_80",), ("tf32x3", "bfloat16"), {"stride": 2, "projection": True, "bias": True}),
            (("sm_90",), ("bfloat16",), {"c": 1024, "k": 256, "size": 14, "norm": False}),
        ],
    ),
    "basic_block2d": (
        partial(residual_block2d, "basic_block2d"),
        [(EVERY, ("tf32x3", "bfloat16"), {"c": 128, "k": 128, "size": 28})],
    ),
}


class Pointer:
    """What a launch asks of a tensor: its dtype, and an address, here by how far into its memory it begins."""

    def __init__(self, tensor: torch.Tensor):
        self.dtype, self.at = tensor.dtype, tensor.storage_offset() * tensor.itemsize

    def data_ptr(self) -> int:
        return self.at


def record(launches: list, backend, kernel: JITFunction, *arguments, grid=None, warmup=False, **named) -> None:
    """Notes the launch in place of JITFunction.run: what that would compile."""
    arguments = [Pointer(one) if isinstance(one, torch.Tensor) else one for one in arguments]
    named = {name: Pointer(one) if isinstance(one, torch.Tensor) else one for name, one in named.items()}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*arguments, **named)
    options, signature, constexprs, attributes = kernel._pack_args(backend, named, bound, specialization, options)
    tiles = {name: value for name, value in bound.items() if name in ("ROWS", "CHUNK", "FEATURES", "HELD")}
    launches.append((kernel, ASTSource(kernel, signature, constexprs, attributes), options, tiles))


def run_every_config(tuner: Autotuner, *arguments, **named) -> None:
    for config in tuner.configs:
        tuner.fn.run(*arguments, **named, **config.all_kwargs())


def launches_of(call, target: str, kind: str, tuned: bool = False, **options) -> list:
    """The distinct launches of one call with fake tensors; tuned: with every choice of tiles that is measured."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    launches = []
    backend = make_backend(TARGETS[target].target)
    JITFunction.run = lambda kernel, *arguments, **named: record(launches, backend, kernel, *arguments, **named)
    Autotuner.run = run_every_config
    launch = import_module("fastnest.kernels.launch")
    launch.tuning(tuned)
    launch.measure = lambda run: run() or 0
    with FakeTensorMode():
        call(partial(torch.empty, dtype=getattr(torch, PRODUCTS[kind])), **options)
    assert launches, "nothing was launched"
    distinct = {launch[1].hash() + launch[2].hash(): launch for launch in launches}
    return list(distinct.values())


def said_by_nvidia(compiled) -> tuple[dict, str]:
    """Registers, bytes of stack and instructions of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()

        def dump(what: str) -> str:
            return subprocess.run([CUOBJDUMP, what, file.name], capture_output=True, text=True, check=True).stdout

        used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump("--dump-resource-usage")))
        code = dump("-sass")
    spilled = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return {"registers": int(used["REG"]), "stack": int(used["STACK"]) + int(used["LOCAL"]), "spilled": spilled}, code


def said_by_amd(compiled) -> tuple[dict, str]:
    code = compiled.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", code)[1])

    used = {"registers": number("vgpr_count"), "stack": number("private_segment_fixed_size")}
    return used | {"spilled": number("vgpr_spill_count")}, code


def report(launch, target: str) -> tuple[str, list[str]]:
    """What a launch needs, in words, and what is wrong with that."""
    kernel, source, options, tiles = launch
    part = TARGETS[target]
    head = f"{kernel.__name__} {' '.join(f'{name}={value}' for name, value in tiles.items())} warps={options.num_warps}"
    try:
        compiled = triton.compile(source, target=part.target, options=options.__dict__)
    except Exception as error:  # whatever a compiler ends with
        return head, [f"does not compile: {type(error).__name__}: {str(error)[-300:]}"]
    used, code = (said_by_amd if part.target.backend == "hip" else said_by_nvidia)(compiled)
    cores = len(re.findall(part.tensor_core, code))
    shared = compiled.metadata.shared / 1024
    wrong = []
    if used["stack"] or used["spilled"]:
        wrong.append("spills")
    if shared > part.shared:
        wrong.append(f"more shared memory than {part.shared} KiB")
    if "tt.dot" in compiled.asm["ttir"] and not cores:
        wrong.append("no tensor cores")
    used = " ".join(f"{name}={value}" for name, value in used.items())
    return f"{head} {used} shared={shared:.1f}KiB tensor_core={cores}", wrong


def value_of(word: str):
    return ast.literal_eval(word) if word[0].isdigit() or word in ("True", "False", "None") else word


def calls(op: str, target: str, words: tuple[str, ...]) -> list[tuple[str, dict]]:
    """Products and options: those listed for the target, or those that the words name."""
    kinds = [word for word in words if word in PRODUCTS]
    options = dict(word.split("=") for word in words if word not in PRODUCTS)
    if options:
        options = {name: value_of(value) for name, value in options.items()}
        return [(kind, options) for kind in kinds or PRODUCTS]
    listed = [(kind, options) for where, of, options in CALLS[op][1] if target in where for kind in of]
    return [one for one in listed if one[0] in (kinds or PRODUCTS)]


def main(op: str, target: str, *words: str) -> int:
    """Prints a line for every launch; how many are wrong."""
    failed = 0
    for kind, options in calls(op, target, words):
        sizes = " ".join(f"{name}={value}" for name, value in options.items()) or "defaults"
        for launch in launches_of(CALLS[op][0], target, kind, **options):
            line, wrong = report(launch, target)
            failed += bool(wrong)
            print(op, target, kind, sizes, line, f" FAILED: {', '.join(wrong)}" if wrong else "", flush=True)
    return failed


if __name__ == "__main__":
    op, *words = sys.argv[1:]
    if op not in ("all", *CALLS):
        sys.exit(f"ahead.py: no calls of {op!r}, only of {', '.join(CALLS)}")
    named = [word for word in words if word in TARGETS]
    if op != "all" and len(named) == 1:
        # The kernels ask once, when they are imported, whether torch was built for AMD's parts.
        torch.version.hip = "6" if TARGETS[named[0]].target.backend == "hip" else None
        words.remove(named[0])
        sys.exit(min(1, main(op, named[0], *words)))
    rest = [word for word in words if word not in TARGETS]
    each = product(CALLS if op == "all" else [op], named or TARGETS)
    ends = [subprocess.call([sys.executable, __file__, one, target, *rest]) for one, target in each]
    sys.exit(max(ends))
