"""Runs every case, or one planted fault, on libraries built with sanitizers: a process of its own, made to crash.

python -m tests.cuda_emulation.sanitized FOLDER [cases | out_of_bounds | shared_out_of_bounds]
"""

import sys
from pathlib import Path

import numpy as np
import torch

from dpcgan_fast.ops import _reference
from tests.cuda_emulation import cases
from tests.cuda_emulation.build import EmulatedCuda


def run_cases(cuda: EmulatedCuda) -> int:
    """Runs and checks all cases, each in one of the two dtypes in turn, and counts them; then units out of bounds."""
    done = 0
    for op in cases.OPS:
        for single, double in zip(cases.calls(op, torch.float32), cases.calls(op, torch.float64), strict=True):
            call = (single, double)[done % 2]
            cuda.configure(seed=done, max_blocks=5)
            cases.assert_close(call, cases.run(cuda.ops, call), cases.run(_reference, call))
            done += 1
    for order, offsets, _ in cases.UNIT_INDICES:
        cuda.unchecked_norms(order, offsets)
    return done


def run_planted(cuda: EmulatedCuda, where: str) -> int:
    """Writes one element too far, by a kernel; the sanitizer ends the process."""
    out = np.zeros(96)
    cuda.library.planted_overrun(out.ctypes, where == "out_of_bounds", where == "shared_out_of_bounds")
    return 1


if __name__ == "__main__":
    emulated = EmulatedCuda(Path(sys.argv[1]))
    wanted = sys.argv[2]
    count = run_cases(emulated) if wanted == "cases" else run_planted(emulated, wanted)
    sys.stdout.write(f"ran {count} {wanted}\n")
