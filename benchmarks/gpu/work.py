"""The process that runs cases on the GPU, a job at a time: rates, or a case compiled, measured or profiled.

Jobs come by stdin and answers go to stdout, as children.py has it. A job is {"do": "list" | "rates" | "compile" |
"measure" | "profile" | "convolutions", "name": the case's, "peers": contestants besides fastnest; of "compile" the one
contestant}. An answer is what `listed` returns, {"rates": ..., "device": ...}, {"compiled": ...}, {"rows": ...},
{"profiles": ...}, {"convolutions": ...}, or {"failures": {"name": ..., "what": ...}}.
"""

import gc
import re
import sys
from collections.abc import Iterator, Sequence

import torch

from fastnest.benchmarks import contest, run
from fastnest.benchmarks.gpu import cases, convolutions, measure
from fastnest.benchmarks.gpu.children import serve
from fastnest.benchmarks.gpu.device import Gpu


def listed(only: str, peers: Sequence[str] | None, device) -> dict:
    """The cases in whose name `only` is found, each with its peers that need not be compiled; those that do, in order.

    And the names of what convolutions.py times, or why that cannot run. peers: None means all. plain torch is always
    one of them, since numbers are compared with its own.
    """
    wanted = cases.PEERS if peers is None else ("eager", *peers)
    found = {case.name: [peer for peer in case.peers if peer in cases.AT_ONCE and peer in wanted]
             for case in cases.in_order() if re.search(only, case.name)}  # fmt: skip
    pairs = [
        {
            "name": case.name,
            "peer": peer,
            "limit": cases.compile_limit(case),
            "network": cases.is_network(case),
            "tuned": peer in contest.TUNED,
        }
        for case, peer in cases.compiled_pairs(wanted)
        if case.name in found
    ]
    why_not = convolutions.why_not(device)
    single = [] if why_not else [one.name for one in convolutions.in_order() if re.search(only, one.name)]
    return {"cases": found, "compiled": pairs, "convolutions": single, "no_convolutions": why_not}


def answer(job: dict, device, build=run.problem) -> dict:
    """What a job finds; whatever goes wrong is an answer, too."""
    if job["do"] == "list":
        return listed(job["only"], job["peers"], device)
    if job["do"] == "rates":
        return {"rates": device.rates(), "device": device.facts()}
    try:
        return _of_case(job, device, build)
    except AssertionError as error:
        what = f"wrong numbers, no speed reported: {error}"
    except Exception as error:
        what = measure.said(error)
    return {"failures": {"name": job["name"], "what": what}}


def _of_case(job: dict, device, build) -> dict:
    if job["do"] == "convolutions":
        return {"convolutions": convolutions.measure(convolutions.named(job["name"]), device)}
    case, peers = cases.named(job["name"]), job.get("peers", ())
    if job["do"] == "compile":
        return {"compiled": measure.compile_first(case, *peers, device, build)}
    if job["do"] == "measure":
        return {"rows": measure.measure(case, peers, device, build=build)}
    return {"profiles": measure.profile(case, device, build)}


def work(job: dict, device) -> Iterator[dict]:
    yield answer(job, device)
    try:
        device.synchronize()
        if job["do"] == "convolutions":
            return  # leaves nothing behind, and takes less time than what follows
        torch._dynamo.reset()  # frees torch.compile's CUDA graphs and their memory
        gc.collect()  # a form refers to its module, which refers to it
        torch.cuda.empty_cache()
    except RuntimeError:  # a fault, after which this process can run nothing more
        sys.exit(3)


def begin(device) -> None:
    """The settings of every process; torch.compile's cache on disk is only for processes with the same."""
    torch.backends.cudnn.benchmark = True  # the peers' convolutions are the fastest that cuDNN has
    device.take_float32(tf32=False)


if __name__ == "__main__":
    device = Gpu()
    begin(device)
    serve(lambda job: work(job, device))
