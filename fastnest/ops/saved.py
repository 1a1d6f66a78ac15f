"""What every backward asks first: for what the forward saved, and whether the kernel can run on it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _are_functorch_transforms_active
from torch._C._functorch import is_legacy_batchedtensor
from torch.compiler import is_compiling

CHANGED = "modified by an inplace operation"  # torch's words for it


def saved_tensors(
    ctx: Any, op: str, dy: Tensor | None, dfeatures: Tensor | None = None, results: Sequence[int] = ()
) -> tuple[tuple[Any, ...], bool, bool]:
    """(saved, by_definition, changed), in one call because two cost a microsecond more.

    By definition, because torch can differentiate and batch its operations, runs a backward whose graph is asked for,
    or that of a batch of gradients at once (is_grads_batched=True, vmap). Changed: one of the results that were saved
    was changed in place, and has to be computed again first.

    Args:
        dy, dfeatures: what the backward got.
        results: where in ctx.saved_tensors the results are that the forward can compute again from the rest.

    Raises:
        RuntimeError: where any other saved tensor was changed in place, naming the op and the remedy.
    """
    if is_compiling():  # sees no values, and knows of no versions
        return ctx.saved_tensors, False, False
    try:
        saved = ctx.saved_tensors
    except RuntimeError as error:
        if CHANGED not in str(error):
            raise
        if not results or hasattr(ctx, "compares_arguments_only"):
            raise RuntimeError(
                f"{op}: its result or an argument, which its backward reads, was changed in place: "
                "change a clone of it, or use an operation that is not in place"
            ) from error
    else:
        by_definition = (
            is_grad_enabled()
            or _are_functorch_transforms_active()
            # batched by torch.autograd's own vmap, which is no transform of torch.func
            or (dy is not None and is_legacy_batchedtensor(dy))
            or (dfeatures is not None and is_legacy_batchedtensor(dfeatures))
        )
        for i in results:
            # Saved at version 0. torch has compared versions, but not of what hooks pack (checkpointing).
            if saved[i]._version > 0:
                return saved, by_definition, True
        return saved, by_definition, False
    raw, ctx.compares_arguments_only = ctx._raw_saved_tensors, True
    for i in results:
        raw[i].register_hooks(_itself, _itself)
    return saved_tensors(ctx, op, dy, dfeatures, results)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def to_save(result: Tensor) -> Tensor:
    """A result that a backward cannot compute again: itself, or a copy where hooks pack what is saved.

    torch does not see that such a tensor was changed in place, and the gradients would be wrong without an error.
    """
    if is_compiling() or torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        return result
    return result.clone()
