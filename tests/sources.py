"""The sources as a user gets them: a copy with nothing built in it, and Python run on it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copied(to: Path) -> Path:
    """A copy of the sources at `to` with nothing built in it."""
    built = shutil.ignore_patterns(".*", "build", "dist", "out", "*.so", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT, to, ignore=built))


def python(
    folder: Path, *arguments: str, interpreter: Path | str = sys.executable, **environment: str
) -> subprocess.CompletedProcess:
    """Runs Python in a folder."""
    words = [str(interpreter), *arguments]
    return subprocess.run(words, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
