// Gaussian noise from ChaCha20, added in double and rounded once to the public grid.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "../checks.h"
#include "normal_blocks.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kTask = 2048;  // elements of one parallel task, whole ChaCha20 blocks

// Some elements of one tensor, and the block that their noise begins with.
struct Task {
  const at::Tensor* tensor;
  int64_t begin, numel;
  uint64_t counter;
};

// Those of all tensors: most parameters are too small to be split, and are many.
std::vector<Task> tasks_of(at::TensorList tensors, uint64_t counter) {
  std::vector<Task> tasks;
  for (const at::Tensor& tensor : tensors) {
    for (int64_t begin = 0; begin < tensor.numel(); begin += kTask)
      tasks.push_back({&tensor, begin, std::min(kTask, tensor.numel() - begin), counter + begin / kNormalsPerBlock});
    counter += ceil_div<int64_t>(tensor.numel(), kNormalsPerBlock);
  }
  return tasks;
}

void add_noise(const Task& task, double std_dev, const ChaChaKey& key) {
  AT_DISPATCH_FLOATING_TYPES(task.tensor->scalar_type(), "gaussian_noise_", [&] {
    scalar_t* values = task.tensor->mutable_data_ptr<scalar_t>() + task.begin;
    simd_dispatch([&](auto width) DPCGAN_INLINE_BODY {
      add_normals<decltype(width)::value>(values, task.numel, std_dev, key, task.counter);
    });
  });
}

}  // namespace

void gaussian_noise_cpu(at::TensorList tensors, double std_dev, const at::Tensor& key, int64_t counter) {
  const ChaChaKey words = check_noise_arguments("gaussian_noise_", tensors, std_dev, key, counter);
  const std::vector<Task> tasks = tasks_of(tensors, static_cast<uint64_t>(counter));
  at::parallel_for(0, static_cast<int64_t>(tasks.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) add_noise(tasks[i], std_dev, words);
  });
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) { m.impl("gaussian_noise_", &dpcgan::cpu::gaussian_noise_cpu); }
