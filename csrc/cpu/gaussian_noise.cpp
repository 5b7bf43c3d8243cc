// Gaussian noise from ChaCha20, added in double and rounded once to the public grid.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../checks.h"
#include "normal_blocks.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kTask = 2048;  // elements of one parallel task, whole ChaCha20 blocks

template <class T>
void add_noise(T* values, int64_t numel, double std_dev, const ChaChaKey& key, uint64_t counter) {
  at::parallel_for(0, ceil_div(numel, kTask), 1, [&](int64_t first, int64_t last) {
    simd_dispatch([&](auto width) DPCGAN_INLINE_BODY {
      const int64_t begin = first * kTask, size = std::min(last * kTask, numel) - begin;
      add_normals<decltype(width)::value>(values + begin, size, std_dev, key, counter + begin / kNormalsPerBlock);
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
