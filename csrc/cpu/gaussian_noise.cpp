// Gaussian noise from ChaCha20, added in double and rounded once to the public grid.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../checks.h"
#include "../common/gaussian.h"
#include "simd.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kTaskBlocks = 256;  // ChaCha20 blocks of one parallel task
constexpr int kLanes = 16;  // blocks computed side by side; fewer, and the compiler unrolls instead of vectorising

// Normals of kLanes consecutive blocks, block-major.
DPCGAN_INLINE void normal_blocks(const ChaChaKey& key, uint64_t counter, double (&out)[kLanes * kNormalsPerBlock]) {
  uint32_t words[kChaChaWords][kLanes];
  double normals[kNormalsPerBlock][kLanes];
  chacha20_blocks<kLanes>(key, kNoiseNonce, counter, words);
  for (int pair = 0; pair < kNormalsPerBlock / 2; ++pair)
    for (int lane = 0; lane < kLanes; ++lane)
      box_muller(words[4 * pair][lane], words[4 * pair + 1][lane], words[4 * pair + 2][lane], words[4 * pair + 3][lane],
                 normals[2 * pair][lane], normals[2 * pair + 1][lane]);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < kNormalsPerBlock; ++i) out[lane * kNormalsPerBlock + i] = normals[i][lane];
}

template <class T>
void add_noise(T* values, int64_t numel, double std_dev, const ChaChaKey& key, uint64_t counter) {
  const double grid = noise_grid(std_dev), inverse_grid = 1.0 / grid;
  const int64_t blocks = ceil_div<int64_t>(numel, kNormalsPerBlock);
  at::parallel_for(0, ceil_div(blocks, kTaskBlocks), 1, [&](int64_t first, int64_t last) {
    simd_dispatch([&](auto) DPCGAN_INLINE_BODY {
      double normals[kLanes * kNormalsPerBlock];
      const int64_t end = std::min(last * kTaskBlocks, blocks);
      for (int64_t block = first * kTaskBlocks; block < end; block += kLanes) {
        normal_blocks(key, counter + block, normals);
        const int64_t begin = block * kNormalsPerBlock;
        const int64_t size =
            std::min<int64_t>((std::min<int64_t>(end, block + kLanes)) * kNormalsPerBlock, numel) - begin;
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
