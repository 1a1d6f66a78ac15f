"""Which CUDA toolkit compiles csrc/cuda, for which GPUs; for setup.py. Says and refuses before anything compiles.

CUDA_HOME names the toolkit. Where it is unset: /usr/local/cuda, then where the nvcc on PATH lies, if that is a toolkit.
FASTNEST_NO_CUDA=1: no toolkit. FASTNEST_CUDA=1: one in any case, even beside a torch for CPUs. TORCH_CUDA_ARCH_LIST
("8.0;9.0a+PTX"): compute capabilities, and of which of them PTX, too.
"""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from typing import NamedTuple

OLDEST = (12, 4)  # C++20 with the headers of g++ 13
USUAL = "/usr/local/cuda"
# Of compute capability 8.0 PTX, too: what later GPUs run that have no machine code here (8.x has).
ARCHITECTURES = "8.0+PTX 9.0a 10.0a 12.0"
# As plain nvcc has it: torch would take the operators of half types away.
SAME_AS_PLAIN = " ".join(
    f"-U__CUDA_NO_{name}__"
    for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS")
)
FLAGS = f"-O3 -std=c++20 --expt-relaxed-constexpr -Xptxas -warn-spills -Xcompiler -fvisibility=hidden {SAME_AS_PLAIN}"
TOOLKIT = f"Install the CUDA toolkit >= {OLDEST[0]}.{OLDEST[1]} or set CUDA_HOME to one."
ALONE = "FASTNEST_NO_CUDA=1 builds the C++ kernels alone."


class Toolkit(NamedTuple):
    """A toolkit that can be used: where it lies, its version, and for what it compiles ("sm_90a", PTX "compute_90")."""

    home: str
    version: str
    architectures: list[str]

    def folder_of(self, file: str) -> str:
        """Where a header or library of it lies."""
        folders = ("include", "lib*", "targets/*/include", "targets/*/lib")
        found = [path for folder in folders for path in glob(os.path.join(self.home, folder, file))]
        return os.path.dirname(found[0]) if found else refuse(f"{self.home} has no {file}", TOOLKIT)

    def flags(self, compiler: list[str]) -> list[str]:
        """Of nvcc; compiler: the words of CXX, where it is set."""
        codes = [f"-gencode=arch={re.sub('^sm', 'compute', code)},code={code}" for code in self.architectures]
        return [*FLAGS.split(), *codes, *(["-ccbin", compiler[0]] if len(compiler) == 1 else [])]


def say(reason: str, remedy: str) -> None:
    print(f"fastnest: building the C++ kernels alone, WITHOUT those in CUDA: {reason}. {remedy}", file=sys.stderr)


def refuse(reason: str, remedy: str):
    sys.exit(f"fastnest: the kernels in CUDA cannot be built: {reason}. {remedy} {ALONE}")


def find(torch) -> Toolkit | None:
    """The toolkit to compile with, or None where none is wanted or there; exits where one is wanted and unfit."""
    if is_set("FASTNEST_NO_CUDA"):
        say("FASTNEST_NO_CUDA is set", "Unset it and install again to build them.")
        return None
    home, wanted = _home(), is_set("FASTNEST_CUDA")
    if torch.version.cuda is None and not wanted:
        if home is not None:  # or nobody expects them
            remedy = "Install a torch built for CUDA, or set FASTNEST_CUDA=1 to build them all the same."
            say(f"torch {torch.__version__} is not built for CUDA", remedy)
        return None
    if home is None:
        missing = f"there is no nvcc in {USUAL}/bin or on PATH, and CUDA_HOME is not set"
        if wanted:
            refuse(f"FASTNEST_CUDA is set, but {missing}", TOOLKIT)
        say(f"torch is built for CUDA {torch.version.cuda}, but {missing}", TOOLKIT)
        return None
    nvcc = os.path.join(home, "bin", "nvcc")
    version = _version(nvcc)
    said = ".".join(map(str, version))
    if version < OLDEST:
        refuse(f"{nvcc} is of CUDA {said}, older than {OLDEST[0]}.{OLDEST[1]}", TOOLKIT)
    if torch.version.cuda and version[0] != int(torch.version.cuda.partition(".")[0]):
        remedy = f"Set CUDA_HOME to a toolkit of CUDA {torch.version.cuda}, or install a torch for CUDA {version[0]}."
        refuse(f"{nvcc} is of CUDA {said}, torch {torch.__version__} is built for CUDA {torch.version.cuda}", remedy)
    return Toolkit(home, said, _architectures(nvcc, said))


def is_set(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def _home() -> str | None:
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return named
    # A script on PATH that calls the nvcc of another folder lies in no toolkit.
    on_path = os.path.dirname(os.path.dirname(os.path.realpath(shutil.which("nvcc") or "/")))
    for home in (USUAL, on_path):
        headers = glob(f"{home}/include/cuda_runtime.h") + glob(f"{home}/targets/*/include/cuda_runtime.h")
        if os.path.exists(f"{home}/bin/nvcc") and headers:
            return home
    return None


def _ask(nvcc: str, option: str) -> str:
    try:
        return subprocess.run([nvcc, option], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        refuse(f"CUDA_HOME is {os.path.dirname(os.path.dirname(nvcc))}, but there is no {nvcc}", TOOLKIT)
    except (OSError, subprocess.CalledProcessError) as error:
        refuse(f"{nvcc} {option} fails ({error})", TOOLKIT)


def _version(nvcc: str) -> tuple[int, int]:
    said = _ask(nvcc, "--version")
    found = re.search(r"release (\d+)\.(\d+)", said)
    if found is None:
        refuse(f"{nvcc} --version names no release, but says {said.strip()[:200]!r}", TOOLKIT)
    return int(found[1]), int(found[2])


def _architectures(nvcc: str, version: str) -> list[str]:
    known = {int(number) for number in re.findall(r"compute_(\d+)", _ask(nvcc, "--list-gpu-arch"))}
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    codes, numbers = [], []
    for word in re.split(r"[;,\s]+", (named or ARCHITECTURES).strip("; ,")):
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
        if parts is None:
            refuse(f"TORCH_CUDA_ARCH_LIST must list compute capabilities, as in '8.0;9.0a+PTX', got {word!r}",
                   "Set it so, or unset it for those of the README.")  # fmt: skip
        number = int(parts[1] + parts[2])
        if number < 80:
            print(f"fastnest: no CUDA kernels for compute capability {word}: they need 8.0", file=sys.stderr)
            continue
        if number not in known:
            if not named:
                continue
            refuse(f"TORCH_CUDA_ARCH_LIST names {word}, which nvcc of CUDA {version} does not know",
                   f"It knows {', '.join(f'{one // 10}.{one % 10}' for one in sorted(known))}.")  # fmt: skip
        codes.append(f"sm_{number}{parts[3]}")
        if parts[4]:
            codes.append(f"compute_{number}{parts[3]}")
        numbers.append(number)
    if not numbers:
        refuse(f"TORCH_CUDA_ARCH_LIST names {named!r}, none from 8.0", "Add one.")
    return list(dict.fromkeys(codes if named else [*codes, f"compute_{max(numbers)}"]))
