// Per-sample gradients of the affine pair of GroupNorm (and InstanceNorm: groups = channels) and LayerNorm.
#include <tuple>

#include "op_common.h"

namespace dpcgan::cuda {

std::tuple<at::Tensor, at::Tensor> group_norm_per_sample_grad_cuda(const at::Tensor& x, const at::Tensor& g,
                                                                   int64_t groups, double eps) {
  check_norm_affine("group_norm_per_sample_grad", x, g, groups, eps, Operands::kFloatsAndBFloat16);
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor weight = at::empty({x.size(0), x.size(1)}, grad_options(x));
  at::Tensor bias = at::empty({x.size(0), x.size(1)}, grad_options(x));
  if (weight.numel() == 0) return {weight, bias};
  const at::Tensor xc = x.contiguous(), gc = g.contiguous();
  with_operand_type(x, [&](auto element) {
    using T = decltype(element);
    launch_group_norm_per_sample_grad(operand_data<T>(xc), operand_data<T>(gc), x.size(0), x.size(1), x.size(2), groups,
                                      eps, weight.mutable_data_ptr<GradOf<T>>(), bias.mutable_data_ptr<GradOf<T>>(),
                                      c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {weight, bias};
}

std::tuple<at::Tensor, at::Tensor> layer_norm_per_sample_grad_cuda(const at::Tensor& x, const at::Tensor& g,
                                                                   double eps) {
  check_norm_affine("layer_norm_per_sample_grad", x, g, 1, eps, Operands::kFloatsAndBFloat16);
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor weight = at::empty({x.size(0), x.size(2)}, grad_options(x));
  at::Tensor bias = at::empty({x.size(0), x.size(2)}, grad_options(x));
  if (weight.numel() == 0) return {weight, bias};
  const at::Tensor xc = x.contiguous(), gc = g.contiguous();
  const at::Tensor workspace = empty_doubles({layer_norm_workspace(x.size(0), x.size(1))}, x);
  with_operand_type(x, [&](auto element) {
    using T = decltype(element);
    launch_layer_norm_per_sample_grad(operand_data<T>(xc), operand_data<T>(gc), x.size(0), x.size(1), x.size(2), eps,
                                      workspace.mutable_data_ptr<double>(), weight.mutable_data_ptr<GradOf<T>>(),
                                      bias.mutable_data_ptr<GradOf<T>>(), c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {weight, bias};
}

}  // namespace dpcgan::cuda

TORCH_LIBRARY_IMPL(dpcgan_fast, CUDA, m) {
  m.impl("group_norm_per_sample_grad", &dpcgan::cuda::group_norm_per_sample_grad_cuda);
  m.impl("layer_norm_per_sample_grad", &dpcgan::cuda::layer_norm_per_sample_grad_cuda);
}
