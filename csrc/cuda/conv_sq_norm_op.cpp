// Squared norms of the per-unit weight gradients of the conv family.
#include <string_view>
#include <tuple>

#include "op_common.h"

namespace dpcgan::cuda {

std::tuple<at::Tensor, at::Tensor> conv_sq_norm_cuda(const at::Tensor& x, const at::Tensor& g, int64_t kernel_size,
                                                     int64_t stride, int64_t padding, int64_t dilation, int64_t groups,
                                                     int64_t bias_role, std::string_view mode,
                                                     const std::optional<at::Tensor>& row_order,
                                                     const std::optional<at::Tensor>& unit_offsets) {
  const ConvGeometry conv = check_conv("conv_sq_norm", x, g, kernel_size, stride, padding, dilation, groups, bias_role);
  const bool gram = check_norm_mode("conv_sq_norm", mode);
  const int64_t units = check_units("conv_sq_norm", row_order, unit_offsets, conv.rows, x.device());
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor out = empty_doubles({units}, x);
  // No unit has to be summed again in double: the device sums in double throughout.
  at::Tensor cancelled = at::zeros({units}, x.options().dtype(at::kBool));
  if (units == 0) return {out, cancelled};
  const at::Tensor workspace = empty_doubles({conv_sq_norm_workspace(conv, units, gram)}, x);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "conv_sq_norm", [&] {
    launch_conv_sq_norm(conv, conv_operands<scalar_t>(x, g), unit_index(row_order, unit_offsets, units), gram,
                        workspace.mutable_data_ptr<double>(), out.mutable_data_ptr<double>(),
                        c10::cuda::getCurrentCUDAStream());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {out, cancelled};
}

}  // namespace dpcgan::cuda

TORCH_LIBRARY_IMPL(dpcgan_fast, CUDA, m) { m.impl("conv_sq_norm", &dpcgan::cuda::conv_sq_norm_cuda); }
