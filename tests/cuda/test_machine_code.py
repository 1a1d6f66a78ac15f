"""The CUDA kernels compiled for GPUs that are not here: no warning, no spill, and the units that they are meant for."""

import pytest
from cuda import machine_code
from processes import succeeds

needs_nvcc = pytest.mark.skipif(not (machine_code.home() / "bin/nvcc").exists(), reason="there is no nvcc")
RUNS = [("machine_code.py", source, target) for source in machine_code.sources() for target in machine_code.TARGETS]


@needs_nvcc
@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_machine_code(words, processes):
    print(succeeds(words, processes))


BROKEN = """
struct Product {};
template <class P>
__global__ void indexed_kernel(float* x, int i) {
  float values[64];
  for (int j = 0; j < 64; ++j) values[(j * i) % 64] = x[j];
  x[0] = values[i] + values[i + 1];
}
template __global__ void indexed_kernel<Product>(float*, int);
"""


@needs_nvcc
def test_what_is_broken_is_found(tmp_path):
    (tmp_path / "broken.cu").write_text(BROKEN)
    (kernel,) = machine_code.compiled(tmp_path / "broken.cu", "sm_90a")
    assert kernel.name == "indexed_kernel<Product>"
    assert kernel.wrong("sm_90a") == ["spills", "no tensor cores"]
    assert kernel._replace(stack=0, spills=0, tensor_core=1).wrong("sm_90a") == []
    assert kernel._replace(shared=229 * 1024).wrong("sm_90a")[1:2] == ["more shared memory than 227 KiB"]


# A call makes ptxas wait for every product.
SERIALIZED = """
#include <cstdio>
#include "cuda/hopper/fragment.h"
using namespace fastnest;
using namespace fastnest::cuda::hopper;
__global__ void calling_kernel(const __grid_constant__ TensorMap map, float* d) {
#if FASTNEST_HOPPER
  float sums[24] = {};
  begin_products();
  Product<BFloat16, 48>::from_shared(sums, rows_at(0), rows_at(1024), true);
  Product<BFloat16, 48>::from_shared(sums, rows_at(32), rows_at(1056), true);
  commit_products();
  wait_for_products<0>();
  keep(sums);
  if (sums[0] > 1) printf("large");
  d[threadIdx.x] = sums[0];
#endif
}
"""


@needs_nvcc
def test_a_kernel_on_hopper_without_its_units_is_found(tmp_path):
    (tmp_path / "serialized.cu").write_text(SERIALIZED)
    (kernel,) = machine_code.compiled(tmp_path / "serialized.cu", "sm_90a")
    assert kernel.tensor_core == 2
    assert kernel.wrong("sm_90a") == ["no TMA", "products wait for each other"]
    (kernel,) = machine_code.compiled(tmp_path / "serialized.cu", "sm_80")
    assert kernel.on_hopper
    assert kernel.wrong("sm_80") == []
    assert kernel.wrong("sm_90a") == ["no tensor cores", "no TMA"]


@needs_nvcc
def test_a_warning_is_an_error(tmp_path):
    (tmp_path / "warns.cu").write_text("__global__ void kernel() { int unused; }\n")
    with pytest.raises(SystemExit, match="never referenced"):
        machine_code.compiled(tmp_path / "warns.cu", "sm_80")
