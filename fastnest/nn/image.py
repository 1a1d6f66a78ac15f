"""From the modules of an image block to its op: the one place that reads batch norms and convolutions.

Running statistics move here, once per training forward and exactly as torch's batch norm moves them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional import basic_block2d, bottleneck2d, dense_block2d
from ..ops import dense_block2d_packed as packed
from ..reference import dense_block2d as reference
from ..reference.basic_block2d import KIND as basic_kind
from ..reference.bottleneck2d import KIND as bottleneck_kind


class DenseLayer(NamedTuple):
    """One layer's modules; conv1 and norm2 are None where it has no bottleneck."""

    norm1: torch.nn.BatchNorm2d
    conv1: torch.nn.Conv2d | None
    norm2: torch.nn.BatchNorm2d | None
    conv2: torch.nn.Conv2d


def uses_batch_statistics(norms: Sequence[torch.nn.BatchNorm2d]) -> bool:
    """Whether these norms, of which one says it for all, normalise with the batch's own statistics."""
    return len(norms) > 0 and (norms[0].training or norms[0]._buffers["running_mean"] is None)


def parameters(name: str, modules: Sequence[torch.nn.Module]) -> list[Any]:
    """Every module's parameter of that name; a replica of `torch.nn.DataParallel` has it as a plain attribute."""
    # The dict behind the module, which takes a microsecond to look up an attribute.
    owned = [(module, module._parameters) for module in modules]
    return [own[name] if name in own else getattr(module, name) for module, own in owned]


def norm_tensors(
    norms: Sequence[torch.nn.BatchNorm2d], batch: bool, convs: Sequence[Tensor]
) -> tuple[list[Tensor], ...]:
    """(weights, biases, means, variances), the last two empty where the batch's are used.

    Weights 1 and biases 0 stand for those that a norm does not have. The op wants one dtype for all norms, so these are
    like another norm's tensors, or like the weights `convs` where no norm has any.
    """
    weights, biases = parameters("weight", norms), parameters("bias", norms)
    if any(tensor is None for tensor in (*weights, *biases)):
        statistics = [norm.running_mean for norm in norms]
        like = next(tensor for tensor in (*weights, *statistics, *convs) if tensor is not None)
        weights, biases = _filled(weights, 1.0, norms, like), _filled(biases, 0.0, norms, like)
    if batch:
        return weights, biases, [], []
    means: list[Any] = [norm._buffers["running_mean"] for norm in norms]
    variances: list[Any] = [norm._buffers["running_var"] for norm in norms]
    return weights, biases, means, variances


def _filled(
    tensors: Sequence[Tensor | None], value: float, norms: Sequence[torch.nn.BatchNorm2d], like: Tensor
) -> list[Tensor]:
    """The tensors, and one of that value for every norm without."""
    return [
        torch.full((norm.num_features,), value, dtype=like.dtype, device=like.device) if tensor is None else tensor
        for tensor, norm in zip(tensors, norms, strict=True)
    ]


@torch.no_grad()
def update_running_statistics(
    norms: Sequence[torch.nn.BatchNorm2d], means: Sequence[Tensor], variances: Sequence[Tensor], count: int
) -> None:
    """Moves the norms that are training towards the statistics of `count` values; variances are the biased ones."""
    moving = [i for i, norm in enumerate(norms) if norm.training and norm._buffers["running_mean"] is not None]
    if not moving:
        return
    # All have the other buffers too: a norm without a running mean has no other running statistic.
    buffers: list[dict[str, Any]] = [norm._buffers for norm in norms]
    torch._foreach_add_([buffers[i]["num_batches_tracked"] for i in moving], 1)
    if count == 0:
        return
    by_factor: dict[float, list[int]] = {}
    for i in moving:
        momentum = norms[i].momentum
        factor = 1.0 / float(buffers[i]["num_batches_tracked"]) if momentum is None else momentum
        by_factor.setdefault(factor, []).append(i)
    for factor, group in by_factor.items():
        running_mean, running_var = ([buffers[i][name] for i in group] for name in ("running_mean", "running_var"))
        # No lerp: between infinities it is NaN, where torch's batch norm stays infinite.
        torch._foreach_mul_([*running_mean, *running_var], 1 - factor)
        unbiased = factor * count / max(count - 1, 1)
        for running, found, alpha in ((running_mean, means, factor), (running_var, variances, unbiased)):
            torch._foreach_add_(running, [found[i].to(running[0].dtype) for i in group], alpha=alpha)


