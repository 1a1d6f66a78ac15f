"""csrc/toolkit.py: which CUDA toolkit is taken, for which GPUs, what is said where none is; and a real one."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sources import ROOT, copied, python

NVCC = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda") / "bin" / "nvcc"
needs_nvcc = pytest.mark.skipif(not NVCC.exists(), reason="no CUDA toolkit")


@pytest.fixture
def toolkit(monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH", "FASTNEST_CUDA", "FASTNEST_NO_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("toolkit", ROOT / "csrc" / "toolkit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_torch(cuda: str | None) -> SimpleNamespace:
    return SimpleNamespace(__version__="2.13.0", version=SimpleNamespace(cuda=cuda))


def a_home(
    folder: Path, says: str = "Cuda compilation tools, release 12.8, V12.8.61", knows=(80, 90, 100, 120)
) -> Path:
    """A folder that looks like a toolkit, with an nvcc that says what it is told to."""
    for name in ("bin", "include", "lib64"):
        (folder / name).mkdir(parents=True)
    for name in ("include/cuda_runtime.h", "include/cuda_runtime_api.h", "lib64/libcudart_static.a"):
        (folder / name).touch()
    nvcc = folder / "bin" / "nvcc"
    known = "\n".join(f"compute_{number}" for number in knows)
    nvcc.write_text(f"#!/bin/sh\nif [ $1 = --version ]; then echo '{says}'; else echo '{known}'; fi\n")
    nvcc.chmod(0o755)
    return folder


def refused(toolkit, torch) -> str:
    with pytest.raises(SystemExit) as stopped:
        toolkit.find(torch)
    said = stopped.value.code
    assert said.startswith("fastnest: the kernels in CUDA cannot be built: ")
    assert said.endswith(" FASTNEST_NO_CUDA=1 builds the C++ kernels alone.")
    assert "\n" not in said
    return said


def test_a_toolkit_and_its_flags(toolkit, tmp_path, monkeypatch):
    home = a_home(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(home))
    found = toolkit.find(a_torch("12.6"))
    assert (found.home, found.version) == (str(home), "12.8")
    assert found.architectures == ["sm_80", "compute_80", "sm_90a", "sm_100a", "sm_120", "compute_120"]
    flags = found.flags([])
    assert "-gencode=arch=compute_90a,code=sm_90a" in flags
    assert "-gencode=arch=compute_120,code=compute_120" in flags
    assert "-ccbin" not in flags
    assert found.flags(["g++-12"])[-2:] == ["-ccbin", "g++-12"]
    assert found.folder_of("cuda_runtime_api.h") == str(home / "include")
    assert found.folder_of("libcudart_static.a") == str(home / "lib64")
    (home / "lib64" / "libcudart_static.a").unlink()
    with pytest.raises(SystemExit, match=r"cuda has no libcudart_static.a\. Install the CUDA toolkit >= 12.4"):
        found.folder_of("libcudart_static.a")


def test_an_older_nvcc_builds_for_what_it_knows(toolkit, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(a_home(tmp_path / "cuda", "release 12.4, V12.4.1", (80, 89, 90))))
    assert toolkit.find(a_torch("12.6")).architectures == ["sm_80", "compute_80", "sm_90a", "compute_90"]


@pytest.mark.parametrize(
    ("named", "codes"),
    [
        ("9.0", ["sm_90"]),
        ("8.0;9.0a", ["sm_80", "sm_90a"]),
        ("8.0 9.0+PTX, 12.0", ["sm_80", "sm_90", "compute_90", "sm_120"]),
        ("7.5 8.0", ["sm_80"]),
        ("10.0f", ["sm_100f"]),
        ("10.0a+PTX;", ["sm_100a", "compute_100a"]),
    ],
)
def test_named_architectures(toolkit, tmp_path, monkeypatch, capsys, named, codes):
    monkeypatch.setenv("CUDA_HOME", str(a_home(tmp_path / "cuda")))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", named)
    assert toolkit.find(a_torch("12.8")).architectures == codes
    assert ("no CUDA kernels for compute capability 7.5" in capsys.readouterr().err) == ("7.5" in named)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("Hopper", "must list compute capabilities, as in '8.0;9.0a+PTX', got 'Hopper'. Set it so, or unset it"),
        ("8.0;13.0", "names 13.0, which nvcc of CUDA 12.8 does not know. It knows 8.0, 9.0, 10.0, 12.0."),
        ("7.0", "names '7.0', none from 8.0. Add one."),
    ],
)
def test_unfit_architectures(toolkit, tmp_path, monkeypatch, named, said):
    monkeypatch.setenv("CUDA_HOME", str(a_home(tmp_path / "cuda")))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", named)
    assert f"TORCH_CUDA_ARCH_LIST {said}" in refused(toolkit, a_torch("12.8"))


def test_a_mismatch_names_both_versions_and_the_remedy(toolkit, tmp_path, monkeypatch):
    home = a_home(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(home))
    said = refused(toolkit, a_torch("13.0"))
    assert f"{home}/bin/nvcc is of CUDA 12.8, torch 2.13.0 is built for CUDA 13.0" in said
    assert "Set CUDA_HOME to a toolkit of CUDA 13.0, or install a torch for CUDA 12." in said


def test_too_old(toolkit, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(a_home(tmp_path / "cuda", "release 12.3, V12.3.1")))
    assert "is of CUDA 12.3, older than 12.4. Install the CUDA toolkit >= 12.4" in refused(toolkit, a_torch("12.6"))


def test_cuda_home_without_a_working_nvcc(toolkit, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert f"CUDA_HOME is {tmp_path}, but there is no {tmp_path}/bin/nvcc" in refused(toolkit, a_torch("12.8"))
    home = a_home(tmp_path / "cuda", "nothing that one knows")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert "names no release, but says 'nothing that one knows'" in refused(toolkit, a_torch("12.8"))
    (home / "bin" / "nvcc").write_text("#!/bin/sh\nexit 3\n")
    assert "nvcc --version fails (" in refused(toolkit, a_torch("12.8"))


def test_a_torch_for_cpus_builds_none_and_says_so(toolkit, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_HOME", str(a_home(tmp_path / "cuda")))
    assert toolkit.find(a_torch(None)) is None
    (said,) = capsys.readouterr().err.splitlines()
    assert "WITHOUT those in CUDA: torch 2.13.0 is not built for CUDA. Install a torch built for CUDA, or set" in said
    monkeypatch.setenv("FASTNEST_CUDA", "1")
    assert toolkit.find(a_torch(None)).version == "12.8"
    monkeypatch.setenv("FASTNEST_NO_CUDA", "1")
    assert toolkit.find(a_torch("12.8")) is None
    assert "WITHOUT those in CUDA: FASTNEST_NO_CUDA is set" in capsys.readouterr().err


def test_without_a_toolkit(toolkit, monkeypatch, capsys):
    monkeypatch.setattr(toolkit, "_home", lambda: None)
    assert toolkit.find(a_torch(None)) is None
    assert capsys.readouterr().err == ""  # nobody expects them
    assert toolkit.find(a_torch("12.8")) is None
    assert "torch is built for CUDA 12.8, but there is no nvcc in /usr/local/cuda/bin or" in capsys.readouterr().err
    monkeypatch.setenv("FASTNEST_CUDA", "1")
    assert "FASTNEST_CUDA is set, but there is no nvcc in" in refused(toolkit, a_torch(None))


def test_where_a_toolkit_is_looked_for(toolkit, tmp_path, monkeypatch):
    """An nvcc on PATH counts where it lies in a toolkit; a script that calls another's does not."""
    monkeypatch.setattr(toolkit, "USUAL", str(tmp_path / "usual"))
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexec /somewhere/bin/nvcc\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    assert toolkit._home() is None
    on_path = a_home(tmp_path / "cuda")
    monkeypatch.setenv("PATH", str(on_path / "bin"))
    assert toolkit._home() == str(on_path)
    usual = a_home(tmp_path / "usual")
    assert toolkit._home() == str(usual)
    monkeypatch.setenv("CUDA_PATH", "named")
    assert toolkit._home() == "named"
    monkeypatch.setenv("CUDA_HOME", "first")
    assert toolkit._home() == "first"


