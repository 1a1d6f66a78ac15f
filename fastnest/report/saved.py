"""A model from its state_dict alone: kind and sizes from names and shapes."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models import AResNEst, DenseNEst, ResNEst, cifar, densenest
from ..models.cifar import ARCHS as RESIDUAL
from ..models.cifar import KINDS
from ..models.densenet import ARCHS as DENSE
from ..models.densenet import OLD_KEY
from ..training.checkpoint import read

WANTED = "a state_dict of fastnest.models"
BLOCK = re.compile(r"stage\.0\.\d+\.bn1\.weight")
LAYER = re.compile(r"features\.denseblock\d+\.denselayer\d+\.conv1\.weight")
State = Mapping[str, Tensor]


def load(
    path: Path, *, activation: str = "relu", pre_activation: bool = True, kind: str | None = None
) -> torch.nn.Module:
    """The model of fastnest.models whose state_dict a file holds, with its weights, in float32 and in evaluation.

    Args:
        path: what torch.save(model.state_dict(), path) wrote. Nothing in it is run.
        activation: of a model on vectors, which its state_dict does not tell.
        pre_activation: the same, of models without batch norms (with them their names tell).
        kind: of models.cifar, "standard" or "bn_resnest", whose state_dicts look the same.

    Raises ValueError, naming the file, for anything else: other objects, blocks that are modules of one's own, names
    or shapes that no model has, weights that are not finite.
    """
    state = read(path, WANTED)
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{path} must be {WANTED}, got {type(state).__name__}{' of nothing' if not state else ''}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} must be {WANTED}, got {type(value).__name__} under {key!r}")
        # A view that repeats its few numbers would ask for any amount of memory.
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{path} must be {WANTED}, got no plain tensor under {key!r}")
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{path}: weights must be finite, got NaN or Inf in {key}")
    state = {OLD_KEY.sub(r"\1\2.", key): value for key, value in state.items()}
    with torch.device("meta"):
        model = _built(path, state, {"activation": activation, "pre_activation": pre_activation}, kind)
    if wrong := _differences(model, state):
        raise ValueError(f"{path} does not fit the {type(model).__name__} that its sizes say: {wrong}")
    model = model.to_empty(device="cpu")
    model.load_state_dict(state)
    return model.eval()


def _differences(model: torch.nn.Module, state: State) -> str:
    there, wanted = ({key: list(value.shape) for key, value in one.items()} for one in (state, model.state_dict()))
    parts = [f"{key} must be {shape}, got {there.get(key, 'none')}" for key, shape in wanted.items()
             if there.get(key) != shape]  # fmt: skip
    parts += [f"{key} is unknown" for key in there if key not in wanted]
    return "; ".join(parts[:3]) + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")


def _built(path: Path, state: State, options: dict[str, Any], kind: str | None) -> torch.nn.Module:
    try:
        if "expansion.weight" in state:
            return _residual_on_images(state, kind)
        if "features.conv0.weight" in state:
            return _dense_on_images(state)
        if "chain.down" in state and "expand.weight" in state:
            return _residual_on_vectors(state, options)
        if "chain.weight.0" in state and "head.weight" in state:
            return _dense_on_vectors(state, options)
    except (LookupError, ValueError) as error:  # names that are not there, too few dimensions, sizes of 0
        raise ValueError(f"{path} must be {WANTED}, but its names and sizes fit none: {error}") from error
    own = [key for key in state if key.startswith("chain.0.")]
    if own:
        raise ValueError(f"{path}: blocks must be built in to be found from a state_dict, got modules ({own[0]}, ...)")
    said = ", ".join(list(state)[:4])
    raise ValueError(f"{path} must be {WANTED}, got {len(state)} tensors: {said}{', ...' if len(state) > 4 else ''}")


def _residual_on_vectors(state: State, options: dict[str, Any]) -> torch.nn.Module:
    blocks, bottleneck, width = state["chain.down"].shape
    options = {**options, "mid": "chain.mid" in state, "bias": "chain.down_bias" in state}
    if "chain.down_norm.weight" in state:
        options |= {"norm": "batch", "pre_activation": "chain.width_norm.weight" in state}
    if "head_input.weight" in state:
        model: type[AResNEst | ResNEst] = AResNEst
    else:
        model, options["head_norm"] = ResNEst, "head_norm.weight" in state
    inputs, outputs = state["expand.weight"].shape[1], state["head.weight"].shape[0]
    return model(inputs, outputs, width=width, bottleneck=bottleneck, blocks=blocks, **options)


def _dense_on_vectors(state: State, options: dict[str, Any]) -> DenseNEst:
    blocks = sum(key.startswith("chain.weight.") for key in state)
    growth = [state[f"chain.weight.{i}"].shape[0] for i in range(blocks)]
    has_hidden = "chain.hidden_weight.0" in state
    hidden = [state[f"chain.hidden_weight.{i}"].shape[0] for i in range(blocks)] if has_hidden else None
    options = {**options, "bias": "chain.bias.0" in state or "chain.hidden_bias.0" in state}
    if "chain.input_norm.weight" in state or "chain.growth_norm.weight" in state:
        options |= {"norm": "batch", "pre_activation": "chain.input_norm.weight" in state}
    inputs = state["chain.hidden_weight.0" if has_hidden else "chain.weight.0"].shape[1]
    return DenseNEst(inputs, state["head.weight"].shape[0], growth=growth, hidden=hidden, blocks=blocks, **options)


def _one_of(archs: dict[str, Any], fits: Callable[[Any], bool]) -> str:
    found = [name for name, arch in archs.items() if fits(arch)]
    if not found:
        raise ValueError(f"it must be one of {', '.join(archs)}")
    return found[0]


def _residual_on_images(state: State, kind: str | None) -> torch.nn.Module:
    channels, blocks = state["expansion.weight"].shape[0], sum(BLOCK.fullmatch(key) is not None for key in state)
    arch = _one_of(RESIDUAL, lambda arch: arch.channels[0] == channels and arch.blocks == blocks)
    ending = "H_0.weight" in state, "final_bn.weight" in state
    kinds = [name for name, one in KINDS.items() if (one.augmented, one.final_norm) == ending]
    if not kinds or (kind is None and len(kinds) > 1) or (kind is not None and kind not in kinds):
        raise ValueError(f"--kind must be {' or '.join(kinds or KINDS)}, got {kind}")
    return cifar(arch, kind or kinds[0], state["H_0.weight" if ending[0] else "linear.weight"].shape[0])


def _dense_on_images(state: State) -> torch.nn.Module:
    channels, layers = state["features.conv0.weight"].shape[0], sum(LAYER.fullmatch(key) is not None for key in state)
    arch = _one_of(DENSE, lambda arch: arch.channels == channels and sum(arch.layers) == layers)
    classes = state["classifier.weight"].shape[0]
    return densenest(arch, classes, head_norm_act="features.norm5.weight" in state)
