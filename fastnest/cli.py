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

    conditions = [arguments.condition] if arguments.condition else run.CONDITIONS
    result = run.run(arguments.out, full=arguments.full, only=arguments.only, conditions=conditions)
    print(report.markdown(result))
    return 0 if run.complete(result) else 1


def report(arguments: argparse.Namespace) -> int:
    """Prints the tables of a benchmark JSON; with --plot draws it, with --readme rewrites a file's figures."""
    from .benchmarks import report

    results = report.load(arguments.json)
    if arguments.readme:
        report.rewrite(arguments.readme, results)
        print(f"figures of {arguments.readme} rewritten")
    if arguments.plot:
        print(f"plot: {report.plot(results[-1], arguments.plot)}")
    if not (arguments.readme or arguments.plot):
        print(*map(report.markdown, results), sep="\n")
    return 0


# Options of `fastnest train` for one sort of data only, and what they are when not given.
TABLE_OPTIONS = {"target": None, "regression": False, "model": "resnest", "width": 128, "blocks": 8}
IMAGE_OPTIONS = (
    *("arch", "kind", "root", "synthetic", "batch", "amp", "compile"),
    *("checkpoint", "checkpoint_every", "resume"),
)


def train(arguments: argparse.Namespace) -> int:
    """Trains one model on a table (csv, npz, scikit-learn's) or on images (CIFAR-10 and -100 in binary files)."""
    source = arguments.data_option or arguments.data
    if source is None and arguments.synthetic is None:
        arguments.usage_error("one of the arguments data --data --synthetic is required")
    for name in ("epochs", "batch", "checkpoint_every"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if arguments.save and not arguments.save.parent.is_dir():
        raise ValueError(f"--save must name a file in a folder that is there, got {arguments.save}")
    images = source is None or source in ("cifar10", "cifar100") or Path(source).is_dir()
    foreign = [name for name in (TABLE_OPTIONS if images else IMAGE_OPTIONS) if getattr(arguments, name) is not None]
    if foreign:
        said = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise ValueError(f"{said}: not for {'images' if images else f'a table, and {source} is one or not a folder'}")
    if images:
        from .training.run import run

        run(source, arguments)
        return 0
    return _train_on_table(source, arguments)


def _train_on_table(source: str, arguments: argparse.Namespace) -> int:
    from .demo import data, training

    given = {name: getattr(arguments, name) for name in TABLE_OPTIONS if getattr(arguments, name) is not None}
    options = {**TABLE_OPTIONS, **given}
    seed = arguments.seed
    dataset = data.load(source, target=options["target"], regression=options["regression"])
    print(dataset)
    model = training.build(options["model"], dataset, options["width"], options["blocks"], seed)
    epochs, rate = arguments.epochs or 30, 2e-3 if arguments.rate is None else arguments.rate
    fit = training.fit(model, dataset, epochs=epochs, rate=rate, seed=seed)
    print(f"{options['model']} on {dataset.name}, held out: {training.score(model, dataset)}; {fit.seconds:.1f} s")
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
    one.add_argument("--full", action="store_true", help="every shape: on 2 cores an hour and a half, not 2 minutes")
    one.add_argument("--only", default="", metavar="REGEX", help="only cases whose file and name match")
    one.add_argument("--condition", choices=("as_shipped", "fair"), help="only this one (default: both)")
    one.add_argument("--out", type=Path, metavar="JSON", help="where to write (--full: results/<machine>.json)")

    one = command(report)
    one.add_argument("json", type=Path, nargs="*", help="files `fastnest bench` wrote (default: those shipped)")
    one.add_argument("--plot", type=Path, metavar="PNG", help="draw the ratios into this file")
    one.add_argument("--readme", type=Path, metavar="FILE", help="rewrite the tables between this file's markers")

    _train_options(command(train))
    return root


def _train_options(one: argparse.ArgumentParser) -> None:
    """No option has a default here but the seed: what is given has to fit the data."""
    one.set_defaults(usage_error=one.error)
    source = one.add_mutually_exclusive_group()
    what = "digits, diabetes, wine, breast_cancer, iris, FILE.csv with a header, FILE.npz with x and y; or "
    what += "cifar10, cifar100, a FOLDER with their binary files"
    source.add_argument("data", nargs="?", help=what)
    source.add_argument("--data", dest="data_option", metavar="DATA", help="the same as an option")
    one.add_argument("--epochs", type=int, help="default: 30 for a table, 200 for images")
    one.add_argument("--rate", type=float, help="learning rate: of AdamW for a table (0.002), of SGD for images (0.1)")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--save", type=Path, metavar="PT", help="write the state_dict here")

    table = one.add_argument_group("tables")
    table.add_argument("--target", help="the csv's column to predict (default: the last)")
    table.add_argument(
        "--regression", action="store_true", default=None, help="whole numbers in the target are values, not classes"
    )
    table.add_argument("--model", choices=("resnest", "aresnest", "densenest"), help="default: resnest")
    table.add_argument("--width", type=int, help="stream width (ResNEst) or total growth (DenseNEst), default: 128")
    table.add_argument("--blocks", type=int, help="default: 8")

    images = one.add_argument_group(
        "images",
        "SGD with Nesterov's momentum 0.9 and weight decay 5e-4; the rate falls to a fifth after 3, 6 and 8 tenths of "
        "the epochs; crops off by up to 4 pixels and mirrored images. With N processes, which share every batch: "
        "torchrun --nproc-per-node N -m fastnest train ...",
    )
    images.add_argument(
        "--arch", help="wrn_16_8 (default), wrn_40_4, resnet_20, resnet_110, densenet121, bc_100_12, ..."
    )
    images.add_argument(
        "--kind", help="standard, resnest (default), bn_resnest, a_resnest; of densenets densenest (default)"
    )
    images.add_argument("--root", type=Path, help="folder of the data set's files (default: data)")
    images.add_argument(
        "--synthetic",
        type=int,
        nargs="?",
        const=2048,
        metavar="N",
        help="a dry run on N made-up images (default: 2048)",
    )
    images.add_argument("--batch", type=int, help="images per step, over all processes (default: 128)")
    images.add_argument("--amp", choices=("bfloat16",), help="compute in this type by autocast")
    images.add_argument("--compile", action="store_true", default=None, help="run through torch.compile")
    images.add_argument("--checkpoint", type=Path, metavar="FILE", help="write the training's state here every epoch")
    images.add_argument("--checkpoint-every", type=int, metavar="N", help="and every N steps")
    images.add_argument("--resume", action="store_true", default=None, help="go on from --checkpoint if it is there")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 if it did what it says, 1 if its check failed, 2 if it was called wrongly."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.function(arguments)
    except (MissingExtra, ValueError, FileNotFoundError) as error:
        print(f"fastnest {arguments.command}: {error}", file=sys.stderr)
        return 2
