// Clip factors, and weighted sums of materialised per-sample gradients.
#include "op_common.h"

namespace dpcgan::cuda {

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

at::Tensor clip_factor_cuda(const at::Tensor& sq_norm, double max_grad_norm, const std::optional<at::Tensor>& valid) {
  check_clip_factor("clip_factor", sq_norm, max_grad_norm, valid);
  const c10::cuda::CUDAGuard guard(sq_norm.device());
  at::Tensor out = empty_doubles(sq_norm.sizes(), sq_norm);
  if (out.numel() == 0) return out;
  launch_clip_factor(sq_norm.const_data_ptr<double>(), sq_norm.numel(), max_grad_norm,
                     valid ? valid->const_data_ptr<int64_t>() : nullptr, out.mutable_data_ptr<double>(),
                     c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace dpcgan::cuda

TORCH_LIBRARY_IMPL(dpcgan_fast, CUDA, m) {
  m.impl("rows_weighted_sum", &dpcgan::cuda::rows_weighted_sum_cuda);
  m.impl("clip_factor", &dpcgan::cuda::clip_factor_cuda);
}
