"""Makes torchvision's wheel for CUDA importable beside a torch for CPUs.

An index with torch for CPUs may lack torchvision for CPUs. The compiled half of the wheel for CUDA then does not load.
torchvision handles this (its C++ ops, as nms and roi_align, raise an error that says so) in all but one place:
`torchvision._meta_registrations` registers fakes of two ops without asking whether they exist, and `import torchvision`
fails with "operator torchvision::nms does not exist". Their schemas are defined here, without kernels.
"""

import re
from importlib.machinery import PathFinder
from pathlib import Path

import torch

OPS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # definitions last as long as their library


def without_ops(torchvision: str, cuda: str | None) -> bool:
    """Whether this version of torchvision is compiled for CUDA and torch, compiled for `cuda`, is not.

    Where the compiled half does load it defines these ops itself, and a second definition would be an error.
    """
    return "+cu" in torchvision and cuda is None


def installed() -> str:
    """torchvision's version with its build, as "0.28.0+cu130", which its metadata leave out; "" where there is none."""
    spec = PathFinder.find_spec("torchvision")
    path = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    found = re.search(r"__version__ = '(.+)'", path.read_text()) if path and path.exists() else None
    return found[1] if found else ""


def define() -> None:
    if without_ops(installed(), torch.version.cuda):
        for op in OPS:
            LIBRARY.define(op + SCHEMA)
