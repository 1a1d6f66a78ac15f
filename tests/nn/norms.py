"""What tests of modules with batch norms share."""

import pytest
import torch

# What a batch norm without weight and bias may have: running statistics, or no tensor at all.
without_parameters = pytest.mark.parametrize("tracks", [True, False], ids=["statistics", "no tensors"])


def with_random_norms(chain):
    """Batch norms as after some training, so that folding them wrongly shows."""
    for name, tensor in [*chain.named_parameters(), *chain.named_buffers()]:
        if "norm" in name and tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.5
    return chain


def without_affine(block, tracks):
    """block, its batch norms without weight and bias, of its dtype and device."""
    like = next(block.parameters())
    for module in list(block.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, torch.nn.BatchNorm2d):
                bare = torch.nn.BatchNorm2d(norm.num_features, affine=False, track_running_stats=tracks)
                setattr(module, name, bare.to(like.device, like.dtype).train(norm.training))
    return block
