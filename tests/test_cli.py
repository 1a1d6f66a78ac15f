"""The command line, and the benchmarks' tables, gate and memory count; nothing here is timed."""

import json
import subprocess
import sys

import numpy
import pytest
import torch

import fastnest
from fastnest import _backend, _optional, cli
from fastnest.benchmarks import contest, report, run

CPP = fastnest.backends()["cpp"] == "available"


def test_module_runs():
    result = subprocess.run([sys.executable, "-m", "fastnest", "info"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"fastnest {fastnest.__version__}, torch {torch.__version__}" in result.stdout


def test_info_names_backends_and_kernels(capsys):
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in fastnest.backends())
    assert ("(in use)" in said) == CPP


@pytest.mark.skipif(not CPP, reason="the C++ kernels are not built")
@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (None, "cuda         none\n"),
        ({"nvcc": "13.0", "architectures": ["sm_80", "compute_80"]}, "cuda         nvcc 13.0 for sm_80, compute_80\n"),
    ],
)
def test_info_says_for_which_gpus(cuda, said, capsys, monkeypatch):
    monkeypatch.setattr(_backend._C, "build_info", lambda: {"compiler": "gcc", "cuda": cuda})
    assert cli.main(["info"]) == 0
    assert said in capsys.readouterr().out


def test_info_without_kernels_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(fastnest, "backends", lambda: {"reference": "available", "cpp": "not built"})
    assert cli.main(["info"]) == 0
    assert "install a C++ compiler" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["train"], ["train", "digits", "--model", "resnet"]])
def test_wrong_call(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: fastnest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "iriss"], "one of digits"),
        (["train", "nowhere.csv"], "nowhere.csv"),
        (["bench", "--only", "no such case"], "no case has" if CPP else "nothing to compare"),
        (["bench", "--show", "nowhere.json"], "nowhere.json"),
        (["bench", "--readme", "README.md"], "--plot and --readme need --show"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith(f"fastnest {arguments[0]}: ")


def test_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    assert cli.main(["train", "iris"]) == 2
    assert 'this needs scikit-learn: pip install "fastnest-torch[demo]"' in capsys.readouterr().err


def test_optional_lets_other_errors_through():
    with pytest.raises(_optional.MissingExtra, match=r"this needs nonesuch: pip install .*\[plot\]"):
        _optional.optional("nonesuch.part", "plot")
    assert _optional.optional("json.decoder", "plot") is json.decoder


@pytest.mark.parametrize("model", ["resnest", "aresnest", "densenest"])
def test_train_on_csv(model, tmp_path, capsys):
    x = numpy.random.default_rng(0).normal(size=(200, 3))
    lines = [f"{a},{'yes' if a + b > 0 else 'no'},{b},{c}" for a, b, c in x]
    (tmp_path / "rows.csv").write_text("a,wanted,b,c\n" + "\n".join(lines) + "\n")
    saved = tmp_path / "model.pt"
    common = [str(tmp_path / "rows.csv"), "--target", "wanted", "--model", model, "--save", str(saved)]
    assert cli.main(["train", *common, "--width", "16", "--blocks", "2", "--epochs", "60", "--rate", "0.01"]) == 0
    said = capsys.readouterr().out
    assert "150 training and 50 held-out rows of 3, 2 classes" in said
    assert float(said.partition("accuracy ")[2].partition("%")[0]) > 75
    assert "head.weight" in torch.load(saved)


def test_train_on_npz(tmp_path, capsys):
    x = numpy.random.default_rng(0).normal(size=(80, 4))
    numpy.savez(tmp_path / "rows.npz", x=x, y=1000 * x[:, 0] - 500 * x[:, 1] + 7)
    arguments = [
        "train",
        str(tmp_path / "rows.npz"),
        "--width",
        "16",
        "--blocks",
        "2",
        "--epochs",
        "60",
        "--rate",
        "0.01",
    ]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "regression of 1 values" in said
    assert float(said.partition("R^2 ")[2].partition(",")[0]) > 0.8


SMALL = [
    contest.Case("residual_chain", mode, dtype, {"n": 7, "m": 24, "k": 5, "l": 3}, ("eager", "in-place"))
    for mode in ("forward", "train")
    for dtype in ("float32", "bfloat16")
]
SMALL += [
    contest.Case("dense_chain", mode, "float32", {"n": 7, "in": 6, "d": 5, "l": 3, "h": h}, peers)
    for mode, peers in (("forward", ("eager", "in-place")), ("train", ("eager",)))
    for h in (0, 9)
]
SMALL += [
    contest.Case(subject, mode, "float32", {"n": 7, **sizes, "l": 3, "in": 6, "out": 2}, ("eager",))
    for subject, sizes in (("ResNEst", {"m": 24, "k": 5}), ("AResNEst", {"m": 24, "k": 5}), ("DenseNEst", {"d": 5}))
    for mode in ("forward", "train")
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_contestants_compute_the_same(case):
    """Every way to write a case agrees with float64, whatever backend runs here."""
    problem = run.problem(case)
    dy = contest.output_gradient(problem)
    with torch.set_grad_enabled(case.mode == "train"):
        contestants = contest.steps(problem, case, dy)
        assert set(contestants) == {"fastnest", *case.peers}
        assert set(contest.errors(problem, case, dy, contestants)) == set(contestants)


def test_gate_stops_wrong_numbers():
    case = SMALL[0]
    problem = run.problem(case)
    dy = contest.output_gradient(problem)
    with torch.no_grad():
        contestants = contest.steps(problem, case, dy)
        wrong = {**contestants, "fastnest": lambda: contestants["eager"]() * (1 + 1e-5)}
        with pytest.raises(AssertionError, match="fastnest is off by"):
            contest.errors(problem, case, dy, wrong)


def test_rows_near_a_kink_are_replaced_in_every_form():
    case = SMALL[2]
    problem = run.problem(case)
    x = problem.forms["fastnest"].leaves[0]
    before = x.detach().clone()
    with torch.no_grad():
        x[3, 5] = 1e-8
    eager = problem.forms["eager"]
    assert contest.near_kinks(eager.call, *(t.detach() for t in eager.leaves)).tolist() == [i == 3 for i in range(7)]
    contest.step_off_kinks(problem)
    assert x[3].equal(before[0])
    assert x[4].equal(before[4])


def test_memory_counts_what_is_held_but_not_the_gradients():
    x = torch.randn(256, 1024, requires_grad=True)  # 1 MiB

    def step():
        return torch.autograd.grad(x.exp().exp().sum(), [x])

    # exp saves its result: two of them; the backward adds one temporary product at a time, and its result is returned.
    assert 2 * 2**20 <= contest.training_memory(step) <= 4 * 2**20


def test_cases_are_named_once_and_the_subset_covers_everything():
    names = [case.name for case in run.cases(full=True)]
    assert len(names) == len(set(names))
    quick = run.cases(full=False)
    vectors = {"residual_chain", "dense_chain", "ResNEst", "AResNEst", "DenseNEst"}
    assert {case.subject for case in quick} == vectors | {"bottleneck block"}
    assert {case.mode for case in quick} == {"forward", "train"}
    assert {case.subject for case in run.cases(full=True, only="bench_dense_chain .*train")} == {"dense_chain"}


def result(failures=()) -> dict:
    """A JSON as `fastnest bench` writes it."""

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
                "rounds": 5,
                "median_us": {"fastnest": 500.0, "eager": 2000.0 * factor, "compile": 1000.0 * factor},
                "iqr_us": {"fastnest": 1.0, "eager": 1.0, "compile": 1.0},
                "error": {"fastnest": 1e-7, "eager": 1e-7},
                "memory": {"fastnest": 2**20, "eager": 2**23, "compile": 2**22} if mode == "train" else {},
            }
            for mode in ("forward", "train")
            for n in (1, 64)
        ]
        peak = {"float32": 400.0}
        return {"rows": rows, "failures": list(failures), "peak_gflops": peak, "matmul_gflops": 100.0, "threads": 2}

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
    return {"machine": machine, "versions": versions, "date": "2026-01-01T00:00:00+00:00", "conditions": conditions}


