// Stands in for the CUDA toolkit's header of this name: the part of CUDA C++ that kernels may use under emulation.
// A kernel source that includes <cuda_runtime.h> and launches by cudaLaunchKernelEx compiles with nvcc for the device
// and, with this folder on the include path, with a C++ compiler for the CPU.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// Blocks run one after another, so one copy of a shared variable serves them all. The sanitizer guards plain statics
// but not thread-local ones; these in turn lie together, so that the emulator can fill them with NaN before each block.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
struct cudaStream_emulated;
using cudaStream_t = cudaStream_emulated*;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cuda_emulation {

inline cudaError_t last_error = cudaSuccess;
inline std::string last_message;

}  // namespace cuda_emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  cuda_emulation::last_message = cuda_emulation::run_grid({grid.x, grid.y, grid.z}, {block.x, block.y, block.z},
                                                          config->dynamicSmemBytes, [&] { kernel(arguments...); });
  if (!cuda_emulation::last_message.empty()) cuda_emulation::last_error = cudaErrorLaunchFailure;
  return cuda_emulation::last_error;
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = cuda_emulation::last_error;
  cuda_emulation::last_error = cudaSuccess;
  return error;
}

inline void __syncthreads() { cuda_emulation::wait_for_block(); }
inline int __syncthreads_count(int vote) { return cuda_emulation::count_in_block(vote != 0); }
inline int __syncthreads_or(int vote) { return __syncthreads_count(vote) != 0; }
inline int __syncthreads_and(int vote) { return __syncthreads_count(vote == 0) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_emulation::wait_for_warp(mask); }
inline unsigned __ballot_sync(unsigned mask, int vote) { return cuda_emulation::ballot(mask, vote != 0); }
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote == 0) == 0; }

template <class T>
T __shfl_sync(unsigned mask, T value, int source_lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = cuda_emulation::exchange(mask, bits, static_cast<unsigned>(source_lane) % warpSize);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return __shfl_sync(mask, value, static_cast<int>(cuda_emulation::lane()) ^ lane_mask);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const unsigned lane = cuda_emulation::lane();
  return __shfl_sync(mask, value, static_cast<int>(lane + delta < warpSize ? lane + delta : lane));
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  const unsigned lane = cuda_emulation::lane();
  return __shfl_sync(mask, value, static_cast<int>(lane >= delta ? lane - delta : lane));
}

// Threads run one at a time, so that a plain update is atomic.
template <class T, class U>
T atomicAdd(T* address, U value) {
  const T old = *address;
  *address = static_cast<T>(old + static_cast<T>(value));
  return old;
}

template <class T, class U>
T atomicMax(T* address, U value) {
  const T old = *address;
  if (old < static_cast<T>(value)) *address = static_cast<T>(value);
  return old;
}

template <class T, class U>
T atomicExch(T* address, U value) {
  const T old = *address;
  *address = static_cast<T>(value);
  return old;
}

template <class T, class U, class V>
T atomicCAS(T* address, U expected, V value) {
  const T old = *address;
  if (old == static_cast<T>(expected)) *address = static_cast<T>(value);
  return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T>
T __ldg(const T* address) {
  return *address;
}
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline double rsqrt(double value) { return 1.0 / std::sqrt(value); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32); }
inline int __popc(unsigned value) { return std::popcount(value); }
