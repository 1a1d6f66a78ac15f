"""An op's Triton kernels compiled ahead of time, without a GPU, and what the compiler reports: ahead.py OP ...

Prints a line for every kernel, target and precision, and ends with 1 where one spills registers, does not fit into
shared memory, or multiplies without tensor cores. test_ahead.py starts it; `ahead.py OP --all` compiles every precision
for every target.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fastnest._backend import choice, installed
from fastnest.testing import Case, run

EVALUATION = ("norm1_mean", "norm1_var", "norm2_mean", "norm2_var")
# Sizes whose tiles are those of every large call; together they reach every line of the kernels.
CASES = {
    "residual_chain": (
        Case("residual_chain", {"n": 4096, "m": 256, "k": 64, "l": 2}, absent=("mid", "mid_bias", "scale", "shift")),
        Case("residual_chain", {"n": 4096, "m": 1024, "k": 64, "l": 2}, absent=("mid", "mid_bias", "scale", "shift")),
        Case("residual_chain", {"n": 4096, "m": 256, "k": 64, "l": 2}, options={"activation": "gelu"}),
    ),
    "dense_chain": (
        Case("dense_chain", {"n": 4096, "m": 64, "d": (32,) * 8, "h": (128,) * 8}, absent=("scale", "shift")),
        Case("dense_chain", {"n": 4096, "m": 64, "d": (32,) * 8, "h": ()}, options={"pre_activation": False}),
        Case("dense_chain", {"n": 4096, "m": 64, "d": (32, 16), "h": (64, 64)}, options={"activation": "gelu"}),
    ),
    "batch_stats": (Case("batch_stats", {"n": 8, "c": 256, "h": 56, "w": 56}, layout="channels last"),),
    "dense_block2d": (
        Case("dense_block2d", {"n": 8, "c": 64, "h": 56, "w": 56, "d": (32, 32), "b": (128, 128)},
             absent=(*EVALUATION, "dropout"), layout="channels last"),
        Case("dense_block2d", {"n": 8, "c": 64, "h": 28, "w": 28, "d": (32, 32), "b": ()},
             absent=EVALUATION, layout="channels last"),
    ),
    "bottleneck2d": (
        Case("bottleneck2d", {"n": 8, "c": 256, "h": 56, "w": 56, "k": 64, "m": 256},
             absent=("conv_bias", "norm_mean", "norm_var", "projection", "projection_bias"), layout="channels last"),
        Case("bottleneck2d", {"n": 8, "c": 64, "h": 56, "w": 56, "k": 64, "m": 256}, absent=("norm_mean", "norm_var"),
             options={"stride": 2, "return_features": True}, layout="channels last"),
    ),
    "basic_block2d": (
        Case("basic_block2d", {"n": 8, "c": 128, "h": 28, "w": 28, "k": 128, "m": 128},
             absent=("conv_bias", "norm_mean", "norm_var", "projection", "projection_bias"), layout="channels last"),
    ),
}  # fmt: skip


class Target(NamedTuple):
    """A part, what a program may have of its shared memory, and how its tensor cores are called."""

    target: GPUTarget
    shared: int
    products: str


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 * 1024, "HMMA"),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 * 1024, "HGMMA|HMMA"),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 * 1024, "UTCHMMA|UTCQMMA|HMMA"),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 * 1024, "v_mfma"),
}
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "tf32x3": torch.float32}
# What is compiled by default: everything where most will run, and what differs most elsewhere.
SHIPPED = {
    "sm_90": tuple(PRECISIONS),
    "sm_80": ("bfloat16", "tf32x3"),
    "sm_100": ("bfloat16",),
    "gfx942": ("bfloat16",),
}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Launch(NamedTuple):
    """A kernel as one call would compile it: types, constants, and what is known of its arguments."""

    kernel: JITFunction
    types: dict[str, str]
    constants: dict[str, object]
    multiples_of_16: tuple[str, ...]
    options: dict[str, int]


def launches(cases: tuple[Case, ...], dtype: torch.dtype) -> list[Launch]:
    """Every different kernel that the cases launch, in evaluation and in training; none is run."""
    found = {}

    def record(kernel, *arguments, grid, warmup, **named):
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        launch = as_compiled(kernel, dict(zip(kernel.arg_names, arguments, strict=False)) | named, options)
        found.setdefault(repr((kernel.__name__, *launch[1:])), launch)

    JITFunction.run = record
    # Triton takes CPU tensors then; the launchers ask nothing of them.
    installed.TRITON_IS_INTERPRETED = choice.TRITON_IS_INTERPRETED = True
    for one in cases:
        run(one, "triton", dtype=dtype)
    return list(found.values())


def as_compiled(kernel: JITFunction, arguments: dict, options: dict[str, int]) -> Launch:
    types, constants, multiples = {}, {}, []
    constexprs = [parameter.name for parameter in kernel.params if parameter.is_constexpr]
    for name in kernel.arg_names:
        value = arguments[name]
        if name in constexprs or value is True or (type(value) is int and value == 1):
            types[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[name] = POINTERS[value.dtype]
            multiples.append(name)
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name] = "i32" if value < 2**31 else "i64"
            multiples += [name] * (value % 16 == 0)
    return Launch(kernel, types, constants, tuple(multiples), options)


def compiled(launch: Launch, target: Target):
    kernel, types, constants, multiples, options = launch
    if target.target.backend == "hip":
        options = {name: value for name, value in options.items() if name != "maxnreg"}
        constants = {name: "ieee" if name == "PRECISION" else value for name, value in constants.items()}
    known = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    return triton.compile(ASTSource(kernel, types, constants, known), target=target.target, options=options)


def resources(binary, target: Target) -> tuple[int, int, int]:
    """Registers a thread, bytes spilled, and instructions of tensor cores."""
    if target.target.backend == "hip":
        text = binary.asm["amdgcn"]
        registers, spilled = (
            int(re.search(rf"\.{name}: *(\d+)", text)[1]) for name in ("vgpr_count", "private_segment_fixed_size")
        )
        return registers, spilled, len(re.findall(target.products, text))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    local = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return registers, max(stack, local), len(re.findall(rf"\b(?:{target.products})\b", code))


def report(op: str, everything: bool) -> int:
    """Prints a line for every kernel, target and precision; how many were found wanting."""
    failed = 0
    for precision, dtype in PRECISIONS.items():
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        # The other two differ from these by types alone.
        cases = CASES[op] if everything or precision in ("bfloat16", "tf32x3") else CASES[op][:1]
        for launch in launches(cases, dtype):
            for name in [name for name in TARGETS if everything or precision in SHIPPED[name]]:
                target = TARGETS[name]
                binary = compiled(launch, target)
                registers, spilled, products = resources(binary, target)
                multiplies = "tt.dot" in binary.asm["ttir"]
                wrong = [
                    *(["spills"] if spilled else []),
                    *(["shared memory"] if binary.metadata.shared > target.shared else []),
                    *(["no tensor cores"] if multiplies and not products else []),
                ]
                failed += bool(wrong)
                tiles = {key: value for key, value in launch.constants.items() if key.isupper() and type(value) is int}
                print(
                    f"{op} {launch.kernel.__name__} {name} {precision}: {registers} registers, {spilled} spilled, "
                    f"{binary.metadata.shared} shared, {products} tensor core instructions"
                    f"{' WRONG: ' + ', '.join(wrong) if wrong else ''} {tiles} {launch.options}",
                    flush=True,
                )
    return failed


if __name__ == "__main__":
    torch.set_num_threads(1)
    ops = [word for word in sys.argv[1:] if not word.startswith("--")] or list(CASES)
    sys.exit(sum(report(op, "--all" in sys.argv) for op in ops) > 0)
