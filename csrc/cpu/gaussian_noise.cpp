// Gaussian noise from ChaCha20, added in double and rounded once to the public grid.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../checks.h"
#include "normal_blocks.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kTaskBlocks = 256;  // ChaCha20 blocks of one parallel task

template <class T>
void add_noise(T* values, int64_t numel, double std_dev, const ChaChaKey& key, uint64_t counter) {
  const double grid = noise_grid(std_dev), inverse_grid = 1.0 / grid;
  const int64_t blocks = ceil_div<int64_t>(numel, kNormalsPerBlock);
  at::parallel_for(0, ceil_div(blocks, kTaskBlocks), 1, [&](int64_t first, int64_t last) {
    simd_dispatch([&](auto) DPCGAN_INLINE_BODY {
      double normals[kNoiseLanes * kNormalsPerBlock];
      const int64_t end = std::min(last * kTaskBlocks, blocks);
      for (int64_t block = first * kTaskBlocks; block < end; block += kNoiseLanes) {
        normal_blocks(key, counter + block, normals);
        const int64_t begin = block * kNormalsPerBlock;
        const int64_t size =
            std::min<int64_t>((std::min<int64_t>(end, block + kNoiseLanes)) * kNormalsPerBlock, numel) - begin;
        for (int64_t i = 0; i < size; ++i)
          values[begin + i] =
              static_cast<T>(round_to_grid(values[begin + i] + std_dev * normals[i], grid, inverse_grid));
      }
    });
  });
}

}  // namespace

void gaussian_noise_cpu(at::TensorList tensors, double std_dev, const at::Tensor& key, int64_t counter) {
  const ChaChaKey words = check_noise_arguments("gaussian_noise_", tensors, std_dev, key, counter);
  uint64_t block = static_cast<uint64_t>(counter);
  for (const at::Tensor& tensor : tensors) {
    AT_DISPATCH_FLOATING_TYPES(tensor.scalar_type(), "gaussian_noise_", [&] {
      add_noise(tensor.mutable_data_ptr<scalar_t>(), tensor.numel(), std_dev, words, block);
    });
    block += ceil_div<int64_t>(tensor.numel(), kNormalsPerBlock);
  }
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) { m.impl("gaussian_noise_", &dpcgan::cpu::gaussian_noise_cpu); }
