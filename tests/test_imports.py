"""Imports point one way, and `import fastnest` needs torch and nothing else."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastnest

PACKAGE = Path(fastnest.__file__).parent
# Every part imports only what stands to its left.
ARROWS = ("reference", "_backend", "ops", "functional", "nn", "models", "theory")
# Beside the arrows: what each may import on top of them.
BESIDE = {
    "convert": {"_backend", "nn"},
    "testing": {"reference", "_backend", "functional"},
    "training": {"_optional", "models"},
    "report": {"_optional", "__version__", "demo", "models", "theory", "training"},
}
ANYONE = {"_C"}
OPTIONAL = {"theory": {"_optional"}}  # parts that take a package which fastnest does not require, when called


def imports(path: Path) -> set[str]:
    """Parts of fastnest (its modules and packages, without what lies inside) that a file imports, wherever in it."""
    here = ("fastnest", *path.relative_to(PACKAGE).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found |= {(*base, alias.name) for alias in node.names}
    return {name[1] for name in found if name[0] == "fastnest" and len(name) > 1}


def files(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]


@pytest.mark.parametrize("part", ARROWS)
def test_arrows(part):
    allowed = set(ARROWS[: ARROWS.index(part) + 1]) | OPTIONAL.get(part, set())
    if part == "_backend":
        allowed = {"_backend"} | ANYONE
    for path in files(part):
        assert imports(path) <= allowed, f"{path.name} imports {sorted(imports(path) - allowed)}"


@pytest.mark.parametrize("part", BESIDE)
def test_beside_the_arrows(part):
    for path in files(part):
        foreign = imports(path) - BESIDE[part] - {part}
        assert not foreign, f"{path.name} imports {sorted(foreign)}"


def test_every_part_has_its_place():
    """The programs that are not among them, and what takes an optional package, import what they like."""
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    free = {"__init__", "__main__", "_optional", "cli", "demo", "options"}
    assert parts - free - {"kernels", "benchmarks"} == {*ARROWS, *BESIDE}


def test_kernels_import_nothing_of_fastnest():
    (folder,) = find_spec("fastnest.kernels").submodule_search_locations  # in a clone it lies elsewhere
    for path in Path(folder).glob("*.py"):
        names = re.findall(r"^\s*(?:from|import)\s+([\w.]+)", path.read_text(), re.M)
        assert not [name for name in names if name.split(".")[0] == "fastnest" or name.startswith("..")], path


def test_only_kernels_imports_triton():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.split(".")[0] == "triton"], path


def test_only_the_backend_chooser_asks_about_devices():
    for part in ("ops", "functional", "nn", "models", "convert"):
        for path in files(part):
            text = path.read_text()
            assert not re.search(r"\bcuda\b|is_cuda", text), path  # `cuda_limit` is a limit of sizes
            assert "environ" not in text, path


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT = """
import sys
for name in {names}:
    sys.modules[name] = None
import fastnest, torch
x = torch.randn(3, 5)
print(fastnest.models.ResNEst(5, 2, width=8, bottleneck=4, blocks=2)(x).shape)
print(torch.cuda.is_initialized())
print(fastnest.backends()["cpp"])
"""


def test_import_needs_nothing_else_and_touches_no_gpu():
    optional = ["triton", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "tqdm", "numpy.testing"]
    lines = run(WITHOUT.format(names=optional)).splitlines()
    assert lines[:2] == ["torch.Size([3, 2])", "False"]


def test_without_the_compiled_half():
    """Everything works, and backends() says what is missing and what to do."""
    lines = run(WITHOUT.format(names=["fastnest._C"])).splitlines()
    assert lines[0] == "torch.Size([3, 2])"
    assert lines[2].startswith("not built: installed without a C++ compiler; install g++")


def test_public_names():
    names = {"accelerate", "backend", "backends", "explain", "functional", "nn", "models", "restore", "theory"}
    assert set(fastnest.__all__) >= names
    for module in (fastnest, fastnest.functional, fastnest.nn, fastnest.models, fastnest.theory):
        assert all(getattr(module, name).__doc__ for name in module.__all__)