def run_dense_layers(
    x: Tensor, layers: Sequence[DenseLayer], drop_rates: Sequence[float] = (), process_group: Any = None
) -> Tensor:
    """[x, q_1, ..., q_L] by `functional.dense_block2d`, and the running statistics moved.

    Args:
        x: images [n, c_0, h, w].
        layers: the modules; all have conv1 and norm2, or none has. Batch norms agree in mode, eps and whether they
            track statistics.
        drop_rates: share of each layer's result to drop out, default none.
        process_group: the processes of `torch.distributed` that share batch statistics, default none. The layers then
            run by the definition, because every one of them has to wait for the sums of all processes.
    """
    y = _by_packed_weights(x, layers) if packed.may_serve(x) and not any(drop_rates) else None
    if y is not None:
        return y
    norm1 = [layer.norm1 for layer in layers]
    norms = [*norm1, *(layer.norm2 for layer in layers if layer.norm2 is not None)]
    batch, eps = uses_batch_statistics(norms), norms[0].eps
    conv1 = parameters("weight", [layer.conv1 for layer in layers if layer.conv1 is not None])
    conv2 = parameters("weight", [layer.conv2 for layer in layers])
    dropout = [_mask(x, layer, rate) for layer, rate in zip(layers, drop_rates, strict=True)] if any(drop_rates) else []
    tensors, l = norm_tensors(norms, batch, conv2), len(layers)
    (w1, w2), (b1, b2), (m1, m2), (v1, v2) = [(each[:l], each[l:]) for each in tensors]
    if batch and process_group is not None:
        weights = reference.Weights(conv1, conv2, w1, b1, m1, v1, w2, b2, m2, v2, dropout)
        all_reduce = _sum_over(process_group)
        y, statistics = reference.dense_block2d_forward(x, weights, eps, all_reduce)
        count = int(all_reduce(torch.tensor([x.numel() // x.shape[1]], dtype=torch.float64, device=x.device)).item())
    else:
        y, statistics = dense_block2d(
            x,
            conv2,
            w1,
            b1,
            conv1=conv1,
            norm2_weight=w2,
            norm2_bias=b2,
            norm1_mean=m1,
            norm1_var=v1,
            norm2_mean=m2,
            norm2_var=v2,
            dropout=dropout,
            eps=eps,
            return_statistics=True,
        )
        count = x.numel() // x.shape[1]
    if statistics is not None:
        widths = [norm.num_features for norm in norm1]
        means = [*(statistics.mean[:c] for c in widths), *statistics.hidden_mean]
        variances = [*(statistics.var[:c] for c in widths), *statistics.hidden_var]
        update_running_statistics(norms, means, variances, count)
    return y


def _by_packed_weights(x: Tensor, layers: Sequence[DenseLayer]) -> Tensor | None:
    """In evaluation, by what the op packed and checked in an earlier call; None where there is no such thing."""
    first = layers[0].norm1
    if first.training or layers[0].conv1 is None:
        return None
    bottlenecks: Any = layers  # one has conv1 and norm2, so have all
    tensors: list[Any] = []
    try:
        for norm1, conv1, norm2, conv2 in bottlenecks:
            own1, kept1, own2, kept2 = norm1._parameters, norm1._buffers, norm2._parameters, norm2._buffers
            tensors += (
                conv1._parameters["weight"], conv2._parameters["weight"],
                own1["weight"], own1["bias"], kept1["running_mean"], kept1["running_var"],
                own2["weight"], own2["bias"], kept2["running_mean"], kept2["running_var"],
            )  # fmt: skip
    except KeyError:  # in a replica of `torch.nn.DataParallel` parameters are plain attributes
        return None
    return packed.again(x, tensors, first.eps)


def _mask(x: Tensor, layer: DenseLayer, rate: float) -> Tensor:
    """What dropout multiplies a layer's result by, in channels-last memory as the result is."""
    shape = (x.shape[0], layer.conv2.out_channels, *x.shape[2:])
    ones = torch.ones(shape, dtype=x.dtype, device=x.device).contiguous(memory_format=torch.channels_last)
    return F.dropout(ones, rate, training=True)


def _sum_over(process_group: Any) -> Callable[[Tensor], Tensor]:
    from torch.distributed.nn.functional import all_reduce

    def summed(tensor: Tensor) -> Tensor:
        total: Tensor = all_reduce(tensor, group=process_group)
        return total

    return summed


RESIDUAL_BLOCKS: dict[int, tuple[Callable[..., Any], int]] = {
    2: (basic_block2d, basic_kind.strided),
    3: (bottleneck2d, bottleneck_kind.strided),
}


def run_residual_block(
    x: Tensor,
    norms: Sequence[torch.nn.BatchNorm2d],
    convs: Sequence[torch.nn.Conv2d],
    projection: torch.nn.Conv2d | None,
    return_features: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y, or (y, features), by `functional.basic_block2d` or `bottleneck2d`, and the running statistics moved.

    Args:
        x: images [n, c, h, w].
        norms: the batch norms, as many as convolutions, or none; they agree in mode, eps and whether they track
            statistics.
        convs: two convolutions of a basic block, or three of a bottleneck.
        projection: the convolution of the shortcut, or None.
        return_features: whether to return the features too.
    """
    if len(convs) not in RESIDUAL_BLOCKS:
        raise ValueError(f"run_residual_block: convs must be 2 or 3 convolutions, got {len(convs)}")
    op, strided = RESIDUAL_BLOCKS[len(convs)]
    batch, eps = uses_batch_statistics(norms), norms[0].eps if norms else 1e-5
    kernels = parameters("weight", convs)
    weights, biases, means, variances = norm_tensors(norms, batch, kernels)
    stride = convs[strided].stride[0]
    shortcut = {} if projection is None else {"projection": projection.weight, "projection_bias": projection.bias}
    y: Tensor
    y, *features, statistics = op(
        x,
        kernels,
        weights,
        biases,
        conv_bias=_conv_biases(convs),
        norm_mean=means,
        norm_var=variances,
        **shortcut,
        stride=stride,
        eps=eps,
        return_features=return_features,
        return_statistics=True,
    )
    if batch:
        # Norms up to the convolution with the stride read larger images than those behind it.
        groups = [(slice(None), x)] if stride == 1 else [(slice(strided + 1), x), (slice(strided + 1, None), y)]
        for group, image in groups:
            update_running_statistics(norms[group], statistics[0][group], statistics[1][group], _pixels(image))
    return (y, features[0]) if features else y


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _conv_biases(convs: Sequence[torch.nn.Conv2d]) -> list[Tensor]:
    """One bias a convolution, or none if none has one."""
    biases = parameters("bias", convs)
    if all(bias is None for bias in biases):
        return []
    return [
        torch.zeros_like(conv.weight[:, 0, 0, 0]) if bias is None else bias
        for conv, bias in zip(convs, biases, strict=True)
    ]
