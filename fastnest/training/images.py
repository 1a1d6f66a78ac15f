"""CIFAR's own binary files, images made up for a dry run, and the augmentation of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .memory import check_memory

SIDE, CHANNELS = 32, 3
PIXELS = SIDE * SIDE * CHANNELS
PAD = 4  # pixels that a crop may be off by, taken from the image's reflection
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class _Format(NamedTuple):
    """Records of label bytes, the last of them the class, then 1024 bytes each of red, green and blue by rows."""

    classes: int
    label_bytes: int
    training: tuple[str, ...]
    test: tuple[str, ...]
    folder: str  # that the archive makes
    archive: str


FORMATS = {
    "cifar10": _Format(
        classes=10,
        label_bytes=1,
        training=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test=("test_batch.bin",),
        folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
    ),
    "cifar100": _Format(
        classes=100,
        label_bytes=2,  # one of 20 coarse classes, then the class
        training=("train.bin",),
        test=("test.bin",),
        folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
    ),
}


@dataclass(frozen=True)
class Images:
    """Training and test images, uint8 [n, 3, 32, 32] in channels-last memory, and their classes, int64 [n]."""

    name: str
    classes: int
    x: Tensor
    y: Tensor
    x_held_out: Tensor
    y_held_out: Tensor
    mean: list[float] = field(init=False)  # of each channel of the training images, as are the deviations
    deviation: list[float] = field(init=False)

    def __post_init__(self) -> None:
        values = torch.arange(256, dtype=torch.float64)
        means, deviations = [], []
        for channel in self.x.unbind(1):  # from counts of the 256 values: exact, and no copy in a wider type
            share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
            mean = share @ values
            means.append(float(mean))
            deviations.append(max(float((share @ (values - mean).square()).sqrt()), 1.0))
        object.__setattr__(self, "mean", means)
        object.__setattr__(self, "deviation", deviations)

    def normalised(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Images x (uint8) minus the training images' mean, over their deviation."""
        mean, deviation = (torch.tensor(values, dtype=dtype).view(-1, 1, 1) for values in (self.mean, self.deviation))
        return (x.to(dtype) - mean) / deviation

    def __str__(self) -> str:
        return f"{self.name}: {len(self.x)} training and {len(self.x_held_out)} test images of {self.classes} classes"


def load(source: str, root: Path = Path("data")) -> Images:
    """CIFAR-10 or CIFAR-100 from its binary files.

    Args:
        source: "cifar10" or "cifar100", whose files lie in root or in the folder there that their archive makes; or a
            folder of such files.
        root: where to look for a data set by its name.

    Raises FileNotFoundError, naming the files that are absent, and ValueError for a file that is no whole number of
    records or holds an unknown class.
    """
    if source in FORMATS:
        return _read(source, _folder(root, FORMATS[source]))
    for name, form in FORMATS.items():
        folder = _folder(Path(source), form)
        if any((folder / file).exists() for file in form.training):
            return _read(name, folder)
    known = " or ".join(f"{', '.join(form.training + form.test)} ({name})" for name, form in FORMATS.items())
    raise FileNotFoundError(f"{source} holds no images: it must be a folder with {known}")


def _folder(root: Path, form: _Format) -> Path:
    inner = root / form.folder
    return inner if inner.is_dir() else root


def _read(name: str, folder: Path) -> Images:
    form = FORMATS[name]
    absent = [file for file in form.training + form.test if not (folder / file).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{name}: {folder} has no {', '.join(absent)}; they are in {form.archive} of {PAGE}, to be unpacked there "
            "(--root FOLDER looks elsewhere, --synthetic makes up images)"
        )
    training, test = ([_records(folder / file, form) for file in files] for files in (form.training, form.test))
    return Images(name, form.classes, *_joined(training), *_joined(test))


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    x, y = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(y)


def _records(path: Path, form: _Format) -> tuple[Tensor, Tensor]:
    """(images, classes) of one file."""
    size = form.label_bytes + PIXELS
    values = numpy.fromfile(path, dtype=numpy.uint8)
    if len(values) == 0 or len(values) % size:
        raise ValueError(
            f"{path} must be a whole number of records of {size} bytes, got {len(values)} bytes: cut short?"
        )
    records = torch.from_numpy(values).view(-1, size)
    y = records[:, form.label_bytes - 1].long()
    if int(y.max()) >= form.classes:
        raise ValueError(f"{path}: classes must be less than {form.classes}, got {int(y.max())}")
    x = records[:, form.label_bytes :].reshape(-1, CHANNELS, SIDE, SIDE)
    return x.contiguous(memory_format=torch.channels_last), y


def synthetic(images: int, classes: int, seed: int = 0) -> Images:
    """Made-up images, and a quarter as many for the test: a pattern of 4 x 4 patches per class under strong noise."""
    if images < 8:
        raise ValueError(f"--synthetic must be at least 8 images, got {images}")
    # Of every image, and of a quarter as many for the test: its pattern and noise in float64, and what comes of them.
    check_memory(f"--synthetic {images}", images * PIXELS * 20)
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(64, 192, (classes, CHANNELS, 4, 4), generator=generator).double()
    patterns = patterns.repeat_interleave(SIDE // 4, 2).repeat_interleave(SIDE // 4, 3)

    def some(number: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(classes, (number,), generator=generator)
        noise = torch.randn(number, CHANNELS, SIDE, SIDE, generator=generator) * 32
        x = (patterns[y] + noise).clamp(0, 255).to(torch.uint8)
        return x.contiguous(memory_format=torch.channels_last), y

    return Images("synthetic", classes, *some(images), *some(images // 4))


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to 4 pixels both ways, its reflection coming in at the edges, and half of them mirrored.

    The images [n, c, h, w] are gathered at the right places, so that nothing is padded; the result is channels-last.
    """
    n, _, h, w = x.shape
    shift = torch.randint(-PAD, PAD + 1, (2, n, 1), generator=generator)
    mirror = torch.rand(n, 1, generator=generator) < 0.5
    rows, columns = _reflected(shift[0] + torch.arange(h), h), _reflected(shift[1] + torch.arange(w), w)
    columns = torch.where(mirror, columns.flip(1), columns)
    images = torch.arange(n)[:, None, None]
    return x.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Indices past either end of 0 ... size - 1, mirrored at the end itself."""
    index = index.abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)
