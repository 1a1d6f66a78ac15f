"""Which cases a run takes and until when, under which conditions, on what it says the machine is."""

import json
import signal
import subprocess
import sys
import time

import pytest

import fastnest
from fastnest import cli
from fastnest.benchmarks import child, contest, machine, report, run
from fastnest.benchmarks.pool import Pool, moved
from fastnest.benchmarks.problem import Case

NEEDS_KERNELS = pytest.mark.skipif(fastnest.backends()["cpp"] != "available", reason="benchmarks need the kernels")


def subjects(cases) -> set[str]:
    return {case.subject for case in cases}


def test_cases_are_named_once_and_the_subset_covers_everything():
    names = [case.name for case in run.cases(full=True)]
    assert len(names) == len(set(names))
    quick = run.cases(full=False)
    vectors = {"residual_chain", "dense_chain", "ResNEst", "AResNEst", "DenseNEst"}
    assert subjects(quick) == vectors | {"bottleneck block"}
    assert {case.mode for case in quick} == {"forward", "train"}
    assert all({"eager", "compile"} <= set(case.peers) for case in quick)
    assert not {peer for case in quick for peer in case.peers} & contest.TUNED
    assert {peer for case in run.cases(full=True) for peer in case.peers} >= {"max-autotune", "frozen"}


def test_names_choose_of_all_cases():
    assert subjects(run.cases(True, ["bench_dense_chain .*train"])) == {"dense_chain"}
    assert subjects(run.cases(False, ["WRN", "DenseNet-1"])) == {"WRN-16-8", "DenseNet-121"}
    assert run.cases(False, ["no such case"]) == []
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        run.cases(False, ["("])


def test_images_are_measured_as_shipped_only():
    chosen = run.cases(True, ["ResNet-110", "dense_chain-train-bfloat16"])
    assert subjects(chosen) == {"ResNet-110", "dense_chain"}
    assert run.names_under("as_shipped", chosen) == [case.name for case in chosen]
    assert run.names_under("fair", chosen) == [case.name for case in chosen if case.subject == "dense_chain"]


@NEEDS_KERNELS
def test_images_alone_have_no_fair_condition():
    with pytest.raises(ValueError, match="images are measured as shipped only"):
        run.run(None, full=False, names=["ResNet-110"], conditions=["fair"])


def test_named_cases_are_in_the_order_in_which_time_is_best_spent():
    chosen = run.cases(False, ["residual_chain"])
    assert len(chosen) == len(run.cases(True, ["residual_chain"]))
    quick = sum(case.quick for case in chosen)
    assert quick
    assert all(case.quick for case in chosen[:quick])
    groups = {(case.mode, case.dtype) for case in chosen}
    assert len(groups) == 4
    assert {(case.mode, case.dtype) for case in chosen[: quick + len(groups)]} == groups


CHAIN = [Case("chain", "forward", "float32", {"n": n}, ("eager",)) for n in (1, 2, 3)]


@pytest.fixture
def stand_in(monkeypatch):
    """measure(cases, what happens in each): no machine and no case is measured."""
    pytest.importorskip("tqdm")
    monkeypatch.setattr(machine, "rates", lambda: {"matmul_gflops": 1.0, "copy_gbytes_per_second": 2.0})
    monkeypatch.setattr(machine, "peak_gflops", lambda dtype: 3.0)
    monkeypatch.setattr(run, "problem", lambda case: case)

    def measure(happens, until=None, keep=lambda found: None):
        monkeypatch.setattr(contest, "measure", lambda problem, case, **how: happens(case))
        order = {"condition": "fair", "title": "fair", "full": False, "first": True, "until": until}
        return child.measure(CHAIN, order, keep)

    return measure


def test_every_case_is_measured(stand_in):
    kept = []
    result = stand_in(lambda case: case.name, keep=lambda found: kept.append(len(found["rows"])))
    assert kept == [0, 1, 2, 3, 3]
    assert result["rows"] == [case.name for case in CHAIN]
    assert result["not_run"] == []
    assert result["peak_gflops"] == {"float32": 3.0}
    assert (result["matmul_gflops"], result["copy_gbytes_per_second"]) == (1.0, 2.0)


def test_wrong_numbers_are_a_failure_and_the_run_goes_on(stand_in):
    def happens(case):
        assert case is not CHAIN[1], "off by 1"
        return case.name

    result = stand_in(happens)
    assert result["rows"] == [CHAIN[0].name, CHAIN[2].name]
    assert result["failures"].keys() == {CHAIN[1].name}
    assert result["failures"][CHAIN[1].name].startswith("off by 1")
    assert result["not_run"] == []


