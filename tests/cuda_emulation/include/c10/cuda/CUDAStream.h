// Stands in for c10/cuda/CUDAStream.h. The current stream is that of the current device, so an op must hold a device
// guard before it asks; under emulation it is an error not to.
#pragma once

#include <c10/cuda/CUDAGuard.h>
#include <c10/util/Exception.h>
#include <cuda_runtime.h>

namespace c10::cuda {

inline cudaStream_t getCurrentCUDAStream() {
  TORCH_CHECK(CUDAGuard::held > 0, "cuda_emulation: the current stream was asked for without a device guard");
  return nullptr;
}

}  // namespace c10::cuda
