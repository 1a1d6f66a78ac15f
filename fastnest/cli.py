"""The command line: ``fastnest info | demo | bench | report | train``."""

import argparse
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import fastnest

from ._optional import MissingExtra
from .options import (
    DECISIONS,
    IMAGE_OPTIONS,
    TABLE_OPTIONS,
    check_file,
    check_folder,
    check_numbers,
    of_bench,
    of_report,
    of_train,
)

BUILD_AGAIN = "install a C++ compiler (g++ >= 11), then `make build`, or `pip install -e .` in the source folder"


def info(arguments: argparse.Namespace) -> int:
    """Prints versions, backends, how the kernels were built, instruction sets and threads."""
    print(f"fastnest {fastnest.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads")
    print("backends")
    for name, state in fastnest.backends().items():
        print(f"  {name:<10} {state}")
    print("compiled kernels")
    if fastnest.backends()["cpp"] != "available":
        print("  none: every op runs its reference, with the same results at less speed")
        print(f"  to get them: {BUILD_AGAIN}")
        return 0
    from . import _C

    built = _C.build_info()
    cuda = built["cuda"]
    of_cuda = f"nvcc {cuda['nvcc']} for {', '.join(cuda['architectures'])}" if cuda else "none"
    for name, value in (built | {"cuda": of_cuda}).items():
        print(f"  {name:<12} {value}")
    used = _C.instruction_set()
    sets = [f"{name} (in use)" if name == used else name for name in _C.instruction_sets()]
    print(f"  {'runs here':<12} {', '.join(sets)}")
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """Trains the three models on real data, fused against reference, and compares speed and memory."""
    from .demo.run import run

    check_folder("--out", arguments.out)
    return run(arguments.out, epochs=arguments.epochs)


def bench(arguments: argparse.Namespace) -> int:
    """Runs benchmarks in two minutes, or all of them, against eager and torch.compile; or shows what was stored."""
    from .benchmarks import console, report, run

    check_folder("--pictures", arguments.pictures)
    if arguments.show is not None:
        return _show_results(arguments)
    if arguments.pictures or arguments.readme:
        raise ValueError("--pictures and --readme need --show, which says of which results")
    check_file("--out", arguments.out, new_folders=True)
    asked = arguments.condition or ("both" if arguments.full else "as_shipped")
    result = run.run(
        arguments.out,
        full=arguments.full,
        names=arguments.names,
        conditions=run.CONDITIONS if asked == "both" else [asked],
        seconds=arguments.seconds or (None if arguments.full else run.SECONDS),
    )
    print(report.markdown(result) if arguments.full else console.table(result))
    return 0 if run.complete(result) else 1


def _show_results(arguments: argparse.Namespace) -> int:
    from .benchmarks import pictures, report

    if arguments.names:
        raise ValueError(f"--show prints all of a file, and a run has no --show: got both it and {arguments.names[0]}")
    results = report.load(arguments.show)
    drawn = {path: one for path, one in results.items() if not report.is_of_gpu(one)}
    if arguments.pictures:
        if not drawn:
            raise ValueError("--pictures draws what `fastnest bench` has written, not a run of `make gpu`")
        for path, one in drawn.items():
            print(*pictures.draw(path.stem, one, arguments.pictures), sep="\n")
    for page in arguments.readme:
        # Of what the results do not hold, a page keeps what it has.
        parts = {what: text for what, text in report.parts(results.values()).items() if text}
        if arguments.pictures:
            parts["pictures"] = pictures.markdown(drawn, arguments.pictures, page)
        print(f"{page}: {' and '.join(report.rewrite(page, parts))} rewritten")
    if not (arguments.readme or arguments.pictures):
        print(report.tables(results.values()))
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Which guarantees hold for a model and data, as an HTML page and a JSON; trains a model where none is given."""
    from .demo.training import DEFAULTS
    from .report.run import Options, run

    given = _given(arguments, DEFAULTS)
    if given and arguments.saved:
        raise ValueError(f"{_said(given)}: only for training, and {arguments.saved} is trained")
    check_folder("--out", arguments.out)
    names = ("data", "saved", *DECISIONS, "loss", "activation", "post_activation", "kind", "out")
    run(Options(**{name: getattr(arguments, name) for name in names}, **given))
    return 0


def _given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _said(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def train(arguments: argparse.Namespace) -> int:
    """Trains one model on a table (csv, parquet, npz, scikit-learn's) or on images (CIFAR's binary files)."""
    source = arguments.data_option or arguments.data
    if source is None and arguments.synthetic is None:
        arguments.usage_error("one of the arguments data --data --synthetic is required")
    check_file("--save", arguments.save)
    check_file("--checkpoint", arguments.checkpoint, new_folders=True)
    if arguments.save and source and arguments.save.exists() and arguments.save.samefile(source):
        raise ValueError(f"--save must name another file than the data, got {arguments.save}")
    images = source is None or source in ("cifar10", "cifar100") or Path(source).is_dir()
    foreign = _given(arguments, TABLE_OPTIONS if images else IMAGE_OPTIONS)
    if foreign:
        raise ValueError(
            f"{_said(foreign)}: not for {'images' if images else f'a table, and {source} is one or not a folder'}"
        )
    if images:
        from .training.run import run

        run(source, arguments)
        return 0
    return _train_on_table(source, arguments)


def _train_on_table(source: str, arguments: argparse.Namespace) -> int:
    from .demo import data, training

    options = {**training.DEFAULTS, **_given(arguments, training.DEFAULTS)}
    dataset = data.load(source, **data.decisions(arguments))
    print(dataset)
    kind, width, blocks, seed = (options.pop(name) for name in ("model", "width", "blocks", "seed"))
    model = training.build(kind, dataset, width, blocks, seed)
    fit = training.fit(model, dataset, seed=seed, **options)
    print(f"{kind} on {dataset.name}, held out: {training.score(model, dataset)}; {fit.seconds:.1f} s")
    if arguments.save:
        torch.save(model.state_dict(), arguments.save)
        print(f"weights: {arguments.save}")
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="fastnest", description="ResNEst and DenseNEst networks, fast and trustworthy")
    root.add_argument("--version", action="version", version=f"fastnest {fastnest.__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="info | demo | bench | report | train")

    def command(function: Callable[[argparse.Namespace], int], **keywords: Any) -> argparse.ArgumentParser:
        one = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__, **keywords)
        one.set_defaults(function=function)
        return one

    command(info)

    one = command(demo)
    one.add_argument("--out", type=Path, default=Path("out"), help="folder for the plot (default: out)")
    one.add_argument("--epochs", type=int, default=None, help="epochs of every training (default: as tuned)")

    of_bench(command(bench))
    of_report(command(report))
    of_train(command(train))
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 if it did what it says, 1 if its check failed, 2 if it was called wrongly."""
    arguments = parser().parse_args(argv)
    try:
        check_numbers(arguments)
        code: int = arguments.function(arguments)
        return code
    except (MissingExtra, ValueError, OSError) as error:
        print(f"fastnest {arguments.command}: {error}", file=sys.stderr)
        return 2
