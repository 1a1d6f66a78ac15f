"""setup.py: what is shipped, installing without a compiler, and what a failing compiler says."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from sources import ROOT, copied, python


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copied(tmp_path / "tree")


def build_extension(tree: Path, **environment: str) -> subprocess.CompletedProcess:
    return python(tree, "setup.py", "--quiet", "build_ext", "--inplace", **environment)


def test_source_distribution_holds_everything_that_is_compiled(tree):
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    result = python(tree, "-c", code, FASTNEST_NO_EXT="1")
    assert result.returncode == 0, result.stderr
    (archive,) = (tree / "dist").glob("fastnest_torch-*.tar.gz")
    shipped = {name.partition("/")[2] for name in tarfile.open(archive).getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*") if path.suffix != ".pyc"}
    assert sources | {"setup.py", "pyproject.toml", "kernels/__init__.py", "benchmarks/run.py", "Makefile"} <= shipped


def test_wheel_without_compiler_is_pure_and_works(tree):
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    result = python(tree, "-c", code, CXX="no-such-compiler")
    assert result.returncode == 0, result.stderr
    assert "WITHOUT the C++ kernels" in result.stderr
    assert "no C++ compiler (no-such-compiler)" in result.stderr
    (wheel,) = (tree / "dist").glob("fastnest_torch-*-none-any.whl")
    unpacked = tree / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    assert {"fastnest/cli.py", "fastnest/kernels/__init__.py", "fastnest/benchmarks/run.py"} <= {
        str(path.relative_to(unpacked)) for path in unpacked.rglob("*.py")
    }
    # An editable install of this very tree would lend its kernels to the unpacked wheel.
    alone = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)];"
    code = (
        "import torch, fastnest; from fastnest.cli import main;"
        "print('unpacked' in fastnest.__file__, fastnest.backends()['cpp'] != 'available');"
        "print(fastnest.models.ResNEst(3, 2, width=8, bottleneck=4, blocks=2)(torch.ones(5, 3)).shape); main(['info'])"
    )
    result = python(unpacked, "-c", alone + code)
    assert result.stdout.startswith("True True\ntorch.Size([5, 2])\n"), result.stderr
    assert "none: every op runs its reference" in result.stdout
    assert "install a C++ compiler" in result.stdout


@pytest.mark.parametrize(
    ("environment", "said"),
    [({"FASTNEST_NO_EXT": "1"}, "FASTNEST_NO_EXT is set"), ({"CXX": "no-such-compiler -x"}, "no C++ compiler")],
)
def test_extension_is_skipped_aloud(tree, environment, said):
    result = build_extension(tree, **environment)
    assert result.returncode == 0, result.stderr
    assert said in result.stderr
    assert not list((tree / "fastnest").glob("_C*.so"))


def test_failing_compiler_is_a_clear_error(tree):
    result = build_extension(tree, CXX="false")
    assert result.returncode != 0
    assert "building fastnest._C with false failed" in result.stderr
    assert "FASTNEST_NO_EXT=1" in result.stderr


def test_broken_source_is_a_clear_error(tree):
    """One file that is not C++, so that the error of the compiler itself is seen without compiling the kernels."""
    for path in (tree / "csrc" / "cpu").glob("*.cpp"):
        path.unlink()
    (tree / "csrc" / "ops.cpp").write_text("#error this file is broken\n")
    result = build_extension(tree)
    assert result.returncode != 0
    assert "this file is broken" in result.stdout + result.stderr
    assert "failed, see above" in result.stderr


def test_gpu_target_does_not_pretend():
    none = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = ["make", "gpu", f"PYTHON={sys.executable}"]
    result = subprocess.run(command, cwd=ROOT, env=none, capture_output=True, text=True)
    assert result.returncode != 0
    assert "nothing was run" in result.stderr
