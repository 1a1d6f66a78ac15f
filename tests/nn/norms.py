"""What tests of modules with batch norms share."""

import torch


def with_random_norms(chain):
    """Batch norms as after some training, so that folding them wrongly shows."""
    for name, tensor in [*chain.named_parameters(), *chain.named_buffers()]:
        if "norm" in name and tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.5
    return chain
