"""Checks of an op's CUDA kernels by blocks on the CPU, each in a process of its own: check.py CHECK OP DTYPE LIBRARY.

LIBRARY is what on_host.build_library returns, after which its kernels are "cpp" here. test_on_host.py starts this file,
with what on_host.preloaded returns and the folder of tests on PYTHONPATH. DTYPE tf32 is float32 with products of TF32.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import cycle, islice, product
from typing import NamedTuple
from unittest import mock

import kernel_checks
import torch
from kernel_checks import cases, light_cases
from torch.utils._python_dispatch import TorchDispatchMode

from fastnest import _backend
from fastnest._backend import Room
from fastnest.testing import Case, Expected, assert_same_bits, expect, run

BACKEND = "cpp"
DTYPES = ("float32", "tf32", "bfloat16", "float16")
KIB = 1024


class Device(NamedTuple):
    """What a launcher asks of a GPU."""

    multiprocessors: int
    shared_bytes: int
    clusters: bool


# Enough multiprocessors for a cluster's blocks to share few rows, or too few; parts of every size of shared memory.
H100, SMALL_H100 = Device(132, 227 * KIB, True), Device(1, 227 * KIB, True)
A100, RTX_4090, RTX_5090 = Device(108, 163 * KIB, False), Device(128, 99 * KIB, False), Device(170, 99 * KIB, True)
SMALL_RTX_5090 = Device(2, 99 * KIB, True)
DEVICES = (H100, A100, SMALL_H100, RTX_5090, RTX_4090, SMALL_RTX_5090)
MOST_COLUMNS = 1024  # of residual_chain, without a cluster


class Rounding(TorchDispatchMode):
    """Plain torch as it multiplies float32 on a GPU by TF32: factors rounded to 11 bits, ties away from zero."""

    FACTORS = {  # noqa: RUF012  by operator, which of its arguments
        torch.ops.aten.mm: slice(0, 2),
        torch.ops.aten.convolution: slice(0, 2),
        torch.ops.aten.bmm: slice(0, 2),
        torch.ops.aten.mv: slice(0, 2),
        torch.ops.aten.dot: slice(0, 2),
        torch.ops.aten.addmm: slice(1, 3),
        torch.ops.aten.addmv: slice(1, 3),
        torch.ops.aten.baddbmm: slice(1, 3),
    }

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        factors = self.FACTORS.get(function.overloadpacket)
        if factors is not None:
            arguments = list(arguments)
            arguments[factors] = map(self.rounded, arguments[factors])
        return function(*arguments, **named or {})

    @staticmethod
    def rounded(values: torch.Tensor) -> torch.Tensor:
        if values.dtype != torch.float32:
            return values
        bits = values.contiguous().view(torch.int32)
        return torch.where(values.isfinite(), ((bits + 0x1000) & ~0x1FFF).view(torch.float32), values)


def expect_tf32(results: Callable, dtype: torch.dtype) -> Expected:
    """`expect` with plain torch's error where products are of TF32."""

    def rounded(backend: str, compute: torch.dtype | None, nudge: int):
        with Rounding() if compute is None else nullcontext():
            return results(backend, compute, nudge)

    return expect(rounded, dtype)


