"""Files that are cut short, lie about their sizes, or would run something: every reader refuses them by name."""

import gzip
import io
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from fastnest import models
from fastnest.demo import data
from fastnest.report import saved
from fastnest.training import checkpoint, images

ROOT = Path(__file__).parents[1]


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("bomb_went_off"),)


def header(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    """A .npy file that promises an array of that shape and holds none of it."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, content in members.items():
            written.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def tar(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as written:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        written.addfile(member, io.BytesIO(content))
    return file.getvalue()


def good_state() -> bytes:
    file = io.BytesIO()
    torch.save(models.ResNEst(3, 2, width=4, bottleneck=2, blocks=2).state_dict(), file)
    return file.getvalue()


STATE = good_state()
CONTENT = {
    "nothing": b"",
    "noise": bytes(range(256)) * 20,
    "a pickle": pickle.dumps(Bomb()),
    "a checkpoint cut short": STATE[: len(STATE) // 2],
    "a checkpoint without its end": STATE[:-1],
    "a .gz cut short": gzip.compress(STATE)[:-9],
    "a .tar.gz with a way out": tar("../../bomb_went_off", b"1"),
    "a .zip with a way out": archive(**{"..__..__bomb_went_off": b"1"}),
    "a .zip with a pickle": archive(**{"x__data.pkl": pickle.dumps(Bomb()), "x__version": b"3"}),
    "an .npz of a pickle": archive(**{"x.npy": header((1,), "|O") + pickle.dumps(Bomb()), "y.npy": header((1,))}),
    "an .npz of 2^60 numbers": archive(**{"x.npy": header((2**30, 2**30)), "y.npy": header((2**30,))}),
    "an .npz of negative sizes": archive(**{"x.npy": header((-5, 2)), "y.npy": header((-5,))}),
    "an .npz whose header is code": archive(
        **{"x.npy": header((1,))[:10] + b"__import__('os')", "y.npy": header((1,))}
    ),
    "a .parquet without anything": b"PAR1" + b"\xff" * 64 + b"\xff\xff\xff\x7fPAR1",
    "JSON without end": b"[" * 10_000,
}


def cifar(path: Path):
    for file in (*images.FORMATS["cifar10"].training, *images.FORMATS["cifar10"].test):
        (path.parent / file).write_bytes(path.read_bytes())
    return images.load("cifar10", path.parent)


READERS = {
    "checkpoint.pt": lambda path: checkpoint.load(path, {}),
    "state.pt": saved.load,
    "rows.npz": lambda path: data.load(str(path)),
    "rows.csv": lambda path: data.load(str(path)),
    "rows.parquet": lambda path: data.load(str(path)),
    "data_batch_1.bin": cifar,
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("name", READERS)
def test_is_refused(name, content, tmp_path, monkeypatch):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    folder = tmp_path / "in" / "folder"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    path = folder / name
    path.write_bytes(CONTENT[content])
    with pytest.raises(ValueError, match=re.escape(path.stem)):
        READERS[name](path)
    assert not list(tmp_path.rglob("bomb_went_off"))


def test_nothing_is_unpickled():
    """No source reads a pickle: torch.load with weights_only=True, numpy.load with allow_pickle=False, nothing else."""
    reads = re.compile(r"(pickle\.loads?\(|Unpickler\(|joblib|allow_pickle=True|weights_only=False)")
    loads = re.compile(r"\b(torch|numpy|np)\.load\(")
    for folder in ("fastnest", "kernels", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                assert not reads.search(line), f"{path}: {line}"
                if loads.search(line):
                    assert "weights_only=True" in line or "allow_pickle=False" in line, f"{path}: {line}"
