// Clip factors, and norms and weighted sums of materialised per-sample gradients.
#include <vector>

#include "op_common.h"

namespace dpcgan::cuda {

at::Tensor rows_sq_norm_cuda(at::TensorList grads, const std::optional<at::Tensor>& row_order,
                             const std::optional<at::Tensor>& unit_offsets) {
  const int64_t rows = check_per_sample_grads("rows_sq_norm", grads);
  const int64_t units = check_units("rows_sq_norm", row_order, unit_offsets, rows, grads[0].device());
  const c10::cuda::CUDAGuard guard(grads[0].device());
  at::Tensor out = empty_doubles({units}, grads[0]);
  if (units == 0) return out;
  std::vector<at::Tensor> contiguous;  // kept alive until the kernels are queued
  std::vector<int64_t> numel;
  for (const at::Tensor& grad : grads) {
    contiguous.push_back(grad.contiguous());
    numel.push_back(rows == 0 ? 0 : grad.numel() / rows);
  }
  const int64_t tensors = static_cast<int64_t>(grads.size());
  const at::Tensor workspace = empty_doubles({rows_sq_norm_workspace(numel.data(), tensors, units)}, out);
  AT_DISPATCH_FLOATING_TYPES(grads[0].scalar_type(), "rows_sq_norm", [&] {
    std::vector<const scalar_t*> data;
    for (const at::Tensor& grad : contiguous) data.push_back(grad.const_data_ptr<scalar_t>());
    launch_rows_sq_norm(data.data(), numel.data(), tensors, rows, unit_index(row_order, unit_offsets, units),
                        workspace.mutable_data_ptr<double>(), out.mutable_data_ptr<double>(),
                        c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

at::Tensor rows_weighted_sum_cuda(const at::Tensor& grad, const at::Tensor& factor) {
  const int64_t rows = check_per_sample_grads("rows_weighted_sum", {grad});
  check_row_factor("rows_weighted_sum", factor, rows, grad.device());
  const c10::cuda::CUDAGuard guard(grad.device());
  at::Tensor out = empty_doubles(grad.sizes().slice(1), grad);
  if (out.numel() == 0) return out;
  const at::Tensor contiguous = grad.contiguous();
  const at::Tensor workspace = empty_doubles({rows_weighted_sum_workspace(rows, out.numel())}, out);
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "rows_weighted_sum", [&] {
    launch_rows_weighted_sum(contiguous.const_data_ptr<scalar_t>(), factor.const_data_ptr<double>(), rows, out.numel(),
                             workspace.mutable_data_ptr<double>(), out.mutable_data_ptr<double>(),
                             c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

at::Tensor clip_factor_cuda(const at::Tensor& sq_norm, double max_grad_norm) {
  check_clip_factor("clip_factor", sq_norm, max_grad_norm);
  const c10::cuda::CUDAGuard guard(sq_norm.device());
  at::Tensor out = empty_doubles(sq_norm.sizes(), sq_norm);
  if (out.numel() == 0) return out;
  launch_clip_factor(sq_norm.const_data_ptr<double>(), sq_norm.numel(), max_grad_norm, out.mutable_data_ptr<double>(),
                     c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace dpcgan::cuda

TORCH_LIBRARY_IMPL(dpcgan_fast, CUDA, m) {
  m.impl("rows_sq_norm", &dpcgan::cuda::rows_sq_norm_cuda);
  m.impl("rows_weighted_sum", &dpcgan::cuda::rows_weighted_sum_cuda);
  m.impl("clip_factor", &dpcgan::cuda::clip_factor_cuda);
}
