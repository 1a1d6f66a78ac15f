"""N steps by the kernels, or of an accelerated model, end at the loss and weights of plain torch, to rounding."""

from functools import partial

import pytest
import real_models
import torch
from promises.every_op import every_op, images
from torch.nn import functional as F

import fastnest
from fastnest.testing import check_kernels, expect, kernel, kernels, nudged

STEPS = 5


def torchvision_densenet():
    module = real_models.load("torchvision.models.densenet")
    return module.DenseNet(growth_rate=8, block_config=(2, 3), bn_size=2, num_init_features=16, num_classes=4)


def timm_resnetv2():
    module, layers = real_models.load("timm.models.resnetv2"), real_models.load("timm.layers")
    kind = {"conv_layer": layers.create_conv2d, "norm_layer": layers.BatchNormAct2d}
    return module.ResNetV2(layers=(1, 2), channels=(16, 32), stem_chs=8, num_classes=4, **kind)


MAKE = {"every op": every_op, "torchvision": torchvision_densenet, "timm": timm_resnetv2}


def trained(make, size, backend, compute, nudge):
    """The losses of STEPS steps, and every weight and running statistic after them."""
    torch.manual_seed(0)
    model, rounding = make().train(), torch.Generator().manual_seed(nudge)
    with torch.no_grad():
        for parameter in model.parameters() if nudge else ():
            parameter.copy_(nudged(parameter, rounding))
    model = model.to(compute or torch.float32)
    if backend != "reference":
        model = fastnest.accelerate(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(1)
    y, losses = torch.arange(8).remainder(4), []
    with kernel(backend):
        for _ in range(STEPS):
            x = torch.randn(8, 3, *size, generator=generator).to(compute or torch.float32)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    floating = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    return {"losses": torch.stack(losses)} | floating


@pytest.mark.parametrize("name", MAKE)
def test_ends_where_plain_torch_ends(name):
    size = images(1).shape[2:] if name == "every op" else (32, 32)
    results = partial(trained, MAKE[name], size)
    expected = expect(results, torch.float32)
    losses = expected.exact["losses"]
    assert losses[-1] != losses[0]
    check_kernels(results, kernels()[:1], torch.float32, f"{STEPS} steps of {name}", expected)
