// Squared norms of every unit's gradient: of one layer, of materialised gradients, and of all that a step has.
#include <limits>
#include <string_view>
#include <tuple>
#include <vector>

#include "step_tasks.h"

namespace dpcgan::cuda {
namespace {

struct NormsAndFactors {
  at::Tensor sq_norm;
  at::Tensor factor;
};

NormsAndFactors measure(const std::vector<NormTask>& tasks, int64_t rows, const UnitIndex& index, double max_grad_norm,
                        const int64_t* valid, const at::Tensor& like) {
  const c10::cuda::CUDAGuard guard(like.device());
  const NormsAndFactors out{empty_doubles({index.units}, like), empty_doubles({index.units}, like)};
  if (index.units == 0) return out;
  const int64_t count = static_cast<int64_t>(tasks.size());
  const at::Tensor arrived = at::zeros({index.units}, like.options().dtype(at::kInt));
  const at::Tensor workspace = empty_doubles({sq_norm_workspace(tasks.data(), count, index.units)}, like);
  launch_sq_norm(tasks.data(), count, rows, index, max_grad_norm, valid, arrived.mutable_data_ptr<int>(),
                 workspace.mutable_data_ptr<double>(), out.sq_norm.mutable_data_ptr<double>(),
                 out.factor.mutable_data_ptr<double>(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

}  // namespace

at::Tensor conv_sq_norm_cuda(const at::Tensor& x, const at::Tensor& g, int64_t kernel_size, int64_t stride,
                             int64_t padding, int64_t dilation, int64_t groups, int64_t bias_role,
                             std::string_view mode, const std::optional<at::Tensor>& row_order,
                             const std::optional<at::Tensor>& unit_offsets) {
  const ConvGeometry conv = check_conv("conv_sq_norm", x, g, kernel_size, stride, padding, dilation, groups, bias_role,
                                       Operands::kFloatsAndBFloat16);
  const bool gram = check_norm_mode("conv_sq_norm", mode);
  const int64_t units = check_units("conv_sq_norm", row_order, unit_offsets, conv.rows, x.device());
  const NormForm form = gram ? NormForm::kGram : NormForm::kDirect;
  return measure({layer_task(conv, x, g, form)}, conv.rows, unit_index(row_order, unit_offsets, units), kNoLimit,
                 nullptr, x)
      .sq_norm;
}

at::Tensor rows_sq_norm_cuda(at::TensorList grads, const std::optional<at::Tensor>& row_order,
                             const std::optional<at::Tensor>& unit_offsets) {
  const int64_t rows = check_per_sample_grads("rows_sq_norm", grads);
  const int64_t units = check_units("rows_sq_norm", row_order, unit_offsets, rows, grads[0].device());
  const std::vector<at::Tensor> kept = contiguous(grads);
  std::vector<NormTask> tasks;
  for (const at::Tensor& grad : kept) tasks.push_back(rows_task(grad, rows));
  return measure(tasks, rows, unit_index(row_order, unit_offsets, units), kNoLimit, nullptr, grads[0]).sq_norm;
}

std::tuple<at::Tensor, at::Tensor> step_clip_factor_cuda(at::TensorList x, at::TensorList g,
                                                         c10::ArrayRef<int64_t> geometry, at::TensorList grads,
                                                         double max_grad_norm,
                                                         const std::optional<at::Tensor>& row_order,
                                                         const std::optional<at::Tensor>& unit_offsets,
                                                         const std::optional<at::Tensor>& valid) {
  const char* op = "step_clip_factor";
  const StepTasks step(op, x, g, geometry, grads);
  const at::Tensor& like = step.like;
  const int64_t rows = step.rows;
  const int64_t units = check_units(op, row_order, unit_offsets, rows, like.device());
  const int64_t* count = check_clip_limits(op, max_grad_norm, valid, like.device());
  const NormsAndFactors out =
      measure(step.tasks, rows, unit_index(row_order, unit_offsets, units), max_grad_norm, count, like);
  return {out.sq_norm, out.factor};
}

}  // namespace dpcgan::cuda

TORCH_LIBRARY_IMPL(dpcgan_fast, CUDA, m) {
  m.impl("conv_sq_norm", &dpcgan::cuda::conv_sq_norm_cuda);
  m.impl("rows_sq_norm", &dpcgan::cuda::rows_sq_norm_cuda);
  m.impl("step_clip_factor", &dpcgan::cuda::step_clip_factor_cuda);
}
