"""Checks of an op's kernels on a GPU: checks.py OP DTYPE CHECK [...] [--backend B] [--part I/K], --list, or --serve.

Plain functions, so that a machine without pytest runs them; test_gpu.py and `make gpu` start this file in processes of
their own, because a kernel that faults takes its process's GPU context with it. One JSON line a check goes to stdout.
--list prints every job of a whole run, --serve takes jobs from stdin (benchmarks/gpu/children.py); a job may have
"until", in seconds of `time.time`: what is left by then is said to be unfinished.
"""

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))  # where this file is the program
from gpu import inference

from fastnest import _backend
from fastnest.benchmarks.gpu.children import serve
from fastnest.testing import (
    OPS,
    Case,
    assert_close,
    assert_same_bits,
    check_kernels,
    expect,
    pooled,
    prepare,
    real_inputs,
    run,
    sample_inputs,
    small_inputs,
    with_value,
)

DTYPES = ("float32", "bfloat16", "float16", "tf32")
REPEATS = 100
SAID = 5  # failures of a check that are told; the rest is counted


@dataclass
class Checked:
    """What a check did: cases done and there, and what failed."""

    done: int = 0
    of: int = 0
    failures: list[str] = field(default_factory=list)
    not_run: str = ""


@dataclass
class Check:
    """An op, a dtype, where it runs, and until when."""

    op: str
    dtype: torch.dtype
    device: object  # as benchmarks/gpu/device.py
    backend: str = "triton"
    part: tuple[int, int] = (0, 1)
    until: float = float("inf")
    inference: bool = False  # kernels without a backward: outputs alone are compared
    operators: object = torch.ops.fastnest  # the compiled ones

    def prepare(self, one: Case, **options):
        made = inference.outputs if self.inference else prepare
        return made(one, self.backend, dtype=self.dtype, device=self.device.type, **options)

    def compare(self, one: Case, change=None, actual=None, pool=False) -> None:
        """A case, or results that should be its, against float64."""
        ran = inference.run if self.inference else run
        results = partial(ran, one, dtype=self.dtype, change=change, device=self.device.type)
        expected = expect(results, self.dtype)
        if pool:
            expected = pooled(expected)
        if actual is None:
            check_kernels(results, [self.backend], self.dtype, repr(one), expected)
        else:
            assert_close(actual, expected, self.dtype, repr(one))

    def each(self, cases: list[Case], function: Callable[[Case], None]) -> Checked:
        """The function on every case, as far as time goes; goes on after a failure, not after a fault of the GPU."""
        checked = Checked(of=len(cases))
        for one in cases:
            if time.time() >= self.until:
                break
            try:
                function(one)
            except AssertionError as error:
                checked.failures.append(str(error))
            except torch.OutOfMemoryError as error:  # other processes have checks, too
                checked.not_run = f"no memory: {error}"
                break
            except Exception as error:
                checked.failures.append(f"{type(error).__name__}: {error} of {one!r}\n{traceback.format_exc(limit=-4)}")
                self.device.synchronize()  # raises after a fault
            checked.done += 1
        return checked

    def samples(self) -> list[Case]:
        return inference.samples() if self.inference else sample_inputs(self.op)

    def small(self) -> list[Case]:
        return inference.small() if self.inference else small_inputs(self.op)

    def real(self) -> list[Case]:
        return inference.real() if self.inference else real_inputs(self.op)

    def cases(self) -> list[Case]:
        """All of the op's, or its part of them: neighbours go to different parts."""
        i, k = self.part
        return self.samples()[i::k]

    def awkward(self) -> list[Case]:
        """One of a few tiles and a rest: the largest that no tile divides, but not a huge one."""
        odd = [one for one in self.samples() if one.is_contiguous and one.sizes["n"] % 16]
        return [max((one for one in odd if _size(one) <= 2**18), key=_size)]

    def few(self, count: int) -> list[Case]:
        """Some contiguous ones with something to compute, from all over the list."""
        dense = [one for one in self.samples() if one.sizes["n"] and one.is_contiguous]
        return dense[:: -(-len(dense) // count)]


def first(check: Check) -> Checked:
    """One awkward size and what networks have, against float64: what is wrong everywhere is seen here at once."""
    real = check.real()

    def compared(one: Case) -> None:
        check.compare(one, pool=one in real and check.dtype is torch.float32)

    return check.each([*check.awkward(), *real], compared)


def _size(one: Case) -> int:
    return math.prod(one.x_shape)


# The next two are of the ordinary tests, for a machine without pytest and in more dtypes.


def outputs_and_gradients(check: Check) -> Checked:
    """Every sample input: awkward sizes, every option and layout, against float64."""
    return check.each(check.cases(), check.compare)


def nan_and_infinity(check: Check) -> Checked:
    """They come out where the definition has them, in the outputs and in every gradient."""

    def one_value(one: Case) -> None:
        for value in (float("nan"), float("inf"), -float("inf")):
            check.compare(one, with_value(value))

    return check.each([one for one in check.few(8) if one.sizes["n"] > 1], one_value)


def repeats(check: Check) -> Checked:
    """The same bits a hundred times."""

    def repeated(one: Case) -> None:
        call = check.prepare(one)
        first = call.step()
        for i in range(1, REPEATS):
            assert_same_bits(call.step(), first, f"repeat {i} of {one!r}")

    largest = sorted(check.samples(), key=lambda one: one.sizes["n"])[-1:]
    return check.each([*largest, *check.few(4)], repeated)


def graphs(check: Check) -> Checked:
    """Forward and training step captured in a CUDA graph, replayed on other values: the bits of a plain call."""

    def captured(one: Case) -> None:
        call = check.prepare(one)
        for step in (lambda: dict(enumerate(call.forward())), call.step):
            replay, results = check.device.capture(step)
            for factor in (0.5, 1.5):
                with torch.no_grad():
                    for tensor in (*call.leaves.values(), *call.gradients):
                        tensor.mul_(factor)
                replay()
                replayed = {name: value.clone() for name, value in results.items()}
                assert_same_bits(replayed, step(), f"replay of {one!r}")

    return check.each(check.few(4), captured)


def streams(check: Check) -> Checked:
    """On two streams at once, each with arguments that are there late: the bits of calls one after the other."""

    def overlapped(one: Case) -> None:
        calls = [check.prepare(one), check.prepare(one, change=_halve)]
        alone = [call.step() for call in calls]
        values = [{name: leaf.detach().clone() for name, leaf in call.leaves.items()} for call in calls]
        with torch.no_grad():
            for call in calls:
                for leaf in call.leaves.values():
                    leaf.zero_()
        found = [[], []]
        two = check.device.streams(2)
        for _ in range(5):
            for call, stream, given, results in zip(calls, two, values, found, strict=True):
                with torch.cuda.stream(stream):
                    check.device.linger()
                    with torch.no_grad():
                        for name, leaf in call.leaves.items():
                            leaf.copy_(given[name])
                    results.append(call.step())
                    with torch.no_grad():
                        for leaf in call.leaves.values():
                            leaf.zero_()
        check.device.synchronize()
        for expected, results in zip(alone, found, strict=True):
            for actual in results:
                assert_same_bits(actual, expected, f"on a stream of its own {one!r}")

    return check.each(check.few(3), overlapped)


def _halve(leaves, gradients) -> None:
    for tensor in (*leaves.values(), *gradients):
        tensor.mul_(0.5)


def compiled(check: Check) -> Checked:
    """torch.compile keeps the operators whole; outputs and gradients are those of a plain call."""

    def whole(one: Case) -> None:
        torch._dynamo.reset()  # it gives up on a function that it has compiled too often
        call = check.prepare(one)
        call.case = Compiled(torch.compile(one.call, fullgraph=True))
        check.compare(one, actual=call.step())

    return check.each(check.small()[:2], whole)


class Compiled:
    """In the place of a Case: its call, compiled."""

    def __init__(self, call: Callable):
        self.call = call


def chosen(check: Check) -> Checked:
    """Tensors of this device run these kernels unasked, those in float64 the reference."""

    def logged(one: Case) -> None:
        for dtype, backend in ((check.dtype, check.backend), (torch.float64, "reference")):
            with torch.no_grad(), _backend.logging_choices() as log:
                one.call(one.tensors(dtype, device=check.device.type))
            assert {(choice.op, choice.backend) for choice in log} == {(check.op, backend)}, f"{log} for {one!r}"

    return check.each(small_inputs(check.op)[:1], logged)


# A small case whose largest tensor, repeated 2^k times, has just over 2^31 elements.
LARGE = {
    "residual_chain": Case(
        "residual_chain", {"n": 65, "m": 256, "k": 16, "l": 2}, ("mid", "mid_bias", "scale", "shift")
    ),
    "dense_chain": Case("dense_chain", {"n": 65, "m": 64, "d": (32,) * 6, "h": ()}, ("scale", "shift")),
    "batch_stats": Case("batch_stats", {"n": 5, "c": 78, "h": 13, "w": 13}, layout="channels last"),
    "dense_block2d": Case(
        "dense_block2d",
        {"n": 5, "c": 62, "h": 13, "w": 13, "d": (16,), "b": (16,)},
        ("norm1_mean", "norm1_var", "norm2_mean", "norm2_var", "dropout"),
        layout="channels last",
    ),
} | {
    op: Case(
        op,
        {"n": 5, "c": 78, "h": 13, "w": 13, "k": 16, "m": 78},
        ("conv_bias", "norm_mean", "norm_var", "projection", "projection_bias"),
        {"stride": 1, "return_features": False},
        layout="channels last",
    )
    for op in ("bottleneck2d", "basic_block2d")
}
MOST = 2**31


def large(check: Check, more_than: int = MOST) -> Checked:
    """More elements than 32 bits can count, by the same small images or rows over and over.

    Then every output repeats, too, means and variances are those of one repeat, and with the gradients of the outputs
    over the number of repeats, a power of 2, the gradients of all parameters are those of one repeat as well.
    """
    one = (inference.LARGE if check.inference else LARGE)[check.op]
    small = check.prepare(one)
    elements = max(small.leaves["x"].numel(), *(output.numel() for output in small.forward()))
    repeats = 2 ** (more_than // elements).bit_length()
    # x, y and their gradients in dtype, and in float32 the stream and what a backward sums up.
    needed = elements * repeats * (4 * check.dtype.itemsize + 3 * 4)
    free = check.device.free_bytes()
    if needed > free:
        return Checked(of=1, not_run=f"needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free")

    def repeated(_: Case) -> None:
        call = check.prepare(one)
        by_rows = check.op != "batch_stats"  # its outputs have a value per channel
        with torch.no_grad():
            for name in [name for name in call.leaves if name == "x" or name.startswith("dropout")]:
                call.leaves[name] = _over_and_over(call.leaves[name], repeats).requires_grad_(name == "x")
            call.gradients = [_over_and_over(g / repeats, repeats) if by_rows else g.clone() for g in call.gradients]
        results = call.step()
        n = one.sizes["n"]
        for at in (0, more_than // elements, repeats - 1):
            part = dict(results)
            if not check.inference:
                part["dx"] = results["dx"][at * n : (at + 1) * n] * repeats
            if by_rows:
                part["y"] = results["y"][at * n : (at + 1) * n]
            check.compare(one, actual=part)

    return check.each([one], repeated)


def _over_and_over(values: torch.Tensor, repeats: int) -> torch.Tensor:
    """values [n, ...] behind each other, in the memory format of values."""
    if values.dim() == 4:
        return values.movedim(1, -1).repeat(repeats, 1, 1, 1).movedim(-1, 1)
    return values.repeat(repeats, 1)


def smallest(check: Check) -> Checked:
    """One small case, forward and backward, by the kernels alone: for sanitizers, which slow everything down."""

    def stepped(one: Case) -> None:
        results = check.prepare(one).step()
        check.device.synchronize()
        assert all(value.isfinite().all() for value in results.values()), f"not finite: {one!r}"

    checked = check.each(check.small()[: 2 if check.inference else 1], stepped)
    if check.inference:
        shapes = inference.shapes(check)
        checked.done, checked.of = checked.done + shapes.done, checked.of + shapes.of
        checked.failures += shapes.failures
    return checked


ORDINARY = ("outputs_and_gradients", "nan_and_infinity")  # of which tests/ops has all but TF32
CHECKS = {
    function.__name__: function
    for function in (
        *(first, outputs_and_gradients, nan_and_infinity, repeats, graphs, streams, compiled, chosen),
        *(large, smallest),
    )
} | inference.CHECKS
# Unasked, which of two backends runs is a matter of measurement.
BESIDE = {"cuda": ("graphs", "streams", "repeats", "nan_and_infinity", "compiled")}
BESIDE["triton"] = ("chosen", *BESIDE["cuda"])
PARTS = 6


def jobs() -> Iterator[dict]:
    """Every check of a whole run, by risk.

    What may be wrong everywhere: one awkward and one real size in every dtype. What no CPU shows: more memory than 32
    bits count, graphs, streams, repeats. Then all the rest, a part of every dtype at a time.
    """
    every = [{"op": op, "backend": "triton"} for op in OPS]
    every += [{"op": op, "backend": "cuda"} for op in OPS if "cuda" in _backend.registered(f"{op}_forward")]
    without_backward = [one for one in every if inference.is_inference(**one)]

    def job(one: dict, dtype: str, check: str, part: str = "0/1") -> dict:
        return {**one, "dtype": dtype, "check": check, "part": part}

    def those(dtype: str) -> list[dict]:
        return [one for one in every if dtype in inference.DTYPES or one not in without_backward]

    for dtype in ("bfloat16", "float32", "float16", "tf32"):
        yield from (job(one, dtype, "first") for one in those(dtype))
    yield from (job(one, "bfloat16", name) for name in inference.CHECKS for one in without_backward)
    yield from (job(one, "bfloat16", "large") for one in every)
    for dtype in ("bfloat16", "float32"):
        for name in BESIDE["triton"]:
            yield from (job(one, dtype, name) for one in those(dtype) if name in BESIDE[one["backend"]])
    for dtype in ("float16", "tf32"):
        for name in (*inference.IN_EVERY_DTYPE, *BESIDE["cuda"]):
            yield from (job(one, dtype, name) for one in without_backward)
    for part in range(PARTS):
        for dtype in DTYPES:
            yield from (job(one, dtype, "outputs_and_gradients", f"{part}/{PARTS}") for one in those(dtype))


def report(name: str, check: Check, label: str) -> dict:
    """Runs a check; what it found as a line of JSON."""
    start = time.time()
    if start >= check.until:
        checked = Checked(not_run="no time left")
    else:
        checked = CHECKS[name](check)
    verdict = "passed" if checked.done == checked.of else "unfinished"
    if checked.not_run:
        verdict = "not run"
    if checked.failures:
        verdict = "failed"
    return {
        "check": name,
        "op": check.op,
        "backend": check.backend,
        "dtype": label,
        "part": "/".join(map(str, check.part)),
        "verdict": verdict,
        "done": checked.done,
        "of": checked.of,
        "failed": len(checked.failures),
        "what": checked.not_run or "\n".join(checked.failures[:SAID]),
        "seconds": round(time.time() - start, 1),
    }


def work(job: dict, device) -> Iterator[dict]:
    """A job of `jobs`, with "until" if its time has an end; ends with the process where the GPU has a fault."""
    label = job["dtype"]
    device.take_float32(tf32=label == "tf32")
    dtype = getattr(torch, label.replace("tf32", "float32"))
    part = tuple(map(int, job.get("part", "0/1").split("/")))
    until, no_backward = job.get("until", float("inf")), inference.is_inference(job["op"], job["backend"])
    check = Check(job["op"], dtype, device, job["backend"], part, until, no_backward)
    yield report(job["check"], check, label)
    device.synchronize()
    device.free_bytes()  # for the other processes


def main(words: list[str], device=None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("op", nargs="?")
    parser.add_argument("dtype", nargs="?", choices=DTYPES)
    parser.add_argument("checks", nargs="*")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args(words)
    if arguments.list:
        print(json.dumps({"jobs": list(jobs())}))
        return 0
    if device is None:
        from fastnest.benchmarks.gpu.device import Gpu

        device = Gpu()
    if arguments.serve:
        serve(lambda job: work(job, device))
        return 0
    failed = False
    for name in arguments.checks:
        job = {"op": arguments.op, "backend": arguments.backend, "dtype": arguments.dtype, "check": name}
        for line in work({**job, "part": arguments.part}, device):
            print(json.dumps(line), flush=True)
            failed |= line["verdict"] == "failed"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