def test_report_tables(tmp_path, capsys):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result()))
    assert cli.main(["bench", "--show", str(path)]) == 0
    said = capsys.readouterr().out
    assert "| N | M | fastnest | share of peak | x eager | x compile | **x best** |" in said
    assert "| 64 | 8 | 500 us / 500 us | 50% / 50% | 8.00 / 4.00 | 4.00 / 2.00 | **4.00 / 2.00** |" in said
    assert "| memory | of eager's | of compile's |" in said
    assert "1.00 MiB | 0.12 | 0.25 |" in said
    assert "FAILED" not in said
    assert run.complete(result())


def test_report_rewrites_only_between_the_markers(tmp_path, capsys):
    path, readme = tmp_path / "result.json", tmp_path / "README.md"
    path.write_text(json.dumps(result()))
    readme.write_text(f"before\n{report.BEGIN}\nstale figures\n{report.END}\nafter\n")
    assert cli.main(["bench", "--show", str(path), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "stale figures" not in text
    assert "Some CPU" in text
    readme.write_text("no markers")
    assert cli.main(["bench", "--show", str(path), "--readme", str(readme)]) == 2


def test_report_shows_failures(tmp_path):
    failed = result(["a case is off by 1e-3"])
    assert "FAILED, no speed reported: a case is off by 1e-3" in report.markdown(failed)
    assert not run.complete(failed)


def test_report_plot(tmp_path):
    pytest.importorskip("matplotlib")
    path = report.plot(result(), tmp_path / "plot.png")
    assert path.read_bytes().startswith(b"\x89PNG")


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
