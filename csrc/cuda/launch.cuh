// Launching, reductions in a fixed order, and how work is cut: what all kernels share.
#pragma once

#include <cuda_runtime.h>

#include "../common/host_device.h"

namespace dpcgan::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kThreads = 256;               // of a block, where a kernel has no reason for another number
constexpr int64_t kMaxBlocks = 2147483647;  // of a one-dimensional grid
constexpr int64_t kTargetBlocks = 1024;     // enough to fill a large GPU; a constant, so that the cut of a sum, and
                                            // with it its rounding, is the same on every device

constexpr int kTableTasks = 64;             // of one launch of a whole step: their table travels as a kernel argument
constexpr int64_t kMinSlicePositions = 64;  // shorter slices of a batch would cost more to add up than they save
constexpr size_t kMaxArgumentBytes = 32764 - 512;  // of a launch since CUDA 12.1, with room for others beside a table

DPCGAN_HOST_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DPCGAN_HOST_DEVICE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// Launches `kernel` on a one-dimensional grid, or nothing where there is no work: CUDA refuses an empty grid. A refused
// launch is what cudaGetLastError() then returns.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
            const Arguments&... arguments) {
  if (blocks == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(smaller(blocks, kMaxBlocks)));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  (void)cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Sum over a warp, in every lane. All lanes must call it.
__device__ __forceinline__ double warp_sum(double value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(kFullWarp, value, mask);
  return value;
}

// Sum over a block of kBlockThreads threads, in every thread. All threads must call it.
template <int kBlockThreads>
__device__ double block_sum(double value) {
  static_assert(kBlockThreads % kWarpSize == 0, "warps must be full");
  __shared__ double partial[kBlockThreads / kWarpSize];
  value = warp_sum(value);
  __syncthreads();  // the partial sums of an earlier call have been read
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < kBlockThreads / kWarpSize; ++warp) sum += partial[warp];
  return sum;
}

// Adds partial sums in their order: first[i] for i < first_numel and second[i - first_numel] beyond.
// partials: (slices, first_numel + second_numel)
template <int kBlockThreads>
__global__ void sum_slices_kernel(const double* partials, int64_t slices, double* first, int64_t first_numel,
                                  double* second, int64_t second_numel) {
  const int64_t numel = first_numel + second_numel;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x; i < numel;
       i += static_cast<int64_t>(gridDim.x) * kBlockThreads) {
    double sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += partials[slice * numel + i];
    (i < first_numel ? first[i] : second[i - first_numel]) = sum;
  }
}

// How the rows of a batch are cut into slices that are summed apart, with about kTargetBlocks blocks in all.
struct RowSlices {
  int64_t rows_per_slice;
  int64_t slices;

  // blocks_per_slice: blocks that one slice keeps busy  min_rows: fewest rows worth a slice of their own
  RowSlices(int64_t rows, int64_t blocks_per_slice, int64_t min_rows) {
    const int64_t wanted = larger(1, kTargetBlocks / larger(1, blocks_per_slice));
    rows_per_slice = larger(larger(1, min_rows), ceil_div(rows, wanted));
    slices = larger(1, ceil_div(rows, rows_per_slice));
  }
};

}  // namespace dpcgan::cuda
