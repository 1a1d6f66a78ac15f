"""What decides, beside an op's arguments, how it runs, and whether anything may be kept from call to call."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import asked

Situation = tuple[str | None, int, bool]


def keeps() -> bool:
    """Whether an op may use what it kept from an earlier call.

    Not while torch writes down or replaces the operators that run: torch.compile, torch.jit.trace, dispatch modes.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def situation(x: Tensor) -> Situation | None:
    """What is forced, x's device, and whether TF32 decides; None where the choice has to be made again.

    So it is where a thread logs, and where torch.func's transforms or forward-mode derivatives pass through.
    """
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or asked.logs():
        return None
    return asked.forced() if asked.anything() else None, x.get_device(), x.dtype is torch.float32 and allows_tf32()


@torch.compiler.assume_constant_result
def allows_tf32() -> bool:
    """Whether torch may round the float32 factors of a product on a GPU to TF32; a change compiles again."""
    allowed: bool = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return allowed


def stream_of(x: Tensor) -> int | None:
    """The handle of the stream on which kernels for x are launched; None while that is captured, and off the GPU."""
    index = x.get_device()
    if index < 0:
        return None
    if index != torch.cuda.current_device():
        with torch.cuda.device(index):  # a capture is asked about for the current device alone
            return stream_of(x)
    if torch.cuda.is_current_stream_capturing():
        return None
    handle: int = torch._C._cuda_getCurrentRawStream(index)  # a torch.cuda.Stream would take microseconds
    return handle
