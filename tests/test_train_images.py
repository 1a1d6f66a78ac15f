"""Training on images: reading, augmentation, the recipe, interruption, several processes, and the command."""

import functools
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from children import WITHOUT_FINALIZATION
from torch.nn import functional as F

from fastnest import cli, models
from fastnest.models import densenest, densenet
from fastnest.training import checkpoint
from fastnest.training.fit import Recipe, Training
from fastnest.training.images import FORMATS, Images, augmented, load, synthetic

pytest.importorskip("tqdm")
pytestmark = pytest.mark.usefixtures("one_thread")


# Reading


def write(folder: Path, name: str, records: int = 3) -> dict[str, tuple[numpy.ndarray, numpy.ndarray]]:
    """Files in the format of the data sets' page; what they hold: images [n, 3, 32, 32] and classes."""
    folder.mkdir(parents=True, exist_ok=True)
    random, written = numpy.random.default_rng(0), {}
    form = FORMATS[name]
    for file in form.training + form.test:
        x = random.integers(0, 256, (records, 3, 32, 32), dtype=numpy.uint8)
        y = random.integers(0, form.classes, records, dtype=numpy.uint8)
        with (folder / file).open("wb") as out:
            for image, label in zip(x, y, strict=True):
                out.write(bytes([label]) if name == "cifar10" else bytes([19, label]))
                out.write(b"".join(channel.tobytes() for channel in image))
        written[file] = x, y
    return written


@pytest.mark.parametrize("name", FORMATS)
def test_reads_the_binary_format(name, tmp_path):
    """By name from a root, from the folder that the archive makes in it, and by the folder's own path."""
    form = FORMATS[name]
    written = write(tmp_path / "flat", name)
    write(tmp_path / "unpacked" / form.folder, name)
    for dataset in (load(name, tmp_path / "flat"), load(name, tmp_path / "unpacked"), load(str(tmp_path / "flat"))):
        assert (dataset.name, dataset.classes) == (name, form.classes)
        for files, x, y in (
            (form.training, dataset.x, dataset.y),
            (form.test, dataset.x_held_out, dataset.y_held_out),
        ):
            assert numpy.array_equal(x.numpy(), numpy.concatenate([written[file][0] for file in files]))
            assert y.tolist() == [int(label) for file in files for label in written[file][1]]
            assert x.is_contiguous(memory_format=torch.channels_last)


