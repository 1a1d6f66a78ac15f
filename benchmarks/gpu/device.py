"""A GPU as checks and benchmarks use it: its facts, what it reaches, times by events and graphs, memory, streams.

Tests stand in for it with a class of the same methods.
"""

import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import median

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

CALLS = 3  # that a profile is of
KERNELS, NAME = 20, 160  # of a profile are told, and characters of a kernel's name


class Gpu:
    """The current CUDA device."""

    type = "cuda"

    def __init__(self):
        self._written: Tensor | None = None

    def facts(self) -> dict:
        """Card, driver and limits."""
        properties = torch.cuda.get_device_properties(0)
        return {
            "card": torch.cuda.get_device_name(0),
            "capability": list(torch.cuda.get_device_capability(0)),
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }

    def take_float32(self, *, tf32: bool) -> None:
        """How torch takes products and convolutions of float32, which is also how the kernels take theirs.

        By the older of torch's two settings, which sets the newer one too; the other way round, torch refuses to read.
        """
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def streams(self, count: int) -> list:
        """Streams that wait for nothing on the default one; `with torch.cuda.stream(s):` runs on them."""
        torch.cuda.synchronize()
        return [torch.cuda.Stream() for _ in range(count)]

    def linger(self) -> None:
        """Keeps the current stream busy for about 10 ms, so that work on another stream overtakes it."""
        torch.cuda._sleep(20_000_000)

    def capture(self, step: Callable[[], object]) -> tuple[Callable[[], None], object]:
        """A CUDA graph of step: what replays it, and its results, which every replay writes again."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
        return graph.replay, results

    def _empty_cache_of_device(self) -> None:
        """Writes twice the L2 cache, so that nothing of the arguments is left in it."""
        if self._written is None:
            size = max(2 * torch.cuda.get_device_properties(0).L2_cache_size, 2**28)
            self._written = torch.empty(size, dtype=torch.int8, device="cuda")
        self._written.zero_()

    def latency(self, step: Callable[[], object]) -> float:
        """Seconds of one call by events, the GPU idle before it and its L2 cold: launches from Python count."""
        self._empty_cache_of_device()
        torch.cuda.synchronize()
        return self._between_events(step)

    def device_time(self, replay: Callable[[], object]) -> float:
        """Seconds of one replay by events, L2 cold; queued behind the write, so that launching it does not count."""
        self._empty_cache_of_device()
        return self._between_events(replay)

    def warm_time(self, replay: Callable[[], object]) -> float:
        """Seconds of one replay by events, right behind two others, which leave in the L2 cache what they used."""
        replay()
        replay()
        return self._between_events(replay)

    def _between_events(self, step: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) * 1e-3

    def peak_bytes(self, step: Callable[[], object]) -> int:
        """What torch's allocator holds at the peak of a step beyond what it held before; what it returns counts."""
        step()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def profile(self, step: Callable[[], object]) -> dict:
        """Microseconds of a call: until the host has launched it, until the GPU has ended it, and of every kernel."""
        for _ in range(CALLS):
            step()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(CALLS):
            step()
        launched = time.perf_counter()
        torch.cuda.synchronize()
        ended = time.perf_counter()
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profile:
            for _ in range(CALLS):
                step()
            torch.cuda.synchronize()
        of_call = {"host_us": (launched - begun) / CALLS * 1e6, "wall_us": (ended - begun) / CALLS * 1e6}
        return of_call | kernels_of(profile.events(), CALLS)

    def rates(self) -> dict:
        """What this card reaches: bytes a second of a copy (read and written), flops a second of torch's products."""
        size = min(2**30, self.free_bytes() // 8)
        source = torch.randint(-128, 127, (size,), dtype=torch.int8, device="cuda")
        target = torch.empty_like(source)
        copy = 2 * size / self._median(lambda: target.copy_(source))
        products = {}
        for name, (dtype, side) in PRODUCTS.items():
            self.take_float32(tf32=name == "tf32")
            a, b = (torch.randn(side, side, dtype=dtype, device="cuda") for _ in range(2))
            products[name] = 2 * side**3 / self._median(lambda a=a, b=b: a @ b)
        self.take_float32(tf32=False)
        return {"copy_bytes_per_second": copy, "flops_per_second": products}

    def _median(self, step: Callable[[], object]) -> float:
        for _ in range(3):
            step()
        return median(self.device_time(step) for _ in range(15))


# name: dtype, side of the square matrices
PRODUCTS = {
    "bfloat16": (torch.bfloat16, 8192),
    "float16": (torch.float16, 8192),
    "tf32": (torch.float32, 8192),
    "float32": (torch.float32, 4096),
}


def kernels_of(events: Iterable, calls: int) -> dict:
    """Of the events of a profile of so many calls, per call: launches, their time, and the kernels by name.

    Those that take longest first, at most KERNELS of them; what the others take is the difference.
    """
    count, total = defaultdict(int), defaultdict(float)
    for event in events:
        if event.device_type == DeviceType.CUDA:
            count[event.name] += 1
            total[event.name] += event.time_range.elapsed_us()
    by_time = sorted(total, key=total.get, reverse=True)
    kernels = [{"name": n[:NAME], "count": count[n] / calls, "us": total[n] / calls} for n in by_time[:KERNELS]]
    return {"launches": sum(count.values()) / calls, "kernels_us": sum(total.values()) / calls, "kernels": kernels}


def _driver() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
