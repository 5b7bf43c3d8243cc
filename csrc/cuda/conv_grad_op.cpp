// Per-sample and clip-weighted weight gradients of the conv family.
#include <tuple>

#include "op_common.h"

namespace dpcgan::cuda {

std::tuple<at::Tensor, at::Tensor> conv_per_sample_grad_cuda(const at::Tensor& x, const at::Tensor& g,
                                                             int64_t kernel_size, int64_t stride, int64_t padding,
                                                             int64_t dilation, int64_t groups, int64_t bias_role) {
  const ConvGeometry conv = check_conv("conv_per_sample_grad", x, g, kernel_size, stride, padding, dilation, groups,
                                       bias_role, Operands::kFloatsAndBFloat16);
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor weight = at::empty({conv.rows, conv.g_channels, conv.x_group_channels(), kernel_size}, grad_options(x));
  at::Tensor bias = at::empty({conv.rows, conv.bias_numel()}, grad_options(x));
  if (weight.numel() + bias.numel() == 0) return {weight, bias};
  with_operand_type(x, [&](auto element) {
    using T = decltype(element);
    launch_conv_per_sample_grad(conv, conv_operands<T>(x, g), weight.mutable_data_ptr<GradOf<T>>(),
                                bias.mutable_data_ptr<GradOf<T>>(), c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {weight, bias};
}

std::tuple<at::Tensor, at::Tensor> conv_weighted_grad_cuda(const at::Tensor& x, const at::Tensor& g,
                                                           const at::Tensor& factor, int64_t kernel_size,
                                                           int64_t stride, int64_t padding, int64_t dilation,
                                                           int64_t groups, int64_t bias_role) {
  const ConvGeometry conv = check_conv("conv_weighted_grad", x, g, kernel_size, stride, padding, dilation, groups,
                                       bias_role, Operands::kFloatsAndBFloat16);
  check_row_factor("conv_weighted_grad", factor, conv.rows, x.device());
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor weight = empty_doubles({conv.g_channels, conv.x_group_channels(), kernel_size}, x);
  at::Tensor bias = empty_doubles({conv.bias_numel()}, x);
  if (weight.numel() + bias.numel() == 0) return {weight, bias};
  const at::Tensor workspace = empty_doubles({conv_weighted_grad_workspace(conv)}, x);
  with_operand_type(x, [&](auto element) {
    launch_conv_weighted_grad(conv, conv_operands<decltype(element)>(x, g), factor.const_data_ptr<double>(),
                              workspace.mutable_data_ptr<double>(), weight.mutable_data_ptr<double>(),
                              bias.mutable_data_ptr<double>(), c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {weight, bias};
}

}  // namespace dpcgan::cuda

TORCH_LIBRARY_IMPL(dpcgan_fast, CUDA, m) {
  m.impl("conv_per_sample_grad", &dpcgan::cuda::conv_per_sample_grad_cuda);
  m.impl("conv_weighted_grad", &dpcgan::cuda::conv_weighted_grad_cuda);
}
