// One launch over all parameters: clipped sum, Gaussian noise, division, and the optimizer's update.
//
// The noise is that of gaussian_noise_ for the same key and counter. A thread takes one ChaCha20 block, that is,
// kNormalsPerBlock elements that follow one another in a parameter.
#include "../common/gaussian.h"
#include "kernels.h"
#include "launch.cuh"

namespace dpcgan::cuda {
namespace {

constexpr int kTableTensors = 40;  // of one launch: the table travels as a kernel argument, of which there are 4 KB

struct UpdateTable {
  UpdateTensor tensor[kTableTensors];
  int64_t first_block[kTableTensors + 1];  // of each tensor, counted over all launches; then the end
  int tensors;
};
static_assert(sizeof(UpdateTable) + sizeof(UpdateControl) <= 4096 - 64, "all arguments must fit into 4 KB");

template <Optimizer kOptimizer>
__global__ void __launch_bounds__(kThreads)
    noisy_update_kernel(const UpdateTable table, const UpdateControl given, const UpdateControl* memory, double std_dev,
                        double grid) {
  const UpdateControl& control = memory == nullptr ? given : *memory;
  if (control.armed == 0) return;
  const UpdateRule rule(kOptimizer, control.settings);
  const double inverse_grid = 1.0 / grid;  // exact: the grid is a power of two
  int t = 0;
  for (int64_t block = table.first_block[0] + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       block < table.first_block[table.tensors]; block += static_cast<int64_t>(gridDim.x) * kThreads) {
    while (block >= table.first_block[t + 1]) ++t;
    const UpdateTensor& tensor = table.tensor[t];
    const int64_t first = (block - table.first_block[t]) * kNormalsPerBlock;
    double normals[kNormalsPerBlock] = {};
    if (std_dev > 0) {
      uint32_t words[kChaChaWords];
      chacha20_block(control.key, kNoiseNonce, control.counter + static_cast<uint64_t>(block), words);
#pragma unroll  // so that `words` and `normals` stay in registers
      for (int pair = 0; pair < kNormalsPerBlock / 2; ++pair)
        box_muller(words[4 * pair], words[4 * pair + 1], words[4 * pair + 2], words[4 * pair + 3], normals[2 * pair],
                   normals[2 * pair + 1]);
    }
#pragma unroll
    for (int i = 0; i < kNormalsPerBlock; ++i) {
      const int64_t at = first + i;
      if (at >= tensor.numel) break;
      double sum = tensor.sum[at];
      if (std_dev > 0) sum = round_to_grid(sum + std_dev * normals[i], grid, inverse_grid);
      const float grad =
          private_gradient(sum, control.divisor, tensor.public_sum == nullptr ? nullptr : tensor.public_sum + at,
                           control.public_divisor);
      update_element<kOptimizer>(rule, grad, at, tensor.parameter, tensor.first, tensor.second);
      clamp_element(at, tensor.clamp, tensor.parameter);
    }
  }
}

__global__ void disarm_kernel(UpdateControl* control) { *control = UpdateControl{}; }

}  // namespace

void launch_noisy_update(const UpdateTensor* tensors, int64_t count, Optimizer optimizer, double std_dev,
                         const UpdateControl& given, UpdateControl* memory, cudaStream_t stream) {
  const double grid = std_dev > 0 ? noise_grid(std_dev) : 1.0;
  int64_t block = 0;
  for (int64_t begin = 0; begin < count; begin += kTableTensors) {
    UpdateTable table = {};
    table.tensors = static_cast<int>(smaller(kTableTensors, count - begin));
    for (int t = 0; t < table.tensors; ++t) {
      table.tensor[t] = tensors[begin + t];
      table.first_block[t] = block;
      block += ceil_div<int64_t>(table.tensor[t].numel, kNormalsPerBlock);
    }
    table.first_block[table.tensors] = block;
    const int64_t blocks = ceil_div<int64_t>(block - table.first_block[0], kThreads);
    with_optimizer(optimizer, [&](auto rule) {
      launch(noisy_update_kernel<decltype(rule)::value>, blocks, kThreads, stream, table, given, memory, std_dev, grid);
    });
  }
  if (memory != nullptr) launch(disarm_kernel, 1, 1, stream, memory);
}

}  // namespace dpcgan::cuda
