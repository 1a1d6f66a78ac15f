"""What tests and benchmarks share: awkward inputs of every op, what an op costs, and how near a result has to be."""

from functools import partial

from .case import Case, nudged
from .chains import (
    dense_chain_cases,
    real_dense_chain_cases,
    real_residual_chain_cases,
    residual_chain_cases,
    small_dense_chain_cases,
    small_residual_chain_cases,
)
from .comparison import (
    ULPS,
    Error,
    Expected,
    assert_close,
    assert_same_bits,
    check_kernels,
    error_of,
    expect,
    expect_by_one_run,
    pooled,
)
from .cost import bytes_moved, flops, flops_of_maps
from .guard import before_a_guard_page, behind_a_guard_page
from .images import (
    batch_stats_cases,
    dense_block2d_cases,
    real_batch_stats_cases,
    real_dense_block2d_cases,
    real_residual_block2d_cases,
    residual_block2d_cases,
    small_batch_stats_cases,
    small_dense_block2d_cases,
    small_residual_block2d_cases,
)
from .running import (
    Call,
    Results,
    as_tuple,
    devices,
    flat,
    instruction_set,
    kernel,
    kernels,
    prepare,
    run,
    unflat,
    with_value,
)

_CASES = {
    "residual_chain": (residual_chain_cases, small_residual_chain_cases, real_residual_chain_cases),
    "dense_chain": (dense_chain_cases, small_dense_chain_cases, real_dense_chain_cases),
    "batch_stats": (batch_stats_cases, small_batch_stats_cases, real_batch_stats_cases),
    "dense_block2d": (dense_block2d_cases, small_dense_block2d_cases, real_dense_block2d_cases),
} | {
    op: tuple(
        partial(cases, op)
        for cases in (residual_block2d_cases, small_residual_block2d_cases, real_residual_block2d_cases)
    )
    for op in ("bottleneck2d", "basic_block2d")
}
OPS = tuple(_CASES)


def sample_inputs(op: str) -> list[Case]:
    """The cases that every backend of an op has to get right: awkward sizes, every option, every layout."""
    return list(_CASES[op][0]())


def small_inputs(op: str) -> list[Case]:
    """A few numbers for every activation and kind of an op: for derivatives by finite differences, and compilers."""
    return list(_CASES[op][1]())


def real_inputs(op: str) -> list[Case]:
    """Sizes that an op has in networks people train: up to a minute each in float64 on a CPU core."""
    return list(_CASES[op][2]())


__all__ = [
    "OPS",
    "ULPS",
    "Call",
    "Case",
    "Error",
    "Expected",
    "Results",
    "as_tuple",
    "assert_close",
    "assert_same_bits",
    "before_a_guard_page",
    "behind_a_guard_page",
    "bytes_moved",
    "check_kernels",
    "devices",
    "error_of",
    "expect",
    "expect_by_one_run",
    "flat",
    "flops",
    "flops_of_maps",
    "instruction_set",
    "kernel",
    "kernels",
    "nudged",
    "pooled",
    "prepare",
    "real_inputs",
    "run",
    "sample_inputs",
    "small_inputs",
    "unflat",
    "with_value",
]
