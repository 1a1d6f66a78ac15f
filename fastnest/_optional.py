"""Packages that only the demo, the benchmarks and the plots need, imported where they are used."""

from importlib import import_module
from types import ModuleType


class MissingExtra(ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def optional(name: str, extra: str) -> ModuleType:
    """The module `name`, or MissingExtra saying that ``pip install "fastnest-torch[extra]"`` installs it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        package = {"sklearn": "scikit-learn"}.get(error.name, error.name)
        raise MissingExtra(f'this needs {package}: pip install "fastnest-torch[{extra}]"') from error