def test_absent_files_are_listed(tmp_path):
    write(tmp_path, "cifar10")
    (tmp_path / "data_batch_2.bin").unlink()
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no data_batch_2.bin, test_batch.bin; .*cifar-10-binary.tar.gz"):
        load("cifar10", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_batch_2.bin"):
        load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has no train.bin, test.bin; "):
        load("cifar100", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_batch_1.bin.*cifar10.* or train.bin, test.bin \(cifar100\)"):
        load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("size", [0, 1, 3072, 3073 * 2 - 1, 3073 * 2 + 1])
def test_truncated_files_are_rejected(size, tmp_path):
    write(tmp_path, "cifar10")
    (tmp_path / "data_batch_4.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"data_batch_4.bin must be .* records of 3073 bytes, got {size} bytes"):
        load("cifar10", tmp_path)


def test_unknown_classes_are_rejected(tmp_path):
    write(tmp_path, "cifar10")
    (tmp_path / "data_batch_1.bin").write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(ValueError, match="classes must be less than 10, got 10"):
        load("cifar10", tmp_path)


def test_normalisation_is_by_the_training_images(tmp_path):
    write(tmp_path, "cifar10", records=5)
    dataset = load("cifar10", tmp_path)
    std, mean = torch.std_mean(dataset.x.double(), (0, 2, 3), unbiased=False)
    torch.testing.assert_close(torch.tensor(dataset.mean, dtype=torch.float64), mean)
    torch.testing.assert_close(torch.tensor(dataset.deviation, dtype=torch.float64), std)
    x = dataset.normalised(dataset.x, torch.float64)
    std, mean = torch.std_mean(x, (0, 2, 3), unbiased=False)
    torch.testing.assert_close(mean, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(std, torch.ones(3, dtype=torch.float64))
    assert dataset.normalised(dataset.x).is_contiguous(memory_format=torch.channels_last)
    black = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    flat = Images("black", 10, black, torch.zeros(8).long(), black, torch.zeros(8).long())
    assert torch.equal(flat.normalised(black), torch.zeros(8, 3, 32, 32))


def test_made_up_images_are_those_of_their_seed():
    first, again, other = synthetic(64, 10), synthetic(64, 10), synthetic(64, 10, seed=1)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)
    assert (len(first.x), len(first.x_held_out)) == (64, 16)
    with pytest.raises(ValueError, match="at least 8 images, got 7"):
        synthetic(7, 10)


# Augmentation


def test_augmented_images_are_crops_of_the_reflected_ones():
    x = torch.randint(256, (600, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    y = augmented(x, torch.Generator().manual_seed(0))
    assert y.dtype == torch.uint8
    assert y.is_contiguous(memory_format=torch.channels_last)
    padded = F.pad(x.float(), (4, 4, 4, 4), mode="reflect")
    seen = []
    crops = [(t, l, m) for t in range(9) for l in range(9) for m in (False, True)]
    for t, l, mirror in crops:
        crop = padded[:, :, t : t + 32, l : l + 32]
        equal = ((crop.flip(3) if mirror else crop) == y).all(3).all(2).all(1)
        seen += [(t, l, mirror)] * int(equal.sum())
    assert len(seen) == len(x)
    assert {t for t, _, _ in seen} == {l for _, l, _ in seen} == set(range(9))
    assert 240 < sum(mirror for _, _, mirror in seen) < 360
    assert torch.equal(y, augmented(x, torch.Generator().manual_seed(0)))
    assert not torch.equal(y, augmented(x, torch.Generator().manual_seed(1)))


# The recipe


def test_the_papers_recipe():
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch) == (200, 128)
    rates = {0: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 159: 0.004, 160: 0.0008, 199: 0.0008}
    assert {epoch: recipe.rate_at(epoch) for epoch in rates} == pytest.approx(rates)
    short = Recipe(epochs=10, rate=1.0)
    assert [round(short.rate_at(e), 6) for e in range(10)] == [1, 1, 1, 0.2, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008]


class Small(torch.nn.Module):
    """Convolution, batch norm and dropout, in a moment."""

    def __init__(self, norm: bool = True, classes: int = 4):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 4, 4)
        self.norm = torch.nn.BatchNorm2d(8) if norm else torch.nn.Identity()
        self.drop = torch.nn.Dropout(0.2 if norm else 0.0)
        self.head = torch.nn.Linear(8 * 64, classes)

    def forward(self, x):
        return self.head(self.drop(F.relu(self.norm(self.conv(x)))).flatten(1))


def test_a_step_is_nesterovs_with_weight_decay():
    """Two steps against the update written out, in float64, on the same images."""
    model, dataset = Small(norm=False).double(), synthetic(16, 4)
    training = Training(model, dataset, Recipe(batch=8, epochs=1))
    own = [p.detach().clone() for p in model.parameters()]
    velocity = [torch.zeros_like(p) for p in own]
    for rows in training.batches():
        x, y = training.batch(rows)
        leaves = dict(zip(dict(model.named_parameters()), (p.requires_grad_() for p in own), strict=True))
        loss = F.cross_entropy(torch.func.functional_call(model, leaves, (x,)), y)
        gradients = torch.autograd.grad(loss, own)
        gradients = [g + 5e-4 * p.detach() for g, p in zip(gradients, own, strict=True)]
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        own = [p.detach() - 0.1 * (g + 0.9 * v) for p, g, v in zip(own, gradients, velocity, strict=True)]
        training.train_step(rows)
    for p, q in zip(model.parameters(), own, strict=True):
        torch.testing.assert_close(p.detach(), q)


def test_every_image_once_an_epoch_in_another_order():
    training = Training(Small(), synthetic(35, 4), Recipe(batch=8, epochs=2))
    first = training.batches()
    assert sorted(torch.cat(first).tolist()) == list(range(35))
    assert [len(rows) for rows in first] == [8, 8, 8, 8, 3]
    training.epoch = 1
    assert torch.cat(training.batches()).tolist() != torch.cat(first).tolist()
    assert len(Training(Small(), synthetic(33, 4), Recipe(batch=8)).batches()) == 4  # one image has no deviation
    with pytest.raises(ValueError, match="at least 2 per process, hence 2, got batch 1, 33 images"):
        Training(Small(), synthetic(33, 4), Recipe(batch=1))


def test_learns(capsys):
    training = Training(Small(), synthetic(256, 4), Recipe(batch=32, epochs=5, rate=0.02))
    said = []
    history = training.fit(report=said.append)
    assert said == history
    assert [epoch.number for epoch in history] == [1, 2, 3, 4, 5]
    assert history[-1].loss < history[0].loss
    assert history[-1].accuracy_held_out > 0.9
    assert history[-1].accuracy_held_out == training.evaluate()
    training.model.eval()
    x, y = training.images.x_held_out, training.images.y_held_out
    right = training.model(training.images.normalised(x)).argmax(1) == y
    assert history[-1].accuracy_held_out == float(right.double().mean())


# Interruption


class Killed(Exception):
    pass


def outcome(training: Training) -> tuple:
    history = [(e.number, e.rate, e.loss, e.accuracy, e.accuracy_held_out) for e in training.history]
    return history, training.model.state_dict(), training.optimizer.state_dict()["state"]


def assert_identical(a: tuple, b: tuple) -> None:
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    assert all(torch.equal(a[1][key], b[1][key]) for key in a[1])
    for i, state in a[2].items():
        assert torch.equal(state["momentum_buffer"], b[2][i]["momentum_buffer"])


@pytest.mark.parametrize("every", [0, 2])
@pytest.mark.parametrize("killed_at", [1, 5, 8, 14])
@pytest.mark.parametrize("amp", [None, "bfloat16"])
def test_resumed_training_is_bit_identical(every, killed_at, amp, tmp_path, monkeypatch):
    """Killed in its step 5 of 5 an epoch, or another, and resumed from the latest checkpoint, the state is the same."""
    path, recipe = tmp_path / "training.pt", Recipe(batch=8, epochs=3, rate=0.05, amp=amp)

    def training() -> Training:
        return Training(Small(), synthetic(40, 4), recipe, settings={"arch": "small"})

    whole = training()
    whole.fit()
    stopped, steps = training(), []
    true_step = stopped.train_step

    def step(rows):
        if len(steps) == killed_at:
            raise Killed
        steps.append(rows)
        true_step(rows)

    monkeypatch.setattr(stopped, "train_step", step)
    with pytest.raises(Killed):
        stopped.fit(path=path, every=every)
    torch.randn(killed_at)  # the generator of the process is elsewhere
    resumed = training()
    if path.exists():
        resumed.restore(path)
        assert resumed.epoch == killed_at // 5
        assert resumed.step == (killed_at % 5 // 2 * 2 if every else 0)
    else:
        assert killed_at == 1
    resumed.fit(path=path, every=every)
    assert_identical(outcome(whole), outcome(resumed))
    again = training()
    again.restore(path)
    assert_identical(outcome(whole), outcome(again))
    assert again.fit() == resumed.history


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "training.pt"
    training = Training(Small(), synthetic(16, 4), Recipe(batch=8, epochs=1))
    training.save(path)
    before = path.read_bytes()

    def fails(state, file):
        file.write(b"half of it")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fails)
        with pytest.raises(OSError, match="no space left"):
            training.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("bomb_went_off"),)


def test_a_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "settings": Bomb()}, "bomb.pt")
    with pytest.raises(ValueError, match=r"bomb.pt must be a checkpoint of this command, but cannot be read"):
        checkpoint.load(Path("bomb.pt"), {})
    Path("pickle.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load(Path("pickle.pt"), {})
    assert not Path("bomb_went_off").exists()


def test_other_files_are_no_checkpoints(tmp_path):
    path = tmp_path / "training.pt"
    training = Training(Small(), synthetic(16, 4), Recipe(batch=8, epochs=1), settings={"arch": "small"})
    training.save(path)
    content = path.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="must be a checkpoint of this command, but cannot be read"):
            training.restore(path)
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="must be a checkpoint of this command, got another file"):
        training.restore(path)
    path.write_bytes(content)
    others = [
        ({"recipe": Recipe(batch=4, epochs=1)}, r"another training: batch 8 there, 4 here"),
        ({"settings": {"arch": "large"}}, r"arch small there, large here"),
        ({"images": synthetic(16, 4, seed=1)}, r"mean "),
        ({"images": synthetic(32, 4)}, r"images synthetic: 16 training .* there, synthetic: 32"),
    ]
    for other, said in others:
        options = {
            "images": synthetic(16, 4),
            "recipe": Recipe(batch=8, epochs=1),
            "settings": {"arch": "small"},
            **other,
        }
        with pytest.raises(ValueError, match=said):
            Training(Small(), **options).restore(path)


