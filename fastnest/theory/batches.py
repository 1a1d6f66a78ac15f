"""Data as batches that can be read again and again: tensors in chunks, or an iterable of (x, y)."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

CHUNK_ELEMENTS = 2**21  # of x at once: what a model makes of them has to fit in memory beside them
CHUNK_ROWS = 4096


def _is_features(x: Any) -> bool:
    return isinstance(x, Sequence) and len(x) > 0 and all(isinstance(v, Tensor) for v in x)


class Batches:
    """(x, y) for x a tensor, or a list of tensors with the same rows, and y a tensor; or for an iterable of such pairs.

    Args:
        function: the public function that was called, for messages.
        x: [n, ...], a list of [n, ...], or where y is None an iterable of pairs (x, y).
        y: [n], [n, o] or None.
        progress: whether a bar is shown on stderr; None: where that is a terminal, and tqdm is installed.
    """

    def __init__(self, function: str, x: Any, y: Tensor | None, progress: bool | None = None):
        self.function, self.progress, self.read_once = function, progress, False
        if y is None:
            if isinstance(x, Tensor) or _is_features(x) or not isinstance(x, Iterable):
                raise ValueError(f"{function}: y must be a tensor where x is no iterable of batches (x, y), got None")
            self.source: Any = x
            self.rows: int | None = None
            return
        if not isinstance(y, Tensor):
            raise TypeError(f"{function}: y must be a torch.Tensor, got {type(y).__name__}")
        tensors = [x] if isinstance(x, Tensor) else x
        if not _is_features(tensors):
            raise TypeError(f"{function}: x must be a tensor or a list of tensors where y is one, got {_said(x)}")
        if y.dim() == 0 or any(v.dim() == 0 or len(v) != len(y) for v in tensors) or not len(y):
            raise ValueError(f"{function}: x and y must have the same rows, at least one, got {_said(x)}, {_said(y)}")
        self.source, self.rows = (x, y), len(y)
        elements = max(1, sum(v[:1].numel() for v in tensors))
        self.chunk = max(1, min(CHUNK_ROWS, CHUNK_ELEMENTS // elements))

    def _pairs(self) -> Iterator[tuple[Any, Tensor]]:
        if self.rows is not None:
            x, y = self.source
            for begin in range(0, self.rows, self.chunk):
                rows = slice(begin, begin + self.chunk)
                yield _rows(x, rows), y[rows]
            return
        if iter(self.source) is self.source:
            if self.read_once:
                raise ValueError(
                    f"{self.function}: x must be an iterable that can be read several times, such as a list or a "
                    f"DataLoader, got {type(self.source).__name__}"
                )
            self.read_once = True
        for batch in self.source:
            if not (isinstance(batch, Sequence) and len(batch) == 2 and isinstance(batch[1], Tensor)):
                raise TypeError(f"{self.function}: every batch must be a pair (x, y) of tensors, got {_said(batch)}")
            yield batch[0], batch[1]

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return bar(self._pairs(), self._total(), self.function, self.progress)

    def _total(self) -> int | None:
        if self.rows is not None:
            return -(-self.rows // self.chunk)
        return len(self.source) if hasattr(self.source, "__len__") else None


def _rows(x: Tensor | Sequence[Tensor], rows: slice) -> Tensor | list[Tensor]:
    return x[rows] if isinstance(x, Tensor) else [v[rows] for v in x]


def _said(x: Any) -> str:
    if isinstance(x, Tensor):
        return str(list(x.shape))
    if isinstance(x, Sequence) and not isinstance(x, str):
        return f"[{', '.join(map(_said, x[:3]))}{', ...' if len(x) > 3 else ''}]"
    return type(x).__name__


def bar(items: Iterable[Any], total: int | None, label: str, progress: bool | None) -> Iterator[Any]:
    """The items, counted on stderr."""
    if progress is None and not sys.stderr.isatty():
        progress = False
    if progress is not False:
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            if progress:
                raise
        else:
            items = tqdm(items, desc=label, total=total, unit="batch", leave=False, dynamic_ncols=True)
    return iter(items)