class Kernels:
    """The kernels of an op in a dtype."""

    def __init__(self, op: str, dtype: str, library: str):
        torch.ops.load_library(library)
        self.functions = ctypes.CDLL(library)
        self.op, self.name = op, dtype
        self.dtype = getattr(torch, dtype.replace("tf32", "float32"))
        self.expect = expect_tf32 if dtype == "tf32" else expect
        torch.backends.cuda.matmul.fp32_precision = "tf32" if dtype == "tf32" else "ieee"

    def on(self, device: Device, last_thread_first: bool = False) -> None:
        """They run as on this device, from now on."""
        self.functions.fastnest_device(last_thread_first, *device)

    def has_room(self, one: Case, device: Device) -> bool:
        """Whether the launchers find enough shared memory, and clusters where there must be some; nothing runs."""
        if one.op == "residual_chain" and one.sizes["m"] > MOST_COLUMNS and not device.clusters:
            return False
        self.on(device)
        self.functions.fastnest_only_launch(1)
        try:
            run(one, BACKEND, dtype=self.dtype)
        except RuntimeError as error:
            if "no room in shared memory" not in str(error):
                raise
            return False
        finally:
            self.functions.fastnest_only_launch(0)
        return True

    def takes(self, one: Case, device: Device) -> bool:
        """Whether the op says so."""
        limits = []

        def choose(op, x, triton_limit=None, cuda_limit=None, **sizes) -> str:
            limits.append(cuda_limit and cuda_limit(Room(device.shared_bytes, device.clusters)))
            return "reference"

        with mock.patch.object(_backend, "choose", choose), torch.no_grad():
            one.call(one.tensors(self.dtype))
        return limits == [None]

    def check(self, one: Case, turns: Iterator[tuple[Device, bool]], change: Callable | None = None) -> None:
        """On the next device that has room for it."""
        here = next((turn for turn in islice(turns, 2 * len(DEVICES)) if self.has_room(one, turn[0])), None)
        assert here is not None, f"no device has room for {one!r}"
        self.on(*here)
        kernel_checks.check(BACKEND, one, self.dtype, change, self.expect)

    def part(self, cases: list[Case]) -> list[Case]:
        """Every fourth, another fourth by every dtype."""
        return cases[DTYPES.index(self.name) :: len(DTYPES)]


def residual_chain(n, m, k, l, absent=("mid", "mid_bias", "scale", "shift"), **options) -> Case:
    return Case("residual_chain", {"n": n, "m": m, "k": k, "l": l}, absent, options)


def dense_chain(n, m, d, h=(), absent=("scale", "shift"), **options) -> Case:
    return Case("dense_chain", {"n": n, "m": m, "d": d, "h": h}, absent, options)


# What the shared cases leave out: rows on either side of a tile, wide and narrow features, every path of the launchers.
MORE = {
    "residual_chain": [
        residual_chain(63, 520, 64, 2),
        residual_chain(65, 513, 17, 2, ("mid", "mid_bias"), return_features=True),
        residual_chain(64, 48, 129, 2, activation="gelu"),
        residual_chain(130, 130, 65, 2, ()),
        residual_chain(1, 1032, 256, 2),
        residual_chain(65, 40, 200, 2, ("scale", "shift"), return_features=True),
        residual_chain(130, 1100, 1, 2, activation="silu"),
        residual_chain(64, 2040, 17, 1),
        residual_chain(0, 1100, 65, 2),
        residual_chain(63, 257, 192, 1, ("scale", "shift")),
        residual_chain(65, 1025, 33, 1, ("mid", "mid_bias"), activation="tanh"),
        residual_chain(130, 256, 64, 2, ("mid", "mid_bias", "scale", "shift", "down_bias")),
    ],
    "dense_chain": [
        dense_chain(65, 64, (32,) * 4),
        dense_chain(130, 64, (32,) * 3, (128,) * 3),
        dense_chain(63, 257, (17, 65), (), ()),
        dense_chain(64, 513, (48, 33), (20, 64), ()),
        dense_chain(1, 1025, (32, 1)),
        dense_chain(0, 100, (5, 7)),
        dense_chain(64, 16, (1,) * 9, activation="gelu"),
        dense_chain(65, 40, (65, 129), (17, 1), activation="silu"),
    ],
}

# Single columns and features: of more, an infinity makes NaN at once, whatever is behind the last one.
SINGLE = {
    "residual_chain": [
        residual_chain(50, 40, 1, 1),
        residual_chain(3, 130, 1, 1, ("down_bias", "scale", "shift"), return_features=True),
        residual_chain(49, 1, 1, 3),
        residual_chain(3, 1, 1, 4, (), activation="identity", return_features=True),
        residual_chain(50, 1, 1, 1, ("mid", "mid_bias"), activation="leaky_relu"),
    ],
    "dense_chain": [dense_chain(50, 1, (1, 1, 1)), dense_chain(3, 1, (1, 1), (1, 1), activation="identity")],
}


