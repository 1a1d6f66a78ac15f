"""A result that no machine has measured."""

import pytest


@pytest.fixture
def result() -> dict:
    """A JSON as `fastnest bench` writes it: 8 times as fast as eager as shipped, 4 times fair."""

    def condition(factor: float) -> dict:
        rows = [
            {
                "name": f"residual_chain-{mode}-float32-n{n}",
                "subject": "residual_chain",
                "mode": mode,
                "dtype": "float32",
                "sizes": {"n": n, "m": 8},
                "flops": 100_000_000,
                "bytes": 1000,
                "rounds": 15,
                "processes": 3,
                "median_us": {"fastnest": 500.0, "eager": 2000.0 * factor, "compile": 1000.0 * factor},
                "quartiles_us": {"fastnest": [490.0, 520.0], "eager": [1e3, 5e3], "compile": [1e3, 5e3]},
                "ran": {"ops": {"cpp": 1}, "blocks": 0, "own": {}},
                "error": {"fastnest": 1e-7, "eager": 1e-7},
                "memory": {"fastnest": 2**20, "eager": 2**23, "compile": 2**22} if mode == "train" else {},
            }
            for mode in ("forward", "train")
            for n in (1, 64)
        ]
        peak = {"float32": 400.0}
        rates = {"peak_gflops": peak, "matmul_gflops": 100.0, "copy_gbytes_per_second": 10.0}
        return {"rows": rows, "failures": [], "died": [], "stopped": "", "not_run": [], **rates, "threads": 2}

    machine = {
        "cpu": "Some CPU",
        "family": "1",
        "model": "2",
        "cores": 2,
        "caches": {"L2 unified": "1M"},
        "system": "x",
    }
    versions = {
        "fastnest": "0",
        "commit": "abcdef",
        "torch": "2",
        "python": "3",
        "kernels": {},
        "instruction_set": "avx2",
    }
    conditions = {"as_shipped": condition(2.0), "fair": condition(1.0)}
    facts = {"machine": machine, "versions": versions, "date": "2026-01-01T00:00:00+00:00"}
    return {**facts, "conditions": conditions, "not_begun": []}
