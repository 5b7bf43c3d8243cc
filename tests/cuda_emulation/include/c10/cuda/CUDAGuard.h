// Stands in for c10/cuda/CUDAGuard.h: counts guards, so that CUDAStream.h can tell whether one is held.
#pragma once

#include <c10/core/Device.h>

namespace c10::cuda {

struct CUDAGuard {
  static inline int held = 0;
  explicit CUDAGuard(Device) { ++held; }
  ~CUDAGuard() { --held; }
  CUDAGuard(const CUDAGuard&) = delete;
  CUDAGuard& operator=(const CUDAGuard&) = delete;
};

}  // namespace c10::cuda
