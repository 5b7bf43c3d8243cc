// The clipped sum of a step over all layers and materialised gradients.
#include <vector>

#include "step_tasks.h"

namespace dpcgan::cuda {
namespace {

constexpr const char* kOp = "step_weighted_sum_";

double* checked_total(const at::Tensor& total, int64_t numel, const at::Tensor& like) {
  TORCH_CHECK(total.scalar_type() == at::kDouble && total.is_contiguous() && total.numel() == numel &&
                  total.device() == like.device(),
              kOp, ": expected a contiguous float64 sum of ", numel, " numbers on ", like.device(), ", got ",
              total.sizes(), " of ", total.scalar_type(), " on ", total.device());
  return numel == 0 ? nullptr : total.mutable_data_ptr<double>();
}

}  // namespace

void step_weighted_sum_cuda(at::TensorList x, at::TensorList g, c10::ArrayRef<int64_t> geometry, at::TensorList grads,
                            const at::Tensor& factor, at::TensorList weights, at::TensorList biases,
                            at::TensorList sums) {
  const StepTasks step(kOp, x, g, geometry, grads);
  check_row_factor(kOp, factor, step.rows, step.like.device());
  TORCH_CHECK(weights.size() == x.size() && biases.size() == x.size() && sums.size() == grads.size(), kOp,
              ": expected one sum for each weight, bias and gradient, got ", weights.size(), ", ", biases.size(),
              " and ", sums.size());
  std::vector<SumTask> tasks;
  for (size_t i = 0; i < step.tasks.size(); ++i) {
    const NormTask& task = step.tasks[i];
    if (i < x.size()) {
      tasks.push_back({task, checked_total(weights[i], task.conv.weight_numel(), step.like),
                       checked_total(biases[i], task.conv.bias_numel(), step.like)});
    } else {
      const at::Tensor& total = sums[i - x.size()];
      tasks.push_back({task, checked_total(total, step.rows == 0 ? total.numel() : task.numel, step.like), nullptr});
    }
  }
  if (step.rows == 0) return;
  const c10::cuda::CUDAGuard guard(step.like.device());
  const int64_t count = static_cast<int64_t>(tasks.size());
  const at::Tensor workspace = empty_doubles({step_sum_workspace(tasks.data(), count, step.rows)}, step.like);
  launch_step_sum(tasks.data(), count, step.rows, factor.const_data_ptr<double>(), workspace.mutable_data_ptr<double>(),
                  c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace dpcgan::cuda

TORCH_LIBRARY_IMPL(dpcgan_fast, CUDA, m) { m.impl("step_weighted_sum_", &dpcgan::cuda::step_weighted_sum_cuda); }
