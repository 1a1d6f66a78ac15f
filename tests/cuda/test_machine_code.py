"""The CUDA kernels compiled for GPUs that are not here: no warning, no spill, shared memory that fits, tensor cores."""

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


@needs_nvcc
def test_a_warning_is_an_error(tmp_path):
    (tmp_path / "warns.cu").write_text("__global__ void kernel() { int unused; }\n")
    with pytest.raises(SystemExit, match="never referenced"):
        machine_code.compiled(tmp_path / "warns.cu", "sm_80")
