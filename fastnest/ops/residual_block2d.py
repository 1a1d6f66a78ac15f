"""What bottleneck2d and basic_block2d share: their checks, and from arguments to a kernel or the definition."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from .. import _backend
from ..reference.residual_block2d import Statistics, Weights, residual_block2d_forward
from . import residual_block2d_autograd as autograd
from .arguments import Wanted, as_list, autocast_dtype, cast, check_flags, need_grad, raise_misfit
from .image import (
    channels_last,
    check_batch_norm,
    check_pixels,
    check_stride,
    convolution_weights,
    in_format_of,
    misfit_beside_norms,
    triton_limit,
    widened,
)

NORMS = ("norm_weight", "norm_bias", "norm_mean", "norm_var")
CONVOLUTIONS = ("conv", "conv_bias", "projection", "projection_bias")


def weights_of(
    op: str,
    conv: Sequence[Tensor],
    conv_bias: Sequence[Tensor] | None,
    norms: Sequence[Sequence[Tensor] | None],
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> Weights:
    """The arguments as lists, one tensor per convolution or none; norms as NORMS names them."""
    l, lists = len(autograd.KINDS[op].kernels), {}
    for name, tensors in zip(("conv", "conv_bias", *NORMS), (conv, conv_bias, *norms), strict=True):
        lists[name] = as_list(op, name, tensors, f"of {l} tensors")
        if len(lists[name]) != l and (lists[name] or name == "conv"):
            raise ValueError(f"{op}: {name} must have {l} tensors, got {len(lists[name])}")
    for name, one in (("projection", projection), ("projection_bias", projection_bias)):
        lists[name] = [] if one is None else [one]
    return Weights(**lists)


def check(op: str, x: Tensor, weights: Weights, stride: int, eps: float) -> None:
    """All arguments fit together; ValueError or TypeError names the first that does not."""
    check_stride(op, stride)
    # `not`, as torch 2.11 compiles no bool() of a list.
    for name, needs, absent in (
        ("norm_bias", "norm_weight", not weights.norm_weight),
        ("norm_var", "norm_mean", not weights.norm_mean),
        ("norm_weight", "norm_mean", not (weights.norm_weight or weights.norm_mean)),
    ):
        if (not getattr(weights, name)) != absent:
            raise ValueError(f"{op}: {name} and {needs} go together, got {'' if absent else 'no '}{name}")
    if weights.projection_bias and not weights.projection:
        raise ValueError(f"{op}: projection_bias needs projection, got projection None")
    for i, weight in enumerate(weights.conv):
        if not isinstance(weight, Tensor):
            raise TypeError(f"{op}: conv[{i}] must be a torch.Tensor, got {type(weight).__name__}")
        if weight.dim() != 4 or weight.shape[0] < 1:
            raise ValueError(f"{op}: conv[{i}] must be a 4-d convolution weight, got {list(weight.shape)}")
    c, out = x.shape[1], weights.conv[-1].shape[0]
    wrong = misfit_beside_norms(x, _convolutions(op, x, weights), _norms(x, weights))
    if wrong is not None:
        raise_misfit(op, x, wrong, f"x {list(x.shape)} and conv {[list(weight.shape) for weight in weights.conv]}")
    if not weights.projection and (stride != 1 or out != c):
        raise ValueError(f"{op}: projection must be given where the shape changes, got {c} to {out}, stride {stride}")
    batch = weights.uses_batch_statistics()
    check_batch_norm(op, x, eps, batch)
    if batch:
        smallest = [x.shape[0], 1, *((size - 1) // stride + 1 for size in x.shape[2:])]
        if smallest[0] * smallest[2] * smallest[3] == 1:
            raise ValueError(f"{op}: batch statistics need more than one value per channel behind stride {stride} too")


def _convolutions(op: str, x: Tensor, weights: Weights) -> Iterator[Wanted[str]]:
    """What `misfit` takes: everything but the batch norms, which may be of another dtype."""
    c = x.shape[1]
    for i, (weight, kernel) in enumerate(zip(weights.conv, autograd.KINDS[op].kernels, strict=True)):
        o = weight.shape[0]
        yield f"conv[{i}]", weight, (o, c, kernel, kernel)
        if weights.conv_bias:
            yield f"conv_bias[{i}]", weights.conv_bias[i], (o,)
        c = o
    if weights.projection:
        yield "projection", weights.projection[0], (c, x.shape[1], 1, 1)
    if weights.projection_bias:
        yield "projection_bias", weights.projection_bias[0], (c,)


def _norms(x: Tensor, weights: Weights) -> Iterator[Wanted[str]]:
    reads = [x.shape[1], *(weight.shape[0] for weight in weights.conv[:-1])]
    for name in NORMS:
        for i, tensor in enumerate(getattr(weights, name)):
            yield f"{name}[{i}]", tensor, (reads[i],)


def residual_block2d(
    op: str,
    x: Tensor,
    weights: Weights,
    stride: int,
    eps: float,
    return_features: bool,
    return_statistics: bool,
) -> Tensor | tuple[Tensor | Statistics | None, ...]:
    """The op of that name on arguments from `weights_of`: y, and what else was asked for in a tuple behind it."""
    check_flags(op, return_features=return_features, return_statistics=return_statistics)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = cast(x, dtype)
        weights = weights._replace(**{name: [cast(t, dtype) for t in getattr(weights, name)] for name in CONVOLUTIONS})
    check_pixels(op, x)
    check(op, x, weights, stride, eps)
    backend = _backend.choose(op, x, triton_limit(x))
    y: Tensor
    features: Tensor | None
    if backend == "reference":
        y, features, statistics = residual_block2d_forward(autograd.KINDS[op], x, weights, stride, eps)
    else:
        y, features, statistics = _by_kernel(op, backend, x, weights, stride, eps, return_features)
    if not (return_features or return_statistics):
        return y
    return y, *((features,) if return_features else ()), *((statistics,) if return_statistics else ())


def _by_kernel(
    op: str, backend: str, x: Tensor, weights: Weights, stride: int, eps: float, return_features: bool
) -> tuple[Tensor, Tensor | None, Statistics | None]:
    image = channels_last("x", x)
    weights = Weights(
        *(
            convolution_weights(backend, tensors) if name in ("conv", "projection") else widened(tensors)
            for name, tensors in zip(Weights._fields, weights, strict=True)
        )
    )
    flat = [t for tensors in weights for t in tensors]
    if need_grad((image, *flat)):
        lengths = tuple(map(len, weights))
        options = op, backend, stride, eps, return_features, lengths
        y, *others = autograd.ResidualBlock2dFunction.apply(*options, image, *flat)
        # No pop: what torch up to 2.12 compiles has a tuple here.
        features, found = (others[0], others[1:]) if return_features else (None, others)
        mean, var = found[: len(found) // 2], found[len(found) // 2 :]
    else:
        y, features, _, mean, var = autograd.kernel_forward(
            op, backend, image, weights, stride, eps, return_features, False
        )
    if features is not None and return_features:
        features = in_format_of(x, features)
    return in_format_of(x, y), features, (mean, var) if weights.uses_batch_statistics() else None
