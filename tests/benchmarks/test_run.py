"""Which cases a run takes, under which conditions, on what it says the machine is."""

from fastnest.benchmarks import run


def test_cases_are_named_once_and_the_subset_covers_everything():
    names = [case.name for case in run.cases(full=True)]
    assert len(names) == len(set(names))
    quick = run.cases(full=False)
    vectors = {"residual_chain", "dense_chain", "ResNEst", "AResNEst", "DenseNEst"}
    assert {case.subject for case in quick} == vectors | {"bottleneck block"}
    assert {case.mode for case in quick} == {"forward", "train"}
    assert {case.subject for case in run.cases(full=True, only="bench_dense_chain .*train")} == {"dense_chain"}


def test_fair_condition_compiles_its_stub(tmp_path):
    assert run.condition_of({"PATH": "/bin"}, "as_shipped", tmp_path) == {"PATH": "/bin"}
    assert run.condition_of({"CC": "no-such-compiler"}, "fair", tmp_path) is None
    fair = run.condition_of({"CC": "c++ -x c", "LD_PRELOAD": "other.so"}, "fair", tmp_path)
    assert fair["THP_MEM_ALLOC_ENABLE"] == "1"
    assert fair["LD_PRELOAD"] == f"{tmp_path / 'stub.so'} other.so"
    assert (tmp_path / "stub.so").exists()


def test_machine_and_name():
    facts = run.machine()
    assert facts["cores"] >= 1
    assert run.slug({**facts, "cpu": "A (R) CPU", "family": "6", "model": "7", "cores": 2}) == "a-r-cpu-6-7-2-cores"
