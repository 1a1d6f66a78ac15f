"""The layer that runs blocks on the CPU (on_host/), by small kernels: it does what a GPU does, and sees mistakes."""

import os
import subprocess

import on_host
import pytest

CHECKS = (
    *("multiply_adds", "load_both_ways", "copies", "shuffles", "clusters", "grids", "slices"),
    *("bfloat16_product", "half_precision_product", "tf32_product", "float32_product", "float32_is_exact"),
    *("infinity_stays_in_float32", "infinity_stays_in_tf32"),
    *("boxes", "multicast", "warpgroup_products"),
)
BROKEN = {
    "barrier_of_some": "threads wait for others that never come",
    "diverging_lanes": "lanes of a warp call different functions",
    "behind_shared_memory": "heap-buffer-overflow",
    "behind_memory": "heap-buffer-overflow",
    "unaligned_copy": "copy_16_bytes: not aligned to 16 bytes",
    "unaligned_load": "load_matrices: a row is not aligned to 16 bytes",
    "unfinished_copy": "the thread ends before its copies do",
    "too_much_shared_memory": "more shared memory than the device has",
    "cluster_where_there_is_none": "a device without clusters",
    "barrier_without_init": "a barrier that nobody has initialised",
    "bytes_that_never_come": "threads wait for others that never come",
    "load_before_the_launch_before": "the launch before may not have written",
    "product_not_begun": "a product without begin_products",
    "unfinished_store": "the thread ends before its stores do",
}
ORDERS = ("first", "last")


@pytest.fixture(scope="module")
def layer():
    program = on_host.build_layer()

    def run(check: str, order: str) -> subprocess.CompletedProcess:
        options = {"ASAN_OPTIONS": "detect_leaks=0"}  # nor does a process that is traced
        return subprocess.run([program, check, order], env=os.environ | options, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("check", CHECKS)
def test_layer(check, order, layer):
    done = layer(check, order)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_ends_the_process(broken, order, layer):
    done = layer(f"breaks_{broken}", order)
    assert done.returncode != 0
    assert BROKEN[broken] in done.stderr


@pytest.mark.parametrize("broken", ["missing_barrier", "unwaited_product"])
def test_what_is_seen_in_one_order(broken, layer):
    ends = [layer(f"breaks_{broken}", order).returncode for order in ORDERS]
    assert ends == [0, 1]