@pytest.mark.parametrize("how", ["interrupted", "time is up"])
def test_a_run_that_is_stopped_keeps_what_it_has(stand_in, how):
    def happens(case):
        if case is CHAIN[1]:
            if how == "interrupted":
                raise KeyboardInterrupt
            assert 3000 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3600
            signal.setitimer(signal.ITIMER_REAL, 0.05)  # the time goes by
            try:
                time.sleep(60)
            except Exception:
                pytest.fail("what catches errors must not catch OutOfTime")
        return case.name

    result = stand_in(happens, None if how == "interrupted" else time.time() + 3600)
    assert result["rows"] == [CHAIN[0].name]
    assert result["not_run"] == [CHAIN[1].name, CHAIN[2].name]
    assert result["stopped"] == how
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


RATES = {"peak_gflops": {"float32": 3.0}, "matmul_gflops": 1.0, "copy_gbytes_per_second": 2.0, "threads": 2}
# What a child does, given {"names": ...} and what it has found.
CHILD = """
import json, os, signal, sys
order, path, behaviour = json.loads(sys.argv[-2]), sys.argv[-1], {behaviour!r}
names = order["names"]
seconds = {{"fastnest": [1.0, 2.0, 3.0], "eager": [8.0 if order["condition"] == "fair" else 4.0] * 3}}
found = {{"rows": [], "failures": {{}}, "stopped": "", "not_run": list(names), **{rates!r}}}
def keep():
    with open(path, "w") as file:
        json.dump(found, file)
keep()
for name in names:
    if behaviour == "interrupted" and order["title"] == "fair 1/3":
        os.kill(os.getppid(), signal.SIGINT)  # as Ctrl-C in a terminal, which all its processes get
        found["stopped"] = "interrupted"
        keep()
        sys.exit(0)
    if behaviour == "dies" and name.endswith("n2") and order["title"] == "as shipped 1/3":
        os.kill(os.getpid(), signal.SIGSEGV)
    found["rows"].append({{"name": name, "seconds": seconds, "threads": order["first"]}})
    del found["not_run"][0]
    keep()
"""


@pytest.fixture
def children(monkeypatch):
    """children(how they behave): their orders, in turn; no process measures anything."""
    pytest.importorskip("tqdm")
    monkeypatch.setattr(run, "cases", lambda full, names: CHAIN)
    start, orders = subprocess.run, []

    def of(behaviour):
        def stand_in(words, **options):
            if "-m" not in words:
                return start(words, **options)
            orders.append(json.loads(words[-2]))
            script = CHILD.format(behaviour=behaviour, rates=RATES)
            return start([sys.executable, "-c", script, *words[-2:]], **options)

        monkeypatch.setattr(run.subprocess, "run", stand_in)
        return orders

    return of


NAMES = [case.name for case in CHAIN]


@NEEDS_KERNELS
def test_a_full_run_pools_three_processes_of_each_condition_in_turn(children, tmp_path):
    orders = children("measures")
    result = run.run(tmp_path / "out.json", full=True)
    titles = [f"{said} {i}/3" for i in (1, 2, 3) for said in ("as shipped", "fair")]
    # Here the ratio differs by a factor of 2 between the conditions, so that every case is measured again.
    assert [order["title"] for order in orders] == [*titles, "as shipped again", "fair again"]
    assert [order["first"] for order in orders] == [True, True] + [False] * 6
    for condition, eager in (("as_shipped", 4e6), ("fair", 8e6)):
        row = result["conditions"][condition]["rows"][0]
        assert (row["processes"], row["rounds"]) == (4, 12)
        assert row["median_us"] == {"fastnest": 2e6, "eager": eager}
        assert row["quartiles_us"] == {"fastnest": [1e6, 3e6], "eager": [eager, eager]}
        assert row["threads"] is True  # what only the first process says is kept
        assert "seconds" not in row
    assert json.loads((tmp_path / "out.json").read_text()) == result


@NEEDS_KERNELS
def test_a_run_that_is_not_full_has_one_process(children):
    orders = children("measures")
    result = run.run(None, full=False, conditions=["fair"])
    assert [order["title"] for order in orders] == ["fair"]
    assert list(result["conditions"]) == ["fair"]


@NEEDS_KERNELS
def test_a_process_that_dies_loses_one_case(children):
    orders = children("dies")
    result = run.run(None, full=True, names=["."])
    shipped, fair = result["conditions"].values()
    assert [order["names"] for order in orders[:4]] == [NAMES, NAMES[2:], NAMES, [NAMES[0], NAMES[2]]]
    assert shipped["not_run"] == [NAMES[1]]
    assert shipped["died"] == [f"{NAMES[1]}: the process ended with -11 there (as shipped 1/3)"]
    assert (fair["not_run"], fair["died"]) == ([], [])
    assert not run.complete(result)


