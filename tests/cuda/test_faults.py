"""Mistakes put into dense_block2d's kernels: run on the CPU, each of them is seen."""

import subprocess
import sys
from pathlib import Path

import on_host
import pytest
from on_host import Fault

CHECK = Path(__file__).parent / "on_host/check_dense_block2d.py"
PACK, FIRST, SECOND = (f"norm_conv_{name}.cu" for name in ("pack", "1x1", "3x3"))
FAULTS = {
    "pieces of a row not swizzled where they are read": Fault(
        "hopper/fragment.h", FIRST, "((step * 2 + lane / 16) ^ lane % 8) * 16", "(step * 2 + lane / 16) * 16"
    ),
    "pieces of a row not swizzled where they are packed": Fault(
        "norm_conv_pack.h", PACK, "piece = i % kPieces ^ row % kRowsOfSwizzle", "piece = i % kPieces"
    ),
    "a descriptor's rows too near": Fault(
        "hopper/fragment.h", SECOND, "kUnused = Descriptor{1} << 16", "kUnused = Descriptor{1} << 32"
    ),
    "lines of K upside down": Fault("norm_conv_3x3.h", SECOND, "kLinesOf64 + line)", "kLinesOf64 + 2 - line)"),
    "columns of K exchanged": Fault(
        "norm_conv_3x3.h", SECOND, "float2 before = beside<kWidth, -1>", "float2 before = beside<kWidth, +1>"
    ),
    "a stage read in the wrong phase": Fault(
        "norm_conv_3x3.h", SECOND, "place.parity, args.note, 202", "1, args.note, 202"
    ),
    "a stage filled in the wrong phase": Fault(
        "norm_conv_1x1.h", FIRST, "place.parity ^ 1, args.note, 101", "1, args.note, 101"
    ),
    "sums read before they are there": Fault(
        "norm_conv_1x1.h", FIRST, "wait_for_products<0>();", "wait_for_products<1>();"
    ),
    "no wait for the launch before": Fault("norm_conv_3x3.h", SECOND, "    wait_for_previous();\n", ""),
    "channels behind the prefix": Fault(FIRST, FIRST, "{layer.c, conv.pixels}", "{conv.x_stride, conv.pixels}"),
    "rows of an output exchanged": Fault(
        "norm_conv_3x3.h", SECOND, "store(lower, line, g + 8", "store(upper, line, g + 8"
    ),
}


def run(library: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, CHECK, "few", "bfloat16", library]
    environment = {"PYTHONPATH": f"{CHECK.parents[2]}:{CHECK.parent}"}
    return subprocess.run(command, capture_output=True, text=True, env=on_host.os.environ | environment)


def test_without_a_mistake():
    done = run(on_host.build_dense_block2d())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FAULTS)
def test_a_mistake_is_seen(name):
    done = run(on_host.build_dense_block2d(FAULTS[name]))
    assert done.returncode != 0
    print(done.stderr.strip().splitlines()[-1])
