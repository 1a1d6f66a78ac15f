"""What tests of setup.py share: a copy of the sources, and what runs in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_of_sources(folder: Path) -> Path:
    """With nothing built in it."""
    built = shutil.ignore_patterns(".*", "build", "dist", "out", "*.so", "*.egg-info", "__pycache__")
    return shutil.copytree(ROOT, folder / "tree", ignore=built)


def python(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    words = [sys.executable, *arguments]
    return subprocess.run(words, cwd=tree, env={**os.environ, **environment}, capture_output=True, text=True)


def build_extension(tree: Path, **environment: str) -> subprocess.CompletedProcess:
    return python(tree, "setup.py", "--quiet", "build_ext", "--inplace", **environment)
