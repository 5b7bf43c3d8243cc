// Launchers with unit indices that the ops would refuse on the CPU: on a device nobody can look at them without
// waiting.
#include <vector>

#include "../../csrc/cuda/kernels.h"

extern "C" {

// x, g: (rows, 1, 1), a kernel of one tap  out: (units,)
void unchecked_conv_sq_norm(const double* x, const double* g, int64_t rows, const int64_t* row_order,
                            const int64_t* unit_offsets, int64_t units, bool gram, double* out) {
  const dpcgan::ConvGeometry conv{rows, 1, 1, 1, 1, 1, 1, 0, 1, 1, dpcgan::BiasRole::kGrad};
  const dpcgan::ConvOperands<double> data{x, {1, 1, 1}, g, {1, 1, 1}};
  std::vector<double> workspace(dpcgan::cuda::conv_sq_norm_workspace(conv, units, gram));
  dpcgan::cuda::launch_conv_sq_norm(conv, data, {row_order, unit_offsets, units}, gram, workspace.data(), out, nullptr);
}

// grad: (rows, 1)  out: (units,)
void unchecked_rows_sq_norm(const double* grad, int64_t rows, const int64_t* row_order, const int64_t* unit_offsets,
                            int64_t units, double* out) {
  const int64_t numel = 1;
  std::vector<double> workspace(dpcgan::cuda::rows_sq_norm_workspace(&numel, 1, units));
  dpcgan::cuda::launch_rows_sq_norm(&grad, &numel, 1, rows, {row_order, unit_offsets, units}, workspace.data(), out,
                                    nullptr);
}
}
