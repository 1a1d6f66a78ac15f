"""A training's state on disk: whole or not there, and read without running anything in it."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

FORMAT = "fastnest training, 1"


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes state (tensors, numbers, text and containers of them) beside path, then moves it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path, wanted: str) -> Any:
    """What torch.save wrote, if it is tensors, numbers, text and containers of them.

    Raises ValueError for another file, which says that path must be what is `wanted`.
    """
    try:
        return torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} must be {wanted}, but cannot be read: {reason}") from error


def load(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What `save` wrote, if it comes from a training with the same settings.

    Raises ValueError for another file, or where settings differ, naming them.
    """
    state = read(path, "a checkpoint of this command")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} must be a checkpoint of this command, got another file")
    there = state["settings"]
    differ = [name for name in sorted({*settings, *there}) if settings.get(name) != there.get(name)]
    if differ:
        said = "; ".join(f"{name} {there.get(name)} there, {settings.get(name)} here" for name in differ)
        raise ValueError(f"{path} is from another training: {said}")
    return state
