"""Builds the native extension. All metadata is in pyproject.toml.

The C++ part always builds. The CUDA part builds when torch is a CUDA build and nvcc is found; a GPU need not be
present. `DPCGAN_BUILD_CUDA=0` leaves it out, `DPCGAN_BUILD_CUDA=1` makes its absence an error. The decision and its
reason are compiled in, and `dpcgan doctor` prints them.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import setup


def toolkit_folder() -> str:
    """The CUDA toolkit's folder, or an empty string. An nvcc on the path may be a wrapper, so it is asked."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return ""
    plan = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE)
    return str(Path(top[1]).resolve()) if top else ""


if torch.version.cuda is not None and not os.environ.get("CUDA_HOME") and toolkit_folder():
    os.environ["CUDA_HOME"] = toolkit_folder()  # read by the import below

from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension  # noqa: E402

CUDA_ARCHITECTURES = "8.0;9.0+PTX"


def cuda_decision() -> tuple[bool, str]:
    """Whether to build the CUDA part, and why."""
    forced = os.environ.get("DPCGAN_BUILD_CUDA", "")
    if forced not in ("", "0", "1"):
        raise SystemExit(f"error: DPCGAN_BUILD_CUDA={forced} (environment). Set it to 0 or 1, or leave it out.")
    if forced == "0":
        return False, "left out by DPCGAN_BUILD_CUDA=0"
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is not a CUDA build"
    elif CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").exists():
        missing = "nvcc was not found; set CUDA_HOME to the CUDA toolkit's folder"
    else:
        return True, f"built with the CUDA toolkit in CUDA_HOME against torch for CUDA {torch.version.cuda}"
    if forced == "1":
        raise SystemExit(f"error: DPCGAN_BUILD_CUDA=1, but {missing} (setup.py). Install it, or unset the variable.")
    return False, missing


def extension():
    with_cuda, reason = cuda_decision()
    print(f"dpcgan_fast: CUDA kernels {'are' if with_cuda else 'are not'} built: {reason}")
    sources = ["csrc/registration.cpp", "csrc/autograd.cpp", "csrc/bindings.cpp", "csrc/checks.cpp"]
    sources += sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))
    define_macros = [
        ("DPCGAN_CUDA_REASON", f'"{reason}"'),
        ("DPCGAN_TORCH_VERSION", f'"{torch.__version__}"'),
    ]
    # -fopenmp without linking libgomp: the symbols resolve to the runtime that torch has loaded, so that there is one
    # thread pool. No -ffast-math: NaN and infinity must reach the clip factor. No debug information, which Python's own
    # flags ask for: it would be nine tenths of a wheel.
    cxx = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-psabi"]
    if not with_cuda:
        return CppExtension("dpcgan_fast._C", sources, define_macros=define_macros, extra_compile_args={"cxx": cxx})
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    sources += sorted(str(path) for pattern in ("*.cu", "*_op.cpp") for path in Path("csrc/cuda").glob(pattern))
    return CUDAExtension(
        "dpcgan_fast._C",
        sources,
        define_macros=[*define_macros, ("DPCGAN_WITH_CUDA", None)],
        extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "-std=c++20"]},
    )


class RecordedBuild(BuildExtension):
    """Notes the version of torch beside the extension, which cannot be asked before it is loaded."""

    def run(self):
        super().run()
        for built in self.extensions:
            Path(self.get_ext_fullpath(built.name)).with_name("_built_for.txt").write_text(torch.__version__)


setup(ext_modules=[extension()], cmdclass={"build_ext": RecordedBuild})