def outputs_and_gradients(kernels: Kernels) -> None:
    """Sizes that no tile divides, options, layouts, by turns on every device and in both orders of threads."""
    turns = zip(cycle(DEVICES), cycle((False, True, True, True)), strict=False)
    for one in kernels.part(cases(kernels.op)):
        kernels.check(one, turns)


def more_outputs_and_gradients(kernels: Kernels) -> None:
    """The same of what the shared cases leave out."""
    turns = cycle(product((H100, SMALL_H100), (True, False)))
    for one in kernels.part(MORE[kernels.op]):
        kernels.check(one, turns)


def nan_and_infinity(kernels: Kernels) -> None:
    """They come out where the definition has them, in the outputs and in every gradient."""
    turns = cycle(product(DEVICES, (False, True)))
    kernel_checks.nan_and_infinity(
        kernels.op, lambda one, change: kernels.check(one, turns, change), SINGLE[kernels.op]
    )


def repeats(kernels: Kernels) -> None:
    """The same bits whichever thread is first, and whenever a copy is done."""

    def in_order(one: Case, device: Device, last_thread_first: bool):
        kernels.on(device, last_thread_first)
        return run(one, BACKEND, dtype=kernels.dtype)

    for one in light_cases(kernels.op)[5::29]:
        for device in (H100, SMALL_H100):
            assert_same_bits(in_order(one, device, True), in_order(one, device, False), repr(one))


def launches(kernels: Kernels) -> None:
    """Which calls find enough shared memory: all that the op says it takes there."""
    for device in dict.fromkeys(DEVICES):
        clustered = [one for one in cases(kernels.op) if device.clusters or one.sizes["m"] <= MOST_COLUMNS]
        asked = clustered + MORE[kernels.op] * (device == SMALL_H100)
        taken = [one for one in asked if kernels.takes(one, device)]
        refused = [one for one in asked if not kernels.has_room(one, device)]
        print(f"{device}: {len(taken)} of {len(asked)} cases are taken, no room for {len(refused)}")
        assert not [one for one in refused if one in taken]
        if kernels.op == "residual_chain":
            print(*largest(kernels, device), sep="\n")


def largest(kernels: Kernels, device: Device) -> Iterator[str]:
    """The most features that residual_chain has room for, by its width."""
    for absent, activation in product(((), ("mid", "mid_bias")), ("relu", "gelu")):
        most = {}
        for m, k in product((128, 256, 512, 1024), (64, 128, 192, 256)):
            one = residual_chain(1, m, k, 1, absent, activation=activation)
            room = kernels.has_room(one, device)
            assert room or not kernels.takes(one, device), one
            most |= {m: k} if room else {}
        yield f"    {activation}, {'without' if absent else 'with'} mid: k up to, by m, {most}"


def precision(kernels: Kernels) -> None:
    """float32 is multiplied by TF32 where torch is told so, and only there."""
    one = MORE[kernels.op][0]
    kernels.on(H100)
    tf32 = run(one, BACKEND, dtype=torch.float32)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    ieee, exact = (run(one, *how, dtype=torch.float32) for how in ((BACKEND,), ("reference", torch.float64)))
    for name, value in exact.items():
        far, near = ((results[name] - value).abs().max().item() for results in (tf32, ieee))
        print(f"{name}: TF32 is off by {far:.3g}, float32 by {near:.3g}")
        assert 20 * near < far or "bias" in name, name  # sums over rows alone


if __name__ == "__main__":
    torch.set_num_threads(1)
    check, *words = sys.argv[1:]
    globals()[check](Kernels(*words))
