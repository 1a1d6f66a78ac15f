"""dense_block2d: L densely connected layers on images as one op, in one buffer."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from .. import _backend
from ..reference import dense_block2d as reference
from ..reference.dense_block2d import Statistics, Weights
from . import dense_block2d_autograd as autograd
from . import dense_block2d_packed as packed
from .arguments import Wanted, as_list, autocast_dtype, cast, check_flags, misfit, need_grad, raise_misfit
from .dense_block2d_limit import cuda_limit, sizes_of
from .image import (
    channels_last,
    check_batch_norm,
    check_image,
    check_pixels,
    convolution_weights,
    in_format_of,
    misfit_beside_norms,
    triton_limit,
    widened,
)

OP = "dense_block2d"
NORMS = Weights._fields[2:10]
Expected = Wanted[tuple[str, int]]


def check(x: Tensor, weights: Weights, eps: float, casting: bool = False) -> None:
    """All arguments fit together; ValueError or TypeError names the first that does not.

    casting: under autocast, which will cast the convolutions' weights.
    """
    l = len(weights.conv2)
    if l == 0:
        raise ValueError(f"{OP}: conv2 must have at least one layer, got an empty list")
    for name, tensors in zip(Weights._fields, weights, strict=True):
        if len(tensors) not in (0, l):
            raise ValueError(f"{OP}: {name} must have {l} tensors to match conv2, got {len(tensors)}")
    # `not`, as torch 2.11 compiles no bool() of a list.
    for name, needs, absent in (
        ("norm1_weight", "conv2", False),
        ("norm1_bias", "conv2", False),
        ("norm2_weight", "conv1", not weights.conv1),
        ("norm2_bias", "conv1", not weights.conv1),
        ("norm1_var", "norm1_mean", not weights.norm1_mean),
        ("norm2_mean", "norm1_mean and conv1", not (weights.norm1_mean and weights.conv1)),
        ("norm2_var", "norm1_mean and conv1", not (weights.norm1_mean and weights.conv1)),
    ):
        if (not getattr(weights, name)) != absent:
            raise ValueError(f"{OP}: {name} and {needs} go together, got {'' if absent else 'no '}{name}")
    check_batch_norm(OP, x, eps, batch=not weights.norm1_mean)
    for name in ("conv1", "conv2"):
        for i, weight in enumerate(getattr(weights, name)):
            if not isinstance(weight, Tensor):
                raise TypeError(f"{OP}: {name}[{i}] must be a torch.Tensor, got {type(weight).__name__}")
            if weight.dim() != 4 or weight.shape[0] < 1:
                raise ValueError(f"{OP}: {name}[{i}] must be a 4-d convolution weight, got {list(weight.shape)}")
    expected = list(_expected(x, weights))
    convolutions = chain.from_iterable(layer for layer, _ in expected)
    norms = chain.from_iterable(layer for _, layer in expected)
    like, wrong = _misfit_to_be_cast(x, convolutions) if casting else (x, None)
    wrong = wrong or misfit_beside_norms(x, () if casting else convolutions, norms)
    if wrong is not None:
        (name, i), tensor, shape = wrong
        reads = x.shape[1] + sum(weight.shape[0] for weight in weights.conv2[:i])
        match = f"layer {i}, which reads {reads} channels"
        if weights.conv1:
            match += f" and hides {weights.conv1[i].shape[0]}"
        raise_misfit(OP, like, (f"{name}[{i}]", tensor, shape), match)


def _misfit_to_be_cast(x: Tensor, convolutions: Iterator[Expected]) -> tuple[Tensor, Expected | None]:
    """What the tensor that does not fit should be like, and `misfit`, of weights of any dtype that autocast casts."""
    by_dtype: dict[torch.dtype, list[Expected]] = {}
    for wanted in convolutions:
        tensor = wanted[1]
        casts = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype is not torch.float64
        by_dtype.setdefault(tensor.dtype if casts and tensor is not None else x.dtype, []).append(wanted)
    for dtype, some in by_dtype.items():
        like = x if dtype is x.dtype else x.new_empty(0, dtype=dtype)
        wrong = misfit(like, some)
        if wrong is not None:
            return like, wrong
    return x, None


def _expected(x: Tensor, weights: Weights) -> Iterator[tuple[list[Expected], list[Expected]]]:
    """Per layer what `misfit` takes: convolutions and dropout, and batch norms, which may be of another dtype."""
    n, width, *size = x.shape
    for i, conv2 in enumerate(weights.conv2):
        d = conv2.shape[0]
        hidden = weights.conv1[i].shape[0] if weights.conv1 else 0
        convolutions: list[Expected] = [(("conv2", i), conv2, (d, hidden or width, 3, 3))]
        if hidden:
            convolutions.append((("conv1", i), weights.conv1[i], (hidden, width, 1, 1)))
        if weights.dropout:
            convolutions.append((("dropout", i), weights.dropout[i], (n, d, *size)))
        norms: list[Expected] = []
        for name in NORMS:
            tensors = getattr(weights, name)
            if tensors:
                norms.append(((name, i), tensors[i], (width if name.startswith("norm1") else hidden,)))
        yield convolutions, norms
        width = width + d  # not in place: under torch.jit.trace a size is a tensor, which the above hold too


def dense_block2d(
    x: Tensor,
    conv2: Sequence[Tensor],
    norm1_weight: Sequence[Tensor],
    norm1_bias: Sequence[Tensor],
    *,
    conv1: Sequence[Tensor] | None = None,
    norm2_weight: Sequence[Tensor] | None = None,
    norm2_bias: Sequence[Tensor] | None = None,
    norm1_mean: Sequence[Tensor] | None = None,
    norm1_var: Sequence[Tensor] | None = None,
    norm2_mean: Sequence[Tensor] | None = None,
    norm2_var: Sequence[Tensor] | None = None,
    dropout: Sequence[Tensor] | None = None,
    eps: float = 1e-5,
    return_statistics: bool = False,
) -> Tensor | tuple[Tensor, Statistics | None]:
    """L densely connected layers, x_i = [x_{i-1}, q_i] with q_i = conv2_i relu(norm2_i(conv1_i relu(norm1_i x_{i-1}))).

    The DenseNEst of arXiv 2111.05496, equation 9, on images (DenseNet-BC); without conv1, q_i = conv2_i relu(norm1_i
    x_{i-1}) (DenseNet). Everything lies in one buffer; a channel's batch statistics are computed once, where it is
    written, and serve every later layer, whose batch norms differ in weight and bias only. The backward computes only
    batch norm and relu again. It reads the result, which must not be changed in place before if x is in
    channels-last memory (else the result is a copy).

    Args:
        x: the images [n, c_0, h, w], float32, bfloat16 or float16 for the kernels (float64 runs the reference), in
            channels-last memory; any other layout is copied to it, and the result back.
        conv2: one weight [d_i, b_i, 3, 3] per layer, or [d_i, c_{i-1}, 3, 3] without conv1, with padding 1;
            c_i = c_{i-1} + d_i.
        norm1_weight, norm1_bias: one vector [c_{i-1}] per layer. Batch norms are of x's dtype, or float32 beside a
            bfloat16 or float16 x.
        conv1: one weight [b_i, c_{i-1}, 1, 1] per layer, default none.
        norm2_weight, norm2_bias: one vector [b_i] per layer, with conv1 only.
        norm1_mean, norm1_var, norm2_mean, norm2_var: statistics to normalise with (evaluation), per layer, all or none;
            default none: mean and biased variance of this batch. They get no gradient.
        dropout: masks [n, d_i, h, w] that multiply the q_i, per layer, default none. They get no gradient.
        eps: added to every variance.
        return_statistics: whether to return the batch's statistics too.

    Returns:
        x_L [n, c_L, h, w], whose channels are x, q_1, ..., q_L, in x's memory format; with return_statistics=True
        (x_L, Statistics(mean [c_L], var [c_L], hidden_mean [[b_i], ...], hidden_var)), float32, without gradients; or
        (x_L, None) where statistics were given.

    Raises:
        ValueError, TypeError: naming the argument that does not fit, what was expected and what came.
        RuntimeError: where a forced backend (`fastnest.backend`) cannot take the call; in the backward, where the
            result was changed in place.
    """
    check_flags(OP, return_statistics=return_statistics)
    norms = (norm1_weight, norm1_bias, norm1_mean, norm1_var, norm2_weight, norm2_bias, norm2_mean, norm2_var)
    y = packed.again_by_lists(x, (conv1, conv2, *norms), dropout, eps)
    if y is not None:
        return (y, None) if return_statistics else y
    check_image(OP, x)
    given = zip(Weights._fields, (conv1, conv2, *norms, dropout), strict=True)
    weights = Weights(*(as_list(OP, *one, "with one tensor per layer") for one in given))
    came, dtype = x, autocast_dtype(x)
    if dtype is not None:
        x = cast(x, dtype)
        weights = weights._replace(dropout=[cast(mask, dtype) for mask in weights.dropout])
    check_pixels(OP, x)
    check(x, weights, eps, casting=x.dtype is dtype)
    backend = _backend.choose(OP, x, triton_limit(x), partial(cuda_limit, x, weights), **sizes_of(x, weights))
    packs = packed.can_pack(backend, x, weights)
    if dtype is not None and not packs:
        weights = weights._replace(
            conv1=[cast(weight, dtype) for weight in weights.conv1],
            conv2=[cast(weight, dtype) for weight in weights.conv2],
        )
    if backend == "reference":
        y, statistics = reference.dense_block2d_forward(x, weights, eps)
        return (y, statistics) if return_statistics else y
    image = channels_last("x", x)
    weights = weights._replace(dropout=[channels_last("dropout", t) for t in weights.dropout])
    if packs:
        y = in_format_of(x, packed.forward(backend, came, image, weights, eps))
        return (y, None) if return_statistics else y
    weights = weights._replace(
        conv1=convolution_weights(backend, weights.conv1),
        conv2=convolution_weights(backend, weights.conv2),
        **{name: widened(getattr(weights, name)) for name in NORMS},
    )
    flat = [t for tensors in weights for t in tensors]
    if need_grad((image, *flat)):
        y, *statistics = autograd.DenseBlock2dFunction.apply(backend, eps, tuple(map(len, weights)), image, *flat)
        mean, var, *hidden = statistics
    else:
        y, _, mean, var, z_mean, z_var = autograd.kernel_forward(backend, image, weights, eps, False)
        hidden = [*z_mean, *z_var]
    y = in_format_of(x, y)
    if not return_statistics:
        return y
    return y, None if weights.norm1_mean else autograd.statistics_of(mean, var, hidden)
