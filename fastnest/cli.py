"""The command line: ``fastnest info | demo | bench | report | train``."""

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import fastnest

from ._optional import MissingExtra

BUILD_AGAIN = "install a C++ compiler (g++ >= 11), then `make build`, or `pip install -e .` in the source folder"


def info(arguments: argparse.Namespace) -> int:
    """Prints versions, backends, how the kernels were built, instruction sets and threads."""
    print(f"fastnest {fastnest.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads")
    print("backends")
    for name, state in fastnest.backends().items():
        print(f"  {name:<10} {state}")
    print("C++ kernels")
    if fastnest.backends()["cpp"] != "available":
        print("  none: every op runs its reference, with the same results at less speed")
        print(f"  to get them: {BUILD_AGAIN}")
        return 0
    from . import _C

    for name, value in _C.build_info().items():
        print(f"  {name:<12} {value}")
    used = _C.instruction_set()
    sets = [f"{name} (in use)" if name == used else name for name in _C.instruction_sets()]
    print(f"  {'runs here':<12} {', '.join(sets)}")
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Trains the three models on real data, fused against reference, and compares speed and memory."""
    from .demo.run import run

    return run(arguments.out, epochs=arguments.epochs)


def bench(arguments: argparse.Namespace) -> int:
    """Runs the benchmarks, as shipped and fair, writes the JSON and prints its tables."""
    from .benchmarks import report, run

    result = run.run(arguments.out, full=arguments.full, only=arguments.only)
    print(report.markdown(result))
    return 0 if run.complete(result) else 1


def report(arguments: argparse.Namespace) -> int:
    """Prints the tables of a benchmark JSON; with --plot draws it, with --readme rewrites a file's figures."""
    from .benchmarks import report

    result = report.load(arguments.json)
    if arguments.readme:
        report.rewrite(arguments.readme, result)
        print(f"figures of {arguments.readme} rewritten")
    if arguments.plot:
        print(f"plot: {report.plot(result, arguments.plot)}")
    if not (arguments.readme or arguments.plot):
        print(report.markdown(result))
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Trains one model on a csv, an npz (arrays x and y) or a data set of scikit-learn."""
    from .demo import data, training

    dataset = data.load(arguments.data, target=arguments.target, regression=arguments.regression)
    print(dataset)
    model = training.build(arguments.model, dataset, arguments.width, arguments.blocks, arguments.seed)
    fit = training.fit(model, dataset, epochs=arguments.epochs, rate=arguments.rate, seed=arguments.seed)
    print(f"{arguments.model} on {dataset.name}, held out: {training.score(model, dataset)}; {fit.seconds:.1f} s")
    if arguments.save:
        torch.save(model.state_dict(), arguments.save)
        print(f"weights: {arguments.save}")
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="fastnest", description="ResNEst and DenseNEst networks, fast and trustworthy")
    root.add_argument("--version", action="version", version=f"fastnest {fastnest.__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="info | demo | bench | report | train")

    def command(function, **keywords) -> argparse.ArgumentParser:
        one = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__, **keywords)
        one.set_defaults(function=function)
        return one

    command(info)

    one = command(demo)
    one.add_argument("--out", type=Path, default=Path("out"), help="folder for the plot (default: out)")
    one.add_argument("--epochs", type=int, default=None, help="epochs of every training (default: as tuned)")

    one = command(bench)
    one.add_argument("--full", action="store_true", help="every shape: on 2 cores 25 minutes, not 2")
    one.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    one.add_argument("--out", type=Path, metavar="JSON", help="where to write (--full: results/<machine>.json)")

    one = command(report)
    one.add_argument("json", type=Path, nargs="?", help="a file `fastnest bench` wrote (default: the one shipped)")
    one.add_argument("--plot", type=Path, metavar="PNG", help="draw the ratios into this file")
    one.add_argument("--readme", type=Path, metavar="FILE", help="rewrite the tables between this file's markers")

    one = command(train)
    one.add_argument(
        "data", help="digits, diabetes, wine, breast_cancer, iris, FILE.csv with a header, FILE.npz with x and y"
    )
    one.add_argument("--target", default=None, help="the csv's column to predict (default: the last)")
    one.add_argument("--regression", action="store_true", help="whole numbers in the target are values, not classes")
    one.add_argument("--model", choices=("resnest", "aresnest", "densenest"), default="resnest")
    one.add_argument("--width", type=int, default=128, help="stream width (ResNEst) or total growth (DenseNEst)")
    one.add_argument("--blocks", type=int, default=8)
    one.add_argument("--epochs", type=int, default=30)
    one.add_argument("--rate", type=float, default=2e-3, help="learning rate of Adam")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--save", type=Path, metavar="PT", help="write the state_dict here")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 if it did what it says, 1 if its check failed, 2 if it was called wrongly."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.function(arguments)
    except (MissingExtra, ValueError, FileNotFoundError) as error:
        print(f"fastnest {arguments.command}: {error}", file=sys.stderr)
        return 2