@pytest.mark.parametrize("every", [0, 1])
def test_a_loss_that_is_not_finite_stops(every, tmp_path):
    path = tmp_path / "training.pt"
    training = Training(Small(norm=False), synthetic(32, 4), Recipe(batch=8, epochs=2, rate=1e30))
    training.save(path)
    with pytest.raises(ValueError, match=r"the loss must stay finite, got (nan|inf) in epoch 1: try a lower --rate"):
        training.fit(path=path, every=every)
    assert all(t.isfinite().all() for t in torch.load(path, weights_only=True)["model"].values())


# Several processes

SCRIPT = """
import sys
from pathlib import Path

import torch

from fastnest import cli
from fastnest.training.fit import Recipe, Training
from fastnest.training.images import synthetic
from fastnest.training.processes import processes

out, tests = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, tests)
from test_train_images import equal_training

writes, true_save = [], torch.save
torch.save = lambda state, file: (writes.append(file), true_save(state, file))
with processes() as several:
    training = equal_training(several, out / "training.pt")
    true_save((training.model.state_dict(), training.history[-1].accuracy_held_out), out / f"rank{several.rank}.pt")
    small = ["--arch", "resnet_20", "--synthetic", "24", "--batch", "8", "--epochs", "1"]
    code = cli.main(["train", *small, "--checkpoint", str(out / "cli.pt"), "--save", str(out / "weights.pt")])
    print(f"process {several.rank} returns {code} and wrote {len(writes)} files\\n", end="", flush=True)
"""


