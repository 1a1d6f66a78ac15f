"""DenseBlock2d with batch statistics shared by two processes: the same numbers as one process with the whole batch."""

import pytest
import torch
from children import run_both

from fastnest import nn

WORKER = """
import sys
import torch
import torch.distributed as dist
from fastnest import nn

torch.set_num_threads(1)
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=rank, world_size=2)
given = torch.load(f"{sys.argv[1]}/given.pt", weights_only=True)
block = nn.DenseBlock2d(**given["sizes"], dtype=torch.float64, process_group=dist.group.WORLD)
block.load_state_dict(given["state"])
share = slice(0, 3) if rank == 0 else slice(3, None)  # of 3 and of 2 images
x = given["x"][share].requires_grad_()
y = block(x)
y.backward(given["dy"][share])
gradients = [p.grad for p in block.parameters()]
for gradient in gradients:
    dist.all_reduce(gradient)
found = {"y": y.detach(), "dx": x.grad, "gradients": gradients, "state": block.state_dict()}
torch.save(found, f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("bottleneck", [True, False])
def test_two_processes_are_one(bottleneck, tmp_path):
    torch.manual_seed(0)
    sizes = {"in_channels": 4, "growth": 3, "layers": 3, "bottleneck": bottleneck}
    block = nn.DenseBlock2d(**sizes, dtype=torch.float64)
    x, dy = (
        torch.randn(5, 4, 6, 5, dtype=torch.float64, requires_grad=True),
        torch.randn(5, 13, 6, 5, dtype=torch.float64),
    )
    given = {"sizes": sizes, "state": block.state_dict(), "x": x.detach(), "dy": dy}
    torch.save(given, tmp_path / "given.pt")
    run_both(WORKER, tmp_path)

    y = block(x)
    y.backward(dy)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(torch.cat([first["y"], second["y"]]), y.detach(), **close)
    torch.testing.assert_close(torch.cat([first["dx"], second["dx"]]), x.grad, **close)
    torch.testing.assert_close(first["gradients"], [p.grad for p in block.parameters()], **close)
    for share in (first, second):
        torch.testing.assert_close(share["state"], block.state_dict(), **close)
