// Gaussian noise from ChaCha20, added in double and rounded once to the public grid.
#include "../common/gaussian.h"
#include "op_common.h"

namespace dpcgan::cuda {

// The key is on the CPU and travels as a kernel argument; it never lies in device memory that a tensor could show.
void gaussian_noise_cuda(at::TensorList tensors, double std_dev, const at::Tensor& key, int64_t counter) {
  const ChaChaKey words = check_noise_arguments("gaussian_noise_", tensors, std_dev, key, counter);
  if (tensors.empty()) return;
  const c10::cuda::CUDAGuard guard(tensors[0].device());
  uint64_t block = static_cast<uint64_t>(counter);
  for (const at::Tensor& tensor : tensors) {
    if (tensor.numel() == 0) continue;
    AT_DISPATCH_FLOATING_TYPES(tensor.scalar_type(), "gaussian_noise_", [&] {
      launch_gaussian_noise(tensor.mutable_data_ptr<scalar_t>(), tensor.numel(), std_dev, words, block,
                            c10::cuda::getCurrentCUDAStream());
    });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    block += static_cast<uint64_t>(ceil_div<int64_t>(tensor.numel(), kNormalsPerBlock));
  }
}

}  // namespace dpcgan::cuda

TORCH_LIBRARY_IMPL(dpcgan_fast, CUDA, m) { m.impl("gaussian_noise_", &dpcgan::cuda::gaussian_noise_cuda); }
