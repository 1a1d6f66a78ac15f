"""In the place of a GPU: the CPU, behind the methods of benchmarks/gpu/device.py, with a clock that a test sets."""

from collections.abc import Callable
from itertools import count

import torch


class StandIn:
    """Times are 1, 2, 3, ... microseconds, by call; a capture runs the step again."""

    type = "cpu"

    def __init__(self, free: int = 2**40):
        self.free, self.ticks = free, count(1)

    def facts(self) -> dict:
        return {"card": "Stand In (R) 5"}

    def take_float32(self, *, tf32: bool) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def linger(self) -> None:
        pass

    def free_bytes(self) -> int:
        return self.free

    def streams(self, number: int) -> list:
        return [None] * number  # torch.cuda.stream(None) does nothing

    def capture(self, step: Callable[[], object]):
        results = step()

        def replay():
            again = step()
            pairs = [(results[name], again[name]) for name in again] if isinstance(again, dict) else []
            with torch.no_grad():
                for held, value in pairs:
                    held.copy_(value)

        return replay, results

    def latency(self, step: Callable[[], object]) -> float:
        step()
        return next(self.ticks) * 1e-6

    device_time = warm_time = latency

    def peak_bytes(self, step: Callable[[], object]) -> int:
        step()
        return 2**20

    def profile(self, step: Callable[[], object]) -> dict:
        step()
        kernels = [{"name": "a_kernel", "count": 1.0, "us": 2.0}]
        return {"host_us": 1.0, "wall_us": 3.0, "launches": 1.0, "kernels_us": 2.0, "kernels": kernels}

    def rates(self) -> dict:
        return {"copy_bytes_per_second": 1e12, "flops_per_second": {"bfloat16": 1e14, "float32": 1e13}}
