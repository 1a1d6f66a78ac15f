"""Installing on a machine with a GPU, and building for it on one without; nothing here needs either."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu.result import Script

from fastnest.benchmarks.gpu import install
from fastnest.benchmarks.gpu.children import Ended


def test_the_card_is_compiled_for():
    assert [install.architecture(one) for one in ([8, 0], [8, 9], [9, 0], [10, 0], [12, 0])] == [
        *("8.0", "8.9", "9.0a", "10.0a", "12.0a")
    ]


STATES = {"cpp": "available", "cuda": "available"}


def test_install_falls_back_and_says_so():
    said = []
    script = Script(([], Ended(0, "")), ([STATES], Ended(0, "")))
    what, environment = install.install(time.time() + 100, said.append, "9.0a", script)
    assert (what, environment) == ("installed with all that compiles; cpp available, cuda available", {})
    assert script.asked[0][0][1:3] == ["-m", "pip"]
    assert {"--no-deps", "--no-build-isolation", "-e"} <= set(script.asked[0][0])
    assert script.asked[0][1]["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    assert "FASTNEST_NO_CUDA" not in script.asked[0][1]
    fails = ([], Ended(1, "no compiler"))
    script = Script(fails, ([], Ended(0, "")), ([STATES | {"cuda": "not built"}], Ended(0, "")))
    what, environment = install.install(time.time() + 100, said.append, "9.0a", script)
    assert (what, environment) == ("installed without its CUDA C++ kernels; cpp available, cuda not built", {})
    assert script.asked[1][1]["FASTNEST_NO_CUDA"] == "1"
    script = Script(fails, fails, ([], Ended(0, "")), ([STATES], Ended(0, "")))
    what, environment = install.install(time.time() + 100, said.append, "9.0a", script)
    assert (what[:32], environment) == ("installed without its C++ kernel", {})
    assert script.asked[2][1] == {"FASTNEST_NO_EXT": "1"}
    assert said[0] == "not installed with all that compiles: ended with 1; no compiler"
    assert len(said) == 3


def test_without_pip_the_checkout_runs_as_it_lies(tmp_path):
    what, environment = install.install(time.time() + 100, print, "8.0", Script(*[([], Ended(1, "no pip"))] * 3))
    assert what.startswith("not installed")
    code = (
        "import fastnest, fastnest.kernels, fastnest.benchmarks.gpu.record as r; print(fastnest.__file__, r.__file__)"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = environment["PYTHONPATH"].split(os.pathsep)[0]
    assert all(path.startswith(site) for path in done.stdout.split())


def checkout(folder: Path) -> Path:
    """With an extension that was built."""
    (folder / "fastnest").mkdir(parents=True)
    for name in ("kernels", "benchmarks"):
        (folder / name).mkdir()
    (folder / "csrc").mkdir()
    (folder / "csrc" / "ops.cpp").write_text("int a;")
    (folder / "fastnest" / f"_C{install.SUFFIX}").write_bytes(b"ELF" + install.digest(folder))
    return folder


def test_what_was_built_before_is_used_as_it_lies(tmp_path):
    root = checkout(tmp_path / "checkout")
    script = Script(([STATES], Ended(0, "")))
    what, environment = install.prebuilt(time.time() + 100, print, "9.0a", script, root)
    assert what == "prebuilt; cpp available, cuda available"
    assert script.asked[0][1] == environment  # asked where children will look
    site = Path(environment["PYTHONPATH"].split(os.pathsep)[0])
    assert (site / "fastnest" / f"_C{install.SUFFIX}").resolve() == root / "fastnest" / f"_C{install.SUFFIX}"
    assert (site / "fastnest" / "benchmarks").resolve() == root / "benchmarks"


def prebuilt(root: Path, *replies) -> None:
    install.prebuilt(time.time() + 100, print, "9.0a", Script(*replies), root)


def test_what_is_not_built_or_does_not_load_is_an_error_of_one_line(tmp_path):
    with pytest.raises(
        install.NotBuilt, match=r"needs .*_C\..*, which is not there; `make gpu-build .* GPU_ARCH=9.0a`"
    ):
        prebuilt(tmp_path)
    root = checkout(tmp_path / "checkout")
    for states, ended, said in (
        ([STATES | {"cpp": "built, but not loadable"}], Ended(0, ""), "cpp built, but not loadable"),
        ([STATES | {"cuda": "not built"}], Ended(0, ""), "cuda not built"),
        ([], Ended(1, "ImportError"), "ended with 1; ImportError"),
    ):
        with pytest.raises(install.NotBuilt, match=rf"does not run here \({said}\)"):
            prebuilt(root, (states, ended))


def test_what_was_built_of_other_sources_is_not_measured(tmp_path):
    root = checkout(tmp_path / "checkout")
    (root / "csrc" / "ops.cpp").write_text("int b;")
    with pytest.raises(install.NotBuilt, match="was not built of the sources in csrc as they are now"):
        prebuilt(root)


def test_building_for_another_python_takes_its_headers_and_its_ending(tmp_path, monkeypatch, capsys):
    ran, root = [], checkout(tmp_path / "checkout")
    extension, run = root / "fastnest" / f"_C{install.SUFFIX}", subprocess.run

    def recorded(words, **options):
        if words[1] != "setup.py":
            return run(words, **options)
        ran.append((words, options["env"]))
        extension.write_bytes(b"ELF")
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(install.subprocess, "run", recorded)
    monkeypatch.setattr(install, "ROOT", root)
    monkeypatch.setenv("CFLAGS", "-march=x86-64")
    assert install.build(sys.executable, "9.0a") == 0
    words, environment = ran[0]
    assert words[2:] == ["--quiet", "build_ext", "--inplace", "--build-temp", "build/gpu"]
    assert (environment["FASTNEST_CUDA"], environment["TORCH_CUDA_ARCH_LIST"]) == ("1", "9.0a")
    assert environment["SETUPTOOLS_EXT_SUFFIX"] == install.SUFFIX
    headers = environment["CFLAGS"].split()[0].removeprefix("-I")
    assert Path(headers, "Python.h").exists()
    assert environment["CFLAGS"].endswith(" -march=x86-64")
    assert extension.read_bytes() == b"ELF" + install.digest(root)
    assert f"fastnest/_C{install.SUFFIX} for compute capability 9.0a" in capsys.readouterr().out


def test_building_for_a_python_that_is_not_there_is_an_error_of_one_line(tmp_path, capsys):
    assert install.build(str(tmp_path / "python3.99"), "9.0a") == 2
    assert "gpu-build: GPU_PYTHON must be the GPU machine's Python, got" in capsys.readouterr().err
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nprintf '%s\\n.so\\n' /nowhere\n")
    bare.chmod(0o755)
    assert install.build(str(bare), "9.0a") == 2
    assert "has no headers here: /nowhere/Python.h is not there" in capsys.readouterr().err
