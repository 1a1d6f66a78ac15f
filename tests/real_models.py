"""The packages whose models `accelerate` knows, imported beside any torch.

In the environment that `make` builds they import as they are (tests/situations/test_environment.py). Elsewhere that
may fail, as every torchvision is compiled for one build of torch. Then what they import and no model calls is a stub,
for the time of the import only, and a warning says so.
"""

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

# What each imports and a model of it does not need.
STUBS = {
    "torchvision": ("torchvision.transforms", "torchvision.utils"),
    "timm": ("timm.data", "torchvision", "huggingface_hub", "safetensors", "yaml"),
    "monai": ("torchvision", "monai.apps", "monai.data", "monai.transforms"),
    "torchxrayvision": ("torchvision", "requests", "pandas", "skimage", "imageio", "PIL"),
}
# Parents left empty, because their __init__ imports all that there is: a thousand models, torchvision's compiled half.
BARE = ("torchvision", "torchvision.models", "timm", "timm.models", "monai", "monai.networks.nets")


class _Stub(ModuleType):
    """A module that has every name: each is a class of its own, so that it can be called, subclassed, or decorate."""

    __path__ = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None, "__call__": lambda self, f: f})


class _Finder(MetaPathFinder, Loader):
    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        stubbed = any(name == stub or name.startswith(f"{stub}.") for stub in self.names)
        return ModuleSpec(name, self, is_package=True) if stubbed else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def _stubbed(package: str) -> Iterator[None]:
    """Inside, what the package does not need is a stub; afterwards everything that was imported is forgotten again."""
    before = dict(sys.modules)
    finder = _Finder(STUBS[package])
    for name in list(sys.modules):
        if name.partition(".")[0] in {stub.partition(".")[0] for stub in finder.names} - {package}:
            del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name, module in list(sys.modules.items()):
            if isinstance(module, _Stub):
                del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


@cache
def import_error(module: str) -> str:
    """Why a module of a package above does not import here as it is; "" where it does."""
    before, package = set(sys.modules), module.partition(".")[0]
    try:
        importlib.import_module(module)
    except Exception as error:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == package:  # its parts that came before the error
                del sys.modules[name]
        return f"{type(error).__name__}: {error}"
    return ""


@cache
def load(module: str) -> ModuleType:
    """`module` of one of the packages above; skips the test where the package is not installed."""
    package = module.partition(".")[0]
    spec = PathFinder.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed: make environment brings it")
    error = import_error(module)
    if not error:
        return importlib.import_module(module)
    warnings.warn(f"{module} is imported beside stubs, because it does not import as it is: {error}", stacklevel=2)
    with _stubbed(package):
        for name in BARE:
            if f"{module}.".startswith(f"{name}.") and name not in sys.modules:
                parent = sys.modules[name] = ModuleType(name)
                parent.__path__ = [str(Path(spec.origin).parent.joinpath(*name.split(".")[1:]))]
                parent.__version__ = version(package)
        return importlib.import_module(module)
