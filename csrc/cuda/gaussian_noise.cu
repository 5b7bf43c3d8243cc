// Gaussian noise from ChaCha20, added in double and rounded once to the public grid.
#include "../common/gaussian.h"
#include "kernels.h"
#include "launch.cuh"

namespace dpcgan::cuda {
namespace {

// A thread takes one ChaCha20 block, that is, kNormalsPerBlock elements that follow one another.
template <class T>
__global__ void __launch_bounds__(kThreads) gaussian_noise_kernel(T* values, int64_t numel, double std_dev, double grid,
                                                                  const ChaChaKey key, uint64_t counter) {
  const double inverse_grid = 1.0 / grid;  // exact: the grid is a power of two
  for (int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; block * kNormalsPerBlock < numel;
       block += static_cast<int64_t>(gridDim.x) * kThreads) {
    uint32_t words[kChaChaWords];
    chacha20_block(key, kNoiseNonce, counter + static_cast<uint64_t>(block), words);
    T* out = values + block * kNormalsPerBlock;
    const int64_t left = numel - block * kNormalsPerBlock;
#pragma unroll  // so that `words` stays in registers
    for (int pair = 0; pair < kNormalsPerBlock / 2; ++pair) {
      double normal[2];
      box_muller(words[4 * pair], words[4 * pair + 1], words[4 * pair + 2], words[4 * pair + 3], normal[0], normal[1]);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (2 * pair + i < left)
          out[2 * pair + i] =
              static_cast<T>(round_to_grid(out[2 * pair + i] + std_dev * normal[i], grid, inverse_grid));
    }
  }
}

}  // namespace

template <class T>
void launch_gaussian_noise(T* values, int64_t numel, double std_dev, const ChaChaKey& key, uint64_t counter,
                           cudaStream_t stream) {
  const int64_t chacha_blocks = ceil_div<int64_t>(numel, kNormalsPerBlock);
  launch(gaussian_noise_kernel<T>, ceil_div<int64_t>(chacha_blocks, kThreads), kThreads, stream, values, numel, std_dev,
         noise_grid(std_dev), key, counter);
}

template void launch_gaussian_noise<float>(float*, int64_t, double, const ChaChaKey&, uint64_t, cudaStream_t);
template void launch_gaussian_noise<double>(double*, int64_t, double, const ChaChaKey&, uint64_t, cudaStream_t);

}  // namespace dpcgan::cuda
