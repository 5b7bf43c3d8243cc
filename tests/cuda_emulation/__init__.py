"""Executes the CUDA kernels of `csrc/cuda` on the CPU: an emulator, what builds it, and the cases to run.

`include/` stands in for the toolkit's and torch's CUDA headers, `emulator.cpp` runs blocks of threads as fibers,
`ops.cpp` turns the CUDA ops into `torch.ops.dpcgan_fast_emulated`, and `planted.cu` holds kernels with faults that the
emulation has to catch.
"""