# In the place of the kernels: one launch, and what build_info says.
SOURCES = {
    "ops.cpp": """
        #include <pybind11/pybind11.h>
        #include "build_info.h"
        void* stream_of(int device);
        PYBIND11_MODULE(_C, m) {
          m.def("build_info", &fastnest::build_info);
        #ifdef FASTNEST_NVCC
          m.def("stream_of", [](int device) { return reinterpret_cast<size_t>(stream_of(device)); });
        #endif
        }
        """,
    "cuda/probe.cu": """
        #include <cuda_bf16.h>
        __global__ void add(__nv_bfloat16* x) { x[threadIdx.x] = x[threadIdx.x] + __nv_bfloat16(1.0f); }
        void launch_add(__nv_bfloat16* x, cudaStream_t stream) { add<<<1, 32, 0, stream>>>(x); }
        """,
    "cuda/probe_host.cpp": """
        #include "cuda/stream.h"
        void* stream_of(int device) { return fastnest::current_stream(device); }
        """,
}
# In the place of torch's: stream 7 of GPU 0.
TORCH_CUDA = """
    #include <cstdint>
    extern "C" int32_t NAME(int32_t device, void** stream) {
      *stream = reinterpret_cast<void*>(7);
      return device;
    }
    """


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A copy of the sources with a small kernel in the place of all others."""
    tree = copied(tmp_path / "tree")
    for folder in ("cpu", "cuda"):
        for path in (tree / "csrc" / folder).glob("*.c*"):
            path.unlink()
    for name, text in SOURCES.items():
        (tree / "csrc" / name).write_text(textwrap.dedent(text))
    return tree


def test_setup_refuses_before_anything_compiles(probe):
    result = python(probe, "setup.py", "--quiet", "build_ext", FASTNEST_CUDA="1", CUDA_HOME=str(probe))
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"fastnest: the kernels in CUDA cannot be built: CUDA_HOME is {probe}, but there is no")
    assert not (probe / "build").exists()


@needs_nvcc
def test_setup_says_that_a_torch_for_cpus_builds_none(probe):
    if torch.version.cuda is not None:
        return
    result = python(probe, "setup.py", "--version", CUDA_HOME=str(NVCC.parents[1]))
    assert result.stdout.strip(), result.stderr
    assert f"WITHOUT those in CUDA: torch {torch.__version__} is not built for CUDA" in result.stderr
    for path in (probe / "csrc" / "cuda").glob("*.cu"):
        path.unlink()
    assert "CUDA" not in python(probe, "setup.py", "--version", CUDA_HOME=str(NVCC.parents[1])).stderr


def loaded(extension: Path, libraries: tuple[Path, ...] = ()) -> dict:
    """What an extension says in a process of its own that has loaded the libraries."""
    code = f"""
        import ctypes, importlib.util, json, torch
        for path in {[str(path) for path in libraries]}:
            ctypes.CDLL(path)
        spec = importlib.util.spec_from_file_location("_C", {str(extension)!r})
        _C = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_C)
        streams = []
        for device in (0, 1):
            try:
                streams.append(_C.stream_of(device))
            except (AttributeError, RuntimeError) as error:
                streams.append(str(error))
        print(json.dumps(_C.build_info() | {{"streams": streams}}))
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def a_library(folder: Path, function: str) -> Path:
    folder.mkdir()
    source, library = folder / "torch_cuda.cpp", folder / "libtorch_cuda.so"
    source.write_text(TORCH_CUDA.replace("NAME", function))
    words = ["c++", "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-o", library, source]
    subprocess.run(words, check=True)
    return library


