"""What several processes have measured under one condition, the rounds of all together."""

from collections.abc import Iterable, Sequence
from statistics import median, quantiles

from . import report

RATES = ("matmul_gflops", "copy_gbytes_per_second")


class Pool:
    """Of one condition: `add` what each process found, `result` is what the JSON has."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self.rows, self.rounds = {}, {}
        self.failures, self.died = {}, []
        self.stopped, self.rates = "", {}

    def add(self, found: dict) -> None:
        """What a process found (child.measure)."""
        for row in found["rows"]:
            self._add(dict(row))
        self.failures |= found["failures"]
        for name in found["failures"]:
            self.rows.pop(name, None)
        self.stopped = self.stopped or found["stopped"]
        self.rates["threads"] = found["threads"]
        self.rates["peak_gflops"] = _largest(self.rates.get("peak_gflops", {}), found["peak_gflops"])
        self.rates |= _largest(self.rates, {name: found[name] for name in RATES}, RATES)

    def _add(self, row: dict) -> None:
        name, seconds = row["name"], row.pop("seconds")
        known = self.rows.setdefault(name, {**row, "processes": 0})
        known["processes"] += 1
        rounds = self.rounds.setdefault(name, {})
        for contestant, values in seconds.items():
            rounds.setdefault(contestant, []).extend(values)
        known["rounds"] = len(rounds["fastnest"])
        known["median_us"] = medians(rounds)
        known["quartiles_us"] = {contestant: _quartiles(values) for contestant, values in rounds.items()}

    def measured(self) -> list[str]:
        """Names of the cases that have times, in the order of the run."""
        return [name for name in self.names if name in self.rows]

    def result(self) -> dict:
        """A condition of the JSON; every case is in its rows, its failures or among those not run."""
        return {
            "rows": [self.rows[name] for name in self.measured()],
            "failures": list(self.failures.values()),
            "died": self.died,
            "stopped": self.stopped,
            "not_run": [name for name in self.names if name not in self.rows and name not in self.failures],
            **self.rates,
        }


def medians(seconds: dict[str, Sequence[float]]) -> dict[str, float]:
    """Microseconds of every contestant, given the seconds of its rounds."""
    return {contestant: 1e6 * median(values) for contestant, values in seconds.items()}


def _largest(known: dict, found: dict, names: Iterable[str] = ()) -> dict:
    """The larger value of every name, or of these names: what a machine can is the best that any process saw."""
    return {name: max(known.get(name, 0.0), found.get(name, 0.0)) for name in names or {**known, **found}}


def _quartiles(values: Sequence[float]) -> list[float]:
    low, _, high = quantiles(values, n=4)
    return [1e6 * low, 1e6 * high]


def moved(pools: Iterable[Pool]) -> list[str]:
    """The cases whose ratio to the fastest peer differs between conditions by more than report.MOVED."""
    pools = list(pools)
    both = [name for name in pools[0].measured() if all(name in pool.rows for pool in pools)]
    return [name for name in both if report.moved([pool.rows[name] for pool in pools])]