def test_a_pool_keeps_each_case_in_one_place():
    pool = Pool(NAMES)
    row = {"name": NAMES[0], "seconds": {"fastnest": [1.0, 2.0], "eager": [2.0, 2.0]}}
    found = {"rows": [row], "failures": {NAMES[1]: "off"}, "stopped": "", **RATES}
    pool.add(found)
    pool.add({**found, "stopped": "time is up", "peak_gflops": {"float32": 2.0, "bfloat16": 5.0}, "failures": {}})
    result = pool.result()
    assert [row["name"] for row in result["rows"]] == NAMES[:1]
    assert (result["failures"], result["not_run"], result["stopped"]) == (["off"], NAMES[2:], "time is up")
    assert result["peak_gflops"] == {"float32": 3.0, "bfloat16": 5.0}
    assert moved([pool, pool]) == []


def test_a_run_is_complete_if_something_was_measured_and_nothing_failed(result):
    assert run.complete(result)
    result["conditions"]["fair"]["rows"] = []
    assert run.complete(result)
    result["conditions"]["as_shipped"]["rows"] = []
    assert not run.complete(result)


@NEEDS_KERNELS
def test_ctrl_c_is_left_to_the_process_that_measures(children, tmp_path):
    orders = children("interrupted")
    before = signal.getsignal(signal.SIGINT)
    result = run.run(tmp_path / "out.json", full=True)
    assert len(orders) == 2
    assert len(result["conditions"]["as_shipped"]["rows"]) == 3  # of the process before
    assert result["conditions"]["fair"]["not_run"] == NAMES
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert signal.getsignal(signal.SIGINT) is before
    assert not run.complete(result)


def test_a_run_without_tqdm_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert cli.main(["bench"]) == 2
    assert 'this needs tqdm: pip install "fastnest-torch[bench]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "full", "names", "conditions", "seconds"),
    [
        ([], False, [], ["as_shipped"], run.SECONDS),
        (["ResNEst", "dense.*train", "--seconds", "60"], False, ["ResNEst", "dense.*train"], ["as_shipped"], 60.0),
        (["--condition", "fair"], False, [], ["fair"], run.SECONDS),
        (["--full"], True, [], ["as_shipped", "fair"], None),
    ],
)
def test_what_is_asked_for_is_run_and_shown(words, full, names, conditions, seconds, result, monkeypatch, capsys):
    asked = {}

    def stand_in(out, **options):
        asked.update(options)
        return result

    monkeypatch.setattr(run, "run", stand_in)
    assert cli.main(["bench", *words]) == 0
    assert asked == {"full": full, "names": names, "conditions": tuple(conditions) if full else conditions,
                     "seconds": seconds}  # fmt: skip
    said = capsys.readouterr().out
    assert (report.markdown(result) in said) == full
    assert cli.main(["bench", "--seconds", "0"]) == 2
    result["conditions"]["fair"]["failures"].append("off")
    assert cli.main(["bench", *words]) == 1


def test_console_table(result, monkeypatch, capsys):
    monkeypatch.setattr(run, "run", lambda out, **options: result)
    result["conditions"]["as_shipped"].update(not_run=["a", "b", "c", "d"], stopped="time is up")
    result["conditions"]["fair"]["failures"] = ["e is off"]
    cli.main(["bench"])
    said = capsys.readouterr().out
    assert "as shipped: peak 400 GFLOP/s float32, torch's matrix product 100 GFLOP/s, memory copied at 10 GB/s" in said
    lines = [line.split() for line in said.splitlines()]
    assert ["residual_chain", "train", "float32"] in lines
    train = ["n64", "m8", "500", "us", "50%", "8.00", "4.00", "4.00", "1.0", "MiB", "0.12"]
    assert train in lines
    assert ["n64", "m8", "500", "us", "50%", "4.00", "2.00", "2.00", "-", "-"] in lines
    assert "time is up (--seconds N gives more time), 4 of 8 cases not run: a, b, c, ..." in said
    assert "FAILED, no speed reported: e is off" in said
    assert "torch's: no kernel of fastnest ran" in said
    assert max(map(len, said.splitlines())) <= 120


def test_nothing_to_compare_without_the_kernels(monkeypatch):
    monkeypatch.setattr(fastnest, "backends", lambda: {"cpp": "not built"})
    with pytest.raises(ValueError, match="nothing to compare: the cpp backend is not built"):
        run.run(None, full=False)


def test_fair_condition_compiles_its_stub(tmp_path):
    assert run.condition_of({"PATH": "/bin"}, "as_shipped", tmp_path)["PATH"] == "/bin"
    assert run.condition_of({"CC": "no-such-compiler"}, "fair", tmp_path) is None
    fair = run.condition_of({"CC": "c++ -x c", "LD_PRELOAD": "other.so"}, "fair", tmp_path)
    assert fair["THP_MEM_ALLOC_ENABLE"] == "1"
    assert fair["LD_PRELOAD"] == f"{tmp_path / 'stub.so'} other.so"
    assert (tmp_path / "stub.so").exists()


def test_machine_and_name():
    facts = machine.facts()
    assert facts["cores"] >= 1
    assert machine.slug({**facts, "cpu": "A (R) CPU", "family": "6", "model": "7", "cores": 2}) == "a-r-cpu-6-7-2-cores"
