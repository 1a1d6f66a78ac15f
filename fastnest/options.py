"""The options of `fastnest bench`, `report` and `train`, and which values they take."""

import argparse
import math
import os
import tempfile
from pathlib import Path

# Of `fastnest train`, for one sort of data only.
DECISIONS = ("target", "classes", "regression", "no_header", "missing")
TABLE_OPTIONS = (*DECISIONS, "model", "width", "blocks")
IMAGE_OPTIONS = (
    *("arch", "kind", "root", "synthetic", "batch", "amp", "compile"),
    *("checkpoint", "checkpoint_every", "resume"),
)
TABLES = "digits, diabetes, wine, breast_cancer, iris, FILE.csv (.tsv, .txt) or FILE.parquet (columns with names), "
TABLES += "FILE.npz (arrays x and y)"
# Least and greatest value of every option that is a whole number.
WHOLE = {
    **dict.fromkeys(("width", "blocks", "batch", "checkpoint_every"), (1, 2**31 - 1)),
    "epochs": (1, 1_000_000),
    "seed": (-(2**63), 2**64 - 1),  # what torch's generators take
}


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raises ValueError for a number that an option does not take, naming both."""
    for name, value in vars(arguments).items():
        option = f"--{name.replace('_', '-')}"
        if name in WHOLE and value is not None:
            least, most = WHOLE[name]
            if value < least:
                raise ValueError(f"{option} must be at least {least}, got {value}")
            if value > most:
                raise ValueError(f"{option} must be at most {most}, got {value}")
        if name in ("rate", "seconds") and value is not None and not 0 < value < math.inf:
            raise ValueError(f"{option} must be a finite number more than 0, got {value:g}")


def check_file(option: str, path: Path | None, *, new_folders: bool = False) -> None:
    """Raises ValueError if a file cannot be written there; new_folders: folders on the way are made."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} must name a file, got the folder {path}")
    if not new_folders and not path.parent.is_dir():
        raise ValueError(f"{option} must name a file in a folder that is there, got {path}")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise ValueError(f"{option}: {path} cannot be written to")
    else:
        _check_writable(option, path.parent)


def check_folder(option: str, path: Path | None) -> None:
    """Raises ValueError if path is no folder in which files can be written, nor one that can be made."""
    if path is not None:
        _check_writable(option, path)


def _check_writable(option: str, folder: Path) -> None:
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise ValueError(f"{option}: {there} must be a folder, got a file")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"{option}: the folder {there} cannot be written to: {error.strerror}") from error


def of_bench(one: argparse.ArgumentParser) -> None:
    chosen = "regular expressions: cases in whose file and name one is found (default: a subset of all)"
    one.add_argument("names", nargs="*", metavar="NAME", help=chosen)
    full = "every shape and peer under both conditions: 50 minutes on 2 cores, the first time longer"
    one.add_argument("--full", action="store_true", help=full)
    one.add_argument("--seconds", type=float, help="stop after so long (default: 105; --full: no limit)")
    one.add_argument(
        "--condition",
        choices=("as_shipped", "fair", "both"),
        help="torch as it is, or with MKL's fast code and huge pages (default: as_shipped; --full: both)",
    )
    one.add_argument("--out", type=Path, metavar="JSON", help="where to write (--full: results/<machine>.json)")
    stored = one.add_argument_group("stored results", "Nothing is run.")
    stored.add_argument(
        "--show", type=Path, nargs="*", metavar="JSON", help="print the tables of these files (default: those shipped)"
    )
    stored.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw them here: speed-up and roofline")
    marked = "rewrite the tables, and with --pictures these, that stand between marks in these files"
    stored.add_argument("--readme", type=Path, nargs="+", default=[], metavar="FILE", help=marked)


def of_report(one: argparse.ArgumentParser) -> None:
    one.add_argument("saved", nargs="?", type=Path, metavar="MODEL.pt", help="state_dict, as `fastnest train --save`")
    one.add_argument("--data", required=True, help=f"{TABLES}; for models on images FILE.npz with x [n, 3, h, w]")
    one.add_argument("--loss", choices=("squared", "cross_entropy"), default="squared", help="default: squared")
    one.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="default: out")
    _target(one)
    file = one.add_argument_group("MODEL.pt", "What a state_dict does not say.")
    file.add_argument("--activation", default="relu", help="of the blocks of a model on vectors (default: relu)")
    file.add_argument("--post-activation", action="store_true", help="it was built with pre_activation=False")
    file.add_argument(
        "--kind", choices=("standard", "bn_resnest"), help="of a residual network on images with a last norm"
    )
    training = one.add_argument_group("training", "Without MODEL.pt.")
    _model(training)
    training.add_argument("--epochs", type=int, help="default: 30")
    training.add_argument("--rate", type=float, help="learning rate of AdamW (default: 0.002)")
    training.add_argument("--seed", type=int, help="default: 0")


def _target(one: argparse._ActionsContainer) -> None:
    one.add_argument("--target", metavar="COLUMN", help="the table's column to predict (default: the last)")
    one.add_argument("--classes", action="store_true", default=None, help="every different value of it is a class")
    one.add_argument("--regression", action="store_true", default=None, help="its values are numbers to predict")
    header = "the text file begins with its first row, not with names: they are c1, c2, ..."
    one.add_argument("--no-header", action="store_true", default=None, help=header)
    missing = "rows with a missing value (NA, ?, nothing, ...) are an error (default) or dropped"
    one.add_argument("--missing", choices=("error", "drop"), help=missing)


def _model(one: argparse._ActionsContainer) -> None:
    one.add_argument("--model", choices=("resnest", "aresnest", "densenest"), help="default: resnest")
    one.add_argument("--width", type=int, help="stream width (ResNEst) or total growth (DenseNEst), default: 128")
    one.add_argument("--blocks", type=int, help="default: 8")


def of_train(one: argparse.ArgumentParser) -> None:
    """No option has a default here but the seed: what is given has to fit the data."""
    one.set_defaults(usage_error=one.error)
    source = one.add_mutually_exclusive_group()
    what = f"{TABLES}; or cifar10, cifar100, a FOLDER with their binary files"
    source.add_argument("data", nargs="?", help=what)
    source.add_argument("--data", dest="data_option", metavar="DATA", help="the same as an option")
    one.add_argument("--epochs", type=int, help="default: 30 for a table, 200 for images")
    one.add_argument("--rate", type=float, help="learning rate: of AdamW for a table (0.002), of SGD for images (0.1)")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--save", type=Path, metavar="PT", help="write the state_dict here")

    table = one.add_argument_group("tables")
    _target(table)
    _model(table)

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