@needs_nvcc
def test_a_wheel_with_cuda_made_beside_a_torch_for_cpus(probe):
    """Built for one GPU, it loads where there is none, needs no library of CUDA, and asks torch for its stream."""
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    environment = {"FASTNEST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0", "NVCC_APPEND_FLAGS": "-Werror all-warnings"}
    result = python(probe, "-c", code, CUDA_HOME=str(NVCC.parents[1]), **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (probe / "dist").glob("fastnest_torch-*.whl")
    zipfile.ZipFile(wheel).extractall(probe / "elsewhere")
    (built,) = (probe / "elsewhere" / "fastnest").glob("_C*.so")
    needed = subprocess.run(["readelf", "-d", built], capture_output=True, text=True, check=True).stdout
    assert "libstdc++" in needed
    assert "cuda" not in needed
    found = loaded(built)
    assert found["cuda"]["architectures"] == ["sm_80"]
    assert found["cuda"]["nvcc"] in subprocess.run([NVCC, "--version"], capture_output=True, text=True).stdout
    if torch.version.cuda is None:
        assert "need a torch built for CUDA, and libtorch_cuda.so is not loaded; install one" in found["streams"][0]
        right = a_library(probe / "right", "aoti_torch_get_current_cuda_stream")
        stream, error = loaded(built, (right,))["streams"]
        assert stream == 7
        assert "torch has no current stream for GPU 1" in error
        wrong = a_library(probe / "wrong", "another_name")
        assert "has no aoti_torch_get_current_cuda_stream" in loaded(built, (wrong,))["streams"][0]
