// Per-sample gradients of the affine pair of GroupNorm (and InstanceNorm: groups = channels) and LayerNorm.
#include <tuple>

#include "op_common.h"

namespace dpcgan::cuda {

std::tuple<at::Tensor, at::Tensor> group_norm_per_sample_grad_cuda(const at::Tensor& x, const at::Tensor& g,
                                                                   int64_t groups, double eps) {
  check_norm_affine("group_norm_per_sample_grad", x, g, groups, eps);
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor weight = at::empty({x.size(0), x.size(1)}, x.options());
  at::Tensor bias = at::empty({x.size(0), x.size(1)}, x.options());
  if (weight.numel() == 0) return {weight, bias};
  const at::Tensor xc = x.contiguous(), gc = g.contiguous();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "group_norm_per_sample_grad", [&] {
    launch_group_norm_per_sample_grad(xc.const_data_ptr<scalar_t>(), gc.const_data_ptr<scalar_t>(), x.size(0),
                                      x.size(1), x.size(2), groups, eps, weight.mutable_data_ptr<scalar_t>(),
                                      bias.mutable_data_ptr<scalar_t>(), c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {weight, bias};
}

std::tuple<at::Tensor, at::Tensor> layer_norm_per_sample_grad_cuda(const at::Tensor& x, const at::Tensor& g,
                                                                   double eps) {
  check_norm_affine("layer_norm_per_sample_grad", x, g, 1, eps);
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor weight = at::empty({x.size(0), x.size(2)}, x.options());
  at::Tensor bias = at::empty({x.size(0), x.size(2)}, x.options());
  if (weight.numel() == 0) return {weight, bias};
  const at::Tensor xc = x.contiguous(), gc = g.contiguous();
  const at::Tensor workspace = empty_doubles({layer_norm_workspace(x.size(0), x.size(1))}, x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "layer_norm_per_sample_grad", [&] {
    launch_layer_norm_per_sample_grad(xc.const_data_ptr<scalar_t>(), gc.const_data_ptr<scalar_t>(), x.size(0),
                                      x.size(1), x.size(2), eps, workspace.mutable_data_ptr<double>(),
                                      weight.mutable_data_ptr<scalar_t>(), bias.mutable_data_ptr<scalar_t>(),
                                      c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {weight, bias};
}

}  // namespace dpcgan::cuda

TORCH_LIBRARY_IMPL(dpcgan_fast, CUDA, m) {
  m.impl("group_norm_per_sample_grad", &dpcgan::cuda::group_norm_per_sample_grad_cuda);
  m.impl("layer_norm_per_sample_grad", &dpcgan::cuda::layer_norm_per_sample_grad_cuda);
}
