"""Packages that only the demo, the benchmarks and the plots need, imported where they are used."""

from importlib import import_module
from types import ModuleType


class MissingExtra(ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def optional(name: str, extra: str) -> ModuleType:
    """The module `name`, or MissingExtra saying that ``pip install "fastnest-torch[extra]"`` installs it."""
    package = name.partition(".")[0]
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        shown = {"sklearn": "scikit-learn"}.get(package, package)
        raise MissingExtra(f'this needs {shown}: pip install "fastnest-torch[{extra}]"') from error
    return import_module(name)
