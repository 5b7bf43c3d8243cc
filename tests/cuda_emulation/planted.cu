// Kernels that show what the emulation catches: each has a fault that its last argument plants. They compile with nvcc
// as well, so that they are CUDA and not merely what the emulator takes.
#include <cuda_runtime.h>

namespace {

constexpr int kThreads = 96;
constexpr int kLanes = 32;

__device__ double warp_sum(double value) {
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  return value;
}

// A block adds the squares of one row. Without the barrier the first warp reads partial sums not yet written.
__global__ void row_sq_norm_kernel(const float* x, int columns, double* out, bool missing_barrier) {
  __shared__ double partial[kThreads / kLanes];
  double sum = 0;
  for (int c = threadIdx.x; c < columns; c += kThreads) {
    const double value = x[blockIdx.x * columns + c];
    sum += value * value;
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kLanes == 0) partial[threadIdx.x / kLanes] = sum;
  if (!missing_barrier) __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = partial[0] + partial[1] + partial[2];
}

// Reverses kThreads values over and over. Without the second barrier a thread overwrites what another has yet to read.
__global__ void reverse_kernel(double* values, int times, bool missing_barrier) {
  __shared__ double line[kThreads];
  for (int i = 0; i < times; ++i) {
    line[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    values[threadIdx.x] = line[kThreads - 1 - threadIdx.x];
    if (!missing_barrier) __syncthreads();
  }
}

// The last thread writes one element beyond `out`, or beyond the shared array.
__global__ void overrun_kernel(double* out, bool in_global, bool in_shared) {
  __shared__ double line[kThreads];
  double* element = line + threadIdx.x;
  if (in_shared && threadIdx.x == kThreads - 1) ++element;
  *element = threadIdx.x;
  __syncthreads();
  out[threadIdx.x + (in_global && threadIdx.x == kThreads - 1 ? 1 : 0)] = line[threadIdx.x];
}

// Threads that have no element leave before the barrier.
__global__ void early_exit_kernel(double* out, unsigned size, bool early_exit) {
  if (early_exit && threadIdx.x >= size) return;
  __syncthreads();
  if (threadIdx.x < size) out[threadIdx.x] = threadIdx.x;
}

// Half of each warp shuffles, and reads lanes of the other half.
__global__ void shuffle_kernel(double* out, bool absent_lanes) {
  const unsigned mask = absent_lanes ? 0x0000ffffu : 0xffffffffu;
  double value = threadIdx.x;
  if ((mask >> (threadIdx.x % kLanes) & 1) != 0)
    value = __shfl_sync(mask, value, static_cast<int>(kLanes - 1 - threadIdx.x % kLanes));
  out[threadIdx.x] = value;
}

// Counts how often each bucket occurs, in dynamic shared memory; without the first loop the counts are not set to 0.
__global__ void histogram_kernel(const int* buckets, int size, int* counts, int bucket_count, bool not_cleared) {
#ifdef __CUDACC__
  extern __shared__ int block_counts[];
#else
  int* block_counts = reinterpret_cast<int*>(cuda_emulation::dynamic_shared_memory());
#endif
  if (!not_cleared)
    for (int i = threadIdx.x; i < bucket_count; i += kThreads) block_counts[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < size; i += kThreads) atomicAdd(&block_counts[buckets[i]], 1);
  __syncthreads();
  for (int i = threadIdx.x; i < bucket_count; i += kThreads) counts[i] = block_counts[i];
}

template <class... Parameters, class... Arguments>
bool launched(void (*kernel)(Parameters...), int blocks, size_t shared_bytes, Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  (void)cudaLaunchKernelEx(&config, kernel, arguments...);
  return cudaGetLastError() == cudaSuccess;
}

}  // namespace

// Each returns whether the launch succeeded.
extern "C" {

bool planted_row_sq_norm(const float* x, int rows, int columns, double* out, bool fault) {
  return launched(row_sq_norm_kernel, rows, 0, x, columns, out, fault);
}

bool planted_reverse(double* values, int times, bool fault) {
  return launched(reverse_kernel, 1, 0, values, times, fault);
}

bool planted_overrun(double* out, bool in_global, bool in_shared) {
  return launched(overrun_kernel, 1, 0, out, in_global, in_shared);
}

bool planted_early_exit(double* out, unsigned size, bool fault) {
  return launched(early_exit_kernel, 1, 0, out, size, fault);
}

bool planted_shuffle(double* out, bool fault) { return launched(shuffle_kernel, 1, 0, out, fault); }

bool planted_histogram(const int* buckets, int size, int* counts, int bucket_count, bool fault) {
  return launched(histogram_kernel, 1, sizeof(int) * static_cast<size_t>(bucket_count), buckets, size, counts,
                  bucket_count, fault);
}
}