def equal_training(processes=None, path: Path | None = None) -> Training:
    """Without batch norm, whose statistics are each process's own; the shares of a step of 9 differ by one image."""
    recipe = Recipe(batch=9, epochs=2, rate=0.01)
    training = Training(Small(norm=False).double(), synthetic(31, 4), recipe, processes=processes)
    training.fit(path=path, every=2)
    return training


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """(folder, what was printed) of two processes by torchrun."""
    out = tmp_path_factory.mktemp("two")
    (out / "script.py").write_text(SCRIPT + WITHOUT_FINALIZATION)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(out / "script.py"), str(out), str(Path(__file__).parent)]
    paths = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=paths)
    try:
        said, errors = started.communicate(timeout=120)
    finally:
        started.terminate()  # and with it the processes that it started
    assert started.returncode == 0, errors[-5000:]
    return out, said


def test_two_processes_train_as_one(two_processes):
    """To rounding in float64: the same batches and augmentation, the gradient of the mean over the whole batch."""
    out, _ = two_processes
    one = equal_training()
    for rank in (0, 1):
        state, accuracy = torch.load(out / f"rank{rank}.pt")
        for key, value in one.model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-11, atol=1e-13)
        assert accuracy == one.history[-1].accuracy_held_out
    resumed = Training(Small(norm=False).double(), synthetic(31, 4), one.recipe)
    resumed.restore(out / "training.pt")
    for a, b in zip(resumed.history, one.history, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-11)
        assert (a.accuracy, a.accuracy_held_out) == (b.accuracy, b.accuracy_held_out)


def test_only_the_first_process_writes_and_prints(two_processes):
    out, said = two_processes
    assert said.count("resnet_20 resnest on synthetic, test accuracy") == 1
    assert said.count("epoch   1  rate 0.1") == 1
    assert "processes: 2" in said
    assert re.search(r"process 1 returns 0 and wrote 0 files", said)
    assert re.search(r"process 0 returns 0 and wrote [1-9]\d* files", said)
    models.cifar("resnet_20", "resnest", 10).load_state_dict(torch.load(out / "weights.pt"))


# The command

TINY = ["--synthetic", "24", "--batch", "8", "--epochs", "2", "--arch", "resnet_20", "--rate", "0.01"]


def train(*arguments) -> int:
    return cli.main(["train", *map(str, arguments)])


