"""Compiles the CUDA part without linking it: a check for machines without a GPU or with a CPU build of torch.

    python csrc/check_cuda.py [--ptxas] [FILE ...]

Kernels (*.cu) compile with nvcc for each architecture; the op wrappers (*_op.cpp) go through the C++ compiler against
the headers of torch and of the toolkit. One line a file; --ptxas adds one a kernel. Exit code 1 if a file fails, 2 if a
compiler is missing.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parent
ARCHITECTURES = ("80", "90")
NVCC_FLAGS = ["-O3", "-std=c++20", "-Werror", "all-warnings"]
CXX_FLAGS = ["-std=c++20", "-Wall", "-Werror", "-fsyntax-only"]


@dataclass(frozen=True)
class Tools:
    """Compilers, and the folders of headers that the op wrappers need."""

    nvcc: str
    cxx: str
    include: list[str]


@dataclass(frozen=True)
class Outcome:
    """What compiling one file said."""

    source: Path
    ok: bool
    seconds: float
    output: str


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, or else of the path."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which(str(Path(home, "bin", "nvcc"))) if home else shutil.which("nvcc")


def find_tools() -> Tools | str:
    """The compilers, or which one is missing."""
    import torch  # only the headers are used, and only here

    nvcc, cxx = find_nvcc(), shutil.which(os.environ.get("CXX", "g++"))
    if nvcc is None:
        return "nvcc was not found (PATH). Install the CUDA toolkit, or set CUDA_HOME to its folder"
    if cxx is None:
        return "no C++ compiler was found (PATH). Install g++, or set CXX"
    # nvcc may be a wrapper; where its headers lie is what it says itself.
    plan = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True, check=True)
    toolkit = re.findall(r'-I"?([^"\s]+)', next(line for line in plan.stderr.splitlines() if "INCLUDES=" in line))
    torch_include = Path(torch.__file__).parent / "include"
    return Tools(nvcc, cxx, [str(torch_include), str(torch_include / "torch" / "csrc" / "api" / "include"), *toolkit])


def compile_source(source: Path, tools: Tools, architectures: list[str], folder: Path) -> Outcome:
    """Compiles one file; nothing but the compiler's output is kept."""
    if source.suffix == ".cu":
        targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
        target = folder / f"{source.stem}.o"
        command = [tools.nvcc, *NVCC_FLAGS, *targets, "-Xptxas", "-v", "-c", str(source), "-o", str(target)]
    else:
        # A CPU build of torch lacks the header that its CMake would write.
        include = [part for folder_name in tools.include for part in ("-isystem", folder_name)]
        command = [tools.cxx, *CXX_FLAGS, "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", *include, str(source)]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Outcome(source, done.returncode == 0, time.monotonic() - start, done.stdout + done.stderr)


def readable_kernel(mangled: str) -> str:
    """`conv_gram_kernel<float>` from a mangled name; the name as it is where there is no c++filt."""
    if shutil.which("c++filt") is None:
        return mangled
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|dpcgan::cuda::|dpcgan::|^void ", "", name)
    name = re.sub(r"\((?:Epilogue|Optimizer|int)\)", "", name)
    return re.sub(r"\(.*\)$", "", name)


def ptxas_lines(output: str) -> list[str]:
    """One line for each kernel and architecture of `-Xptxas -v`: registers, shared memory, spills."""
    lines = []
    kernel, spills = "", ""
    architecture = ""
    for line in output.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            kernel, architecture = readable_kernel(entry[1]), entry[2]
        elif spilled := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            spills = f", {spilled[2]} B spilled" if int(spilled[2]) else ""
        elif used := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            lines.append(
                f"{architecture} {used[1]:>4} registers {shared[1] if shared else 0:>6} B shared  {kernel}{spills}"
            )
    return sorted(lines)


def main() -> int:
    """Compiles all files and prints what came of it."""
    parser = argparse.ArgumentParser(description="Compile the CUDA kernels and their op wrappers without linking.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: all of csrc/cuda")
    parser.add_argument("--ptxas", action="store_true", help="print registers and shared memory of each kernel")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), metavar="N", help="default: 80 90")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time, default 2")
    arguments = parser.parse_args()
    tools = find_tools()
    if isinstance(tools, str):
        sys.stderr.write(f"error: {tools}.\n")
        return 2
    # The longest first, so that the jobs end together.
    sources = arguments.files or [*sorted(CSRC.glob("cuda/*_op.cpp")), *sorted(CSRC.glob("cuda/*.cu"))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = pool.map(
            lambda source: compile_source(source, tools, arguments.architectures, Path(folder)), sources
        )
        failed = False
        for outcome in outcomes:
            verdict, name = "ok    " if outcome.ok else "FAILED", os.path.relpath(outcome.source)
            sys.stdout.write(f"{verdict} {name} ({outcome.seconds:.1f} s)\n")
            if not outcome.ok:
                sys.stdout.write(outcome.output)
                failed = True
            elif arguments.ptxas:
                sys.stdout.writelines(f"       {line}\n" for line in ptxas_lines(outcome.output))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
