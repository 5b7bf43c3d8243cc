// Stands in for c10/cuda/CUDAException.h: a launch that the emulator refused or failed becomes an exception.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime.h>

#define C10_CUDA_KERNEL_LAUNCH_CHECK() \
  TORCH_CHECK(cudaGetLastError() == cudaSuccess, "cuda_emulation: ", cuda_emulation::last_message)