def test_command_resumes_bit_identically(tmp_path, monkeypatch, capsys):
    assert train(*TINY, "--kind", "bn_resnest", "--save", tmp_path / "whole.pt") == 0
    said = capsys.readouterr().out
    assert "synthetic: 24 training and 6 test images of 10 classes" in said
    assert "resnet_20 bn_resnest, 272282 parameters; 2 epochs in batches of 8, processes: 1" in said
    assert re.search(r"epoch   2  rate 0.002 +loss \d+\.\d+  accuracy \d+\.\d+%  test accuracy \d+\.\d+%  .* s", said)
    assert re.search(r"resnet_20 bn_resnest on synthetic, test accuracy \d+\.\d+%; ", said)

    rest = [*TINY, "--kind", "bn_resnest", "--checkpoint", tmp_path / "training.pt", "--checkpoint-every", "2"]
    steps, true_step = [], Training.train_step

    def step(training, rows):
        if len(steps) == 5:
            raise Killed
        steps.append(rows)
        true_step(training, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "train_step", step)
        with pytest.raises(Killed):
            train(*rest)
    assert train(*rest) == 2
    assert "training.pt is there already: --resume goes on from it" in capsys.readouterr().err
    assert train(*rest, "--resume", "--save", tmp_path / "resumed.pt") == 0
    assert "training.pt: epoch 2, batch 3" in capsys.readouterr().out
    whole, resumed = (torch.load(tmp_path / name) for name in ("whole.pt", "resumed.pt"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert train(*rest, "--resume") == 0
    assert train(*rest, "--resume", "--seed", "1") == 2
    assert "seed 0 there, 1 here" in capsys.readouterr().err


@pytest.mark.parametrize("by_path", [False, True])
def test_command_reads_files(by_path, tmp_path, capsys):
    write(tmp_path / "cifar-100-binary", "cifar100", records=8)
    where = ["--data", tmp_path / "cifar-100-binary"] if by_path else ["--data", "cifar100", "--root", tmp_path]
    saved = tmp_path / "weights.pt"
    options = ["--arch", "resnet_20", "--kind", "a_resnest", "--batch", "8", "--epochs", "1", "--save", saved]
    assert train(*where, *options) == 0
    assert "cifar100: 8 training and 8 test images of 100 classes" in capsys.readouterr().out
    models.cifar("resnet_20", "a_resnest", 100).load_state_dict(torch.load(saved))


@pytest.mark.parametrize("kind", [None, "densenest", "standard"])
def test_command_trains_densenets(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(densenet.ARCHS, "bc_100_12", densenet.ARCHS["bc_100_12"]._replace(layers=(2, 2, 2)))
    saved = tmp_path / "weights.pt"
    options = ["--arch", "bc_100_12", *(["--kind", kind] if kind else []), "--save", saved]
    assert train("--data", "cifar10", "--synthetic", "16", "--batch", "8", "--epochs", "1", *options) == 0
    assert f"bc_100_12 {kind or 'densenest'}" in capsys.readouterr().out
    densenest("bc_100_12", 10, head_norm_act=kind == "standard").load_state_dict(torch.load(saved))


def test_command_in_half_precision_and_compiled(monkeypatch, capsys):
    """Compiled in one graph by the front end alone; the code it generates is torch's."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    short = ["--synthetic", "16", "--batch", "8", "--epochs", "1", "--arch", "resnet_20", "--rate", "0.01"]
    assert train(*short, "--amp", "bfloat16", "--compile") == 0
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "cifar10", "--root", "/nowhere"], "/nowhere has no data_batch_1.bin, data_batch_2.bin"),
        (["--data", "nowhere"], "data must be a .csv, .tsv, .txt, .parquet, .npz or one of digits"),
        (["cifar10", "--width", "8"], "--width: not for images"),
        (["digits", "--arch", "resnet_20", "--resume"], "--arch, --resume: not for a table, and digits is one"),
        (["--synthetic", "--arch", "resnet_18"], "--arch must be one of wrn_16_8, wrn_40_4"),
        (["--synthetic", "--arch", "resnet_20", "--kind", "densenest"], "--kind of resnet_20 must be one of resnest"),
        (["--synthetic", "--arch", "bc_100_12", "--kind", "a_resnest"], "must be one of densenest, standard"),
        (["--synthetic", "4"], "--synthetic must be at least 8 images, got 4"),
        (["--data", ".", "--synthetic"], "--synthetic takes its classes from --data cifar10 or cifar100"),
        (["--synthetic", "--resume"], "need --checkpoint FILE"),
        (["--synthetic", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--synthetic", "--batch", "1"], "at least 2 per process, hence 2, got batch 1"),
        (["--synthetic", "--save", "/nowhere/weights.pt"], "--save must name a file in a folder that is there"),
        (["--synthetic", "16", "--arch", "resnet_20", "--batch", "8", "--rate", "1e30"], "try a lower --rate"),
    ],
)
def test_command_errors_are_one_line(arguments, said, capsys):
    assert train(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("fastnest train: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--epochs", "3"], ["digits", "--data", "digits"], ["--kind"]])
def test_command_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(*arguments)
    assert stopped.value.code == 2
    assert "usage: fastnest" in capsys.readouterr().err


def test_command_on_a_table_both_ways(capsys):
    pytest.importorskip("sklearn")
    for source in (["iris"], ["--data", "iris"]):
        assert train(*source, "--epochs", "1", "--blocks", "1", "--width", "8") == 0
    first, second = (re.sub(r"[\d.]+ s", "", line) for line in capsys.readouterr().out.splitlines()[1::2])
    assert first == second
