"""The environment that `make` builds runs what the documentation shows, as a user would: a fresh process, no stubs."""

import os
import re
import subprocess
from importlib.util import find_spec

import pytest
from docs.pages import ROOT, blocks
from environment.torchvision_schemas import without_ops
from sources import python

PINNED = re.search(r'"torch==([^"]*)"', (ROOT / "pyproject.toml").read_text())[1]
made = pytest.mark.skipif(not find_spec("torchvision"), reason="no torchvision: make environment installs it")

# What is imported, with the module that is asked for it.
IMPORTED = {
    "torchvision": "torchvision.models",
    "timm": "timm.models",
    "MONAI": "monai.networks.nets",
    "torchxrayvision": "torchxrayvision.models",
}
# Page, and how many of its examples from the top: one namespace, as one who copies them has it.
EXAMPLES = {
    "README: a network, a model that you have": ("README.md", 2),
    "accelerate: torchvision's DenseNet": ("docs/accelerate.md", 2),
    "start: a network": ("docs/start.md", 1),
}
# torchvision's version and the CUDA that torch is compiled for; whether torchvision cannot load its ops.
BUILDS = {
    "CUDA beside CPU": ("0.28.0+cu130", None, True),
    "CUDA beside CUDA": ("0.28.0+cu130", "13.0", False),
    "CPU beside CPU": ("0.28.0+cpu", None, False),
    "no label": ("0.28.0", None, False),
    "compiled here": ("0.28.0a0+8fb8771", None, False),
    "not installed": ("", None, False),
}
# Words on make's command line, and what it then runs.
MADE = {
    "the pinned torch": ((), f'/bin/python -m pip --disable-pip-version-check install --quiet "torch=={PINNED}"'),
    "another torch": (("TORCH=torch==2.11.0",), 'install --quiet "torch==2.11.0"'),
    "models beside another torch": (("TORCH=torch==2.11.0",), 'install --quiet --group models "torch==2.11.0"'),
    "another Python": (("PYTHON=python3.13",), "python3.13 -m venv"),
    "another folder": (("VENV=elsewhere",), "elsewhere/bin/python -m pip"),
}


@made
@pytest.mark.parametrize("module", IMPORTED.values(), ids=list(IMPORTED))
def test_packages_import(module, tmp_path):
    done = python(tmp_path, "-c", f"import {module}")
    assert done.returncode == 0, done.stderr


@made
@pytest.mark.parametrize(("page", "count"), EXAMPLES.values(), ids=list(EXAMPLES))
def test_examples_run(page, count, tmp_path):
    code = "".join(block.text for block in blocks(ROOT / page, "python")[:count])
    done = python(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("torchvision", "cuda", "expected"), BUILDS.values(), ids=list(BUILDS))
def test_schemas_only_where_the_ops_do_not_load(torchvision, cuda, expected):
    assert without_ops(torchvision, cuda) is expected


@pytest.mark.parametrize(("words", "expected"), MADE.values(), ids=list(MADE))
def test_make_environment_takes(words, expected):
    outside = {"MAKEFLAGS", "PYTHON", "TORCH", "VENV"}  # of the make that may run the tests
    environment = {name: value for name, value in os.environ.items() if name not in outside}
    command = ["make", "--dry-run", "--always-make", "environment", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert expected in done.stdout, done.stderr
