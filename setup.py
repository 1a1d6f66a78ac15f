"""Builds fastnest._C from csrc/: C++ always, csrc/cuda where csrc/toolkit.py finds a toolkit; the rest: pyproject.toml.

FASTNEST_NO_EXT=1 installs without compiled code (reference only); MAX_JOBS files are compiled at a time; CXX names the
compiler. No -march: the instruction set is chosen when the library is loaded.
"""

import os
import shlex
import shutil
import sys
from glob import glob

from setuptools import find_packages, setup

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "csrc"))
import toolkit

# -Wno-maybe-uninitialized: GCC 12 warns of its own AVX-512 intrinsics (GCC bug 105593).
FLAGS = "-std=c++20 -O3 -g0 -Wall -Wno-maybe-uninitialized -fvisibility=hidden -ffp-contract=fast -fno-math-errno"
# The stable ABI of torch 2.10, so that one binary serves every later torch.
TARGET = "0x020a000000000000ULL"
# Of CUDA, with what it needs: torch, where it is one for CUDA, has its own in the same process.
STATIC_RUNTIME = ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def skip(reason: str, remedy: str) -> dict:
    print(f"fastnest: installing WITHOUT the C++ kernels, only the reference: {reason}. {remedy}", file=sys.stderr)
    return {}


def extension() -> dict:
    """The arguments of setup() that build fastnest._C; none of them where it is not wanted or not possible."""
    if toolkit.is_set("FASTNEST_NO_EXT"):
        return skip("FASTNEST_NO_EXT is set", "Unset it and install again to build them.")
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    if shutil.which(compiler) is None:
        return skip(f"no C++ compiler ({compiler}) on PATH", "Install g++ >= 11 or set CXX, then install again.")
    import pybind11
    import torch
    from torch.utils import cpp_extension

    class Build(cpp_extension.BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as error:
                message = f"fastnest: building fastnest._C with {compiler} failed, see above ({error})."
                remedy = f" {toolkit.ALONE}" if cuda else ""
                sys.exit(f"{message}\nfastnest: FASTNEST_NO_EXT=1 installs without it, reference only.{remedy}")

    module = cpp_extension.CppExtension(
        "fastnest._C",
        ["csrc/ops.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
        include_dirs=[os.path.abspath("csrc"), pybind11.get_include()],
        define_macros=[("TORCH_TARGET_VERSION", TARGET), ("FASTNEST_FLAGS", f'"{FLAGS}"')],
        extra_compile_args={"cxx": FLAGS.split()},
        extra_link_args=["-s"],
    )
    module.libraries.remove("torch_python")  # its ABI is not stable; pybind11 needs only the interpreter
    kernels = sorted(glob("csrc/cuda/*.cu"))
    cuda = toolkit.find(torch) if kernels else None
    if cuda is not None:
        cpp_extension.CUDA_HOME = cuda.home
        module.sources += [*kernels, *sorted(glob("csrc/cuda/*.cpp"))]
        module.include_dirs.append(cuda.folder_of("cuda_runtime_api.h"))
        module.define_macros.append(("FASTNEST_NVCC", f'"{cuda.version}"'))
        module.define_macros.append(("FASTNEST_CUDA_ARCHITECTURES", f'"{" ".join(cuda.architectures)}"'))
        module.extra_compile_args["nvcc"] = cuda.flags(shlex.split(os.environ.get("CXX", "")))
        module.library_dirs.append(cuda.folder_of("libcudart_static.a"))
        module.extra_link_args += STATIC_RUNTIME
    return {"ext_modules": [module], "cmdclass": {"build_ext": Build}}


beside = {f"fastnest.{path.replace('/', '.')}": path for path in ("kernels", "benchmarks", "benchmarks/gpu")}
packages = [*find_packages(include=["fastnest", "fastnest.*"]), *beside]
setup(packages=packages, package_dir=beside, **extension())
