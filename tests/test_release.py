"""What a release holds: sdist and wheel, installed where there is nothing but torch and what torch needs."""

import re
import shutil
import subprocess
import tarfile
import venv
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from marks import needs_cpp
from packaging.requirements import Requirement
from sources import ROOT, copied, python

import fastnest
from fastnest import _backend

# Git's own files and those of services: of no use in an archive.
NOT_SHIPPED = (".gitignore", ".github/", ".pre-commit-config.yaml")

WORKS = """
import sys
from importlib.util import find_spec
absent = ["torchvision", "triton", "timm", "matplotlib", "scipy", "sklearn", "tqdm", "pytest"]
print([name for name in absent if find_spec(name)])
import torch, fastnest
print(torch.cuda.is_initialized())
x = torch.randn(6, 5, requires_grad=True)
model = fastnest.models.ResNEst(5, 2, width=16, bottleneck=3, blocks=3)
model(x).sum().backward()
print(x.grad.shape, fastnest.theory.risk_gap(model, x, torch.randn(6, 2)).gap < 1e-6)
print(fastnest.explain(model, x).rows[0].backend)
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source archive, built from a copy of the sources."""
    tree = copied(tmp_path_factory.mktemp("release") / "tree")
    shutil.copytree(ROOT / ".ci", tree / ".ci")
    shutil.copy(ROOT / ".clang-format", tree)
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    done = python(tree, "-c", code, FASTNEST_NO_EXT="1")
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """A wheel without compiled code, built from the source archive and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    (tree,) = folder.iterdir()
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = python(tree, "-c", code, FASTNEST_NO_EXT="1")
    assert done.returncode == 0, done.stderr
    (built,) = (tree / "dist").glob("*.whl")
    return built


def needed(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """A distribution and what it needs without extras, triton aside, which torch's CUDA builds name and do without."""
    if name not in found and name != "triton":
        found[name] = distribution(name)
        for requirement in map(Requirement, found[name].requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed(requirement.name, found)
    return found


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment with torch, numpy, what they need, and fastnest from the wheel."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    where = python(folder, "-c", "import site; print(site.getsitepackages()[0])", interpreter=interpreter)
    packages = Path(where.stdout.strip())
    for one in {**needed("torch", {}), **needed("numpy", {})}.values():
        for name in {path.parts[0] for path in one.files} - {"..", "__pycache__"}:
            (packages / name).symlink_to(one.locate_file(name))
    words = ["-m", "pip", "--python", str(interpreter), "install", "--no-index", "--no-deps", str(wheel)]
    done = python(folder, *words)
    assert done.returncode == 0, done.stderr
    return interpreter


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: nothing says which files there should be")
def test_source_archive_holds_every_tracked_file(sdist):
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name for name in done.stdout.splitlines() if not name.startswith(NOT_SHIPPED)}
    shipped = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    assert tracked - shipped == set()


def test_wheel_tells_type_checkers(wheel):
    """py.typed, without which annotations do not count, and what the compiled half has instead of them."""
    assert {"fastnest/py.typed", "fastnest/_C.pyi"} <= set(zipfile.ZipFile(wheel).namelist())


def test_metadata(wheel, clean):
    code = "from importlib.metadata import metadata as m; print(*m('fastnest-torch').items(), sep='\\n')"
    said = python(clean.parent, "-Ic", code, interpreter=clean).stdout
    assert "('License-Expression', 'BSD-3-Clause')" in said
    assert "('License-File', 'LICENSE')" in said
    assert f"('Version', '{fastnest.__version__}')" in said
    requires = set(re.findall(r"\('Requires-Dist', '([^';]+)'\)", said))
    assert requires == {"torch>=2.10", "numpy"}


def test_imports_and_runs_with_torch_alone(clean, tmp_path):
    done = python(tmp_path, "-Ic", WORKS, interpreter=clean)
    assert done.stdout.splitlines() == ["[]", "False", "torch.Size([6, 5]) True", "reference"], done.stderr


def test_command_line(clean, tmp_path):
    """The script that pip writes; and a command that needs more says which extra brings it."""
    said = python(tmp_path, "-I", str(clean.parent / "fastnest"), "info", interpreter=clean)
    assert said.returncode == 0, said.stderr
    assert "none: every op runs its reference" in said.stdout
    code = "from fastnest.cli import main; print(main(['bench', '--show']), main(['report', '--data', 'digits']))"
    done = python(tmp_path, "-Ic", code, interpreter=clean)
    assert "| N | M | K | L |" in done.stdout
    assert done.stdout.endswith("\n0 2\n")
    assert 'pip install "fastnest-torch[report]"' in done.stderr


@needs_cpp
def test_compiled_kernels_need_nothing_more(clean, tmp_path):
    """The binary that is built here, beside the wheel's files, runs with torch alone."""
    installed = next(clean.parents[1].glob("lib/python*/site-packages/fastnest"))
    shutil.copytree(installed, tmp_path / "fastnest")
    shutil.copy(_backend._C.__file__, tmp_path / "fastnest")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}){WORKS}"
    done = python(tmp_path, "-Ic", code, interpreter=clean)
    assert done.stdout.splitlines()[-1:] == ["cpp"], done.stderr
