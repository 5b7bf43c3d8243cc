"""Builds the emulated kernels and ops with a C++ compiler."""

import ctypes
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
CUDA_SOURCES = HERE.parents[1] / "csrc" / "cuda"
JOBS = 2

COMMON_FLAGS = ["-std=c++20", "-fPIC", "-Wall", "-Wno-unknown-pragmas", f"-I{HERE / 'include'}"]
# The fibers' jumps from stack to stack are what a fortified longjmp takes for an error.
PLAIN_FLAGS = ["-O2", "-U_FORTIFY_SOURCE"]
SANITIZER_FLAGS = [
    *("-O1", "-U_FORTIFY_SOURCE", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"),
]


def compiler() -> str | None:
    """The C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def build(folder: Path, *, sanitize: bool = False) -> Path:
    """Compiles `libkernels.so` (emulator and kernels, no torch) and `libops.so` (the ops on top of it) in `folder`.

    The two are apart because the emulator overwrites all thread-local variables of its library between blocks.
    """
    torch_folder = Path(torch.__file__).parent
    torch_include = [f"-isystem{torch_folder / 'include'}", f"-I{HERE.parents[1] / 'csrc'}"]
    flags = [compiler() or "", *COMMON_FLAGS, *(SANITIZER_FLAGS if sanitize else PLAIN_FLAGS)]
    # The longest first, so that two jobs end together.
    sources = [HERE / "ops.cpp", *sorted(CUDA_SOURCES.glob("*.cu"), key=lambda path: -path.stat().st_size)]
    sources += [HERE / "emulator.cpp", HERE / "planted.cu", HERE / "unchecked.cpp"]

    def compile_source(source: Path) -> str:
        target = folder / f"{source.name}.o"
        include = torch_include if source.name == "ops.cpp" else []
        _run([*flags, *include, "-c", "-x", "c++", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(JOBS) as pool:
        ops, *kernels = pool.map(compile_source, sources)
    _run([*flags, "-shared", *kernels, "-o", str(folder / "libkernels.so")])
    torch_link = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    link = [f"-L{folder}", "-lkernels", "-Wl,-rpath,$ORIGIN", *torch_link]
    _run([*flags, "-shared", ops, *link, "-o", str(folder / "libops.so")])
    return folder


class EmulatedCuda:
    """The built libraries: `ops` holds the ops, `library` the emulator's controls and the planted kernels."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.library = ctypes.CDLL(str(folder / "libkernels.so"))
        self.library.emulation_take_launch_count.restype = ctypes.c_int64
        for name in ("row_sq_norm", "reverse", "overrun", "early_exit", "shuffle", "histogram"):
            getattr(self.library, f"planted_{name}").restype = ctypes.c_bool
        torch.ops.load_library(str(folder / "libops.so"))
        self.ops = torch.ops.dpcgan_fast_emulated

    def configure(self, seed: int, max_blocks: int = 0) -> None:
        """Sets the order of threads and blocks, and the most blocks of a grid (0: no limit)."""
        self.library.emulation_configure(ctypes.c_uint64(seed), ctypes.c_uint(max_blocks))

    def unchecked_norms(self, order: tuple[int, ...], offsets: tuple[int, ...]) -> list[np.ndarray]:
        """Norms of two units of three rows by each kernel, with indices that nobody has checked."""
        x, g = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
        rows, units = ctypes.c_int64(3), ctypes.c_int64(2)
        index = [np.array(values, dtype=np.int64) for values in (order, offsets)]
        pointers = [values.ctypes for values in index]
        norms = [np.zeros(2) for _ in range(3)]
        for form, out in enumerate(norms):
            self.library.unchecked_sq_norm(x.ctypes, g.ctypes, rows, *pointers, units, form, out.ctypes)
        return norms

    def launches(self) -> int:
        """Kernels launched since the last call."""
        return self.library.emulation_take_launch_count()
