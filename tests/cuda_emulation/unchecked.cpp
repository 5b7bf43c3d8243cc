// Launchers with unit indices that the ops would refuse on the CPU: on a device nobody can look at them without
// waiting.
#include <vector>

#include "../../csrc/cuda/kernels.h"

extern "C" {

// x, g: (rows, 1, 1), a kernel of one tap, and x as a materialised gradient  form: 0 direct, 1 gram, 2 rows
// out: (units,)
void unchecked_sq_norm(const double* x, const double* g, int64_t rows, const int64_t* row_order,
                       const int64_t* unit_offsets, int64_t units, int form, double* out) {
  using namespace dpcgan::cuda;
  const dpcgan::ConvGeometry conv{rows, 1, 1, 1, 1, 1, 1, 0, 1, 1, dpcgan::BiasRole::kGrad};
  const NormTask task{static_cast<NormForm>(form), ElementType::kDouble, conv, {x, {1, 1, 1}, g, {1, 1, 1}}, 1};
  std::vector<double> workspace(sq_norm_workspace(&task, 1, units)), factor(units);
  std::vector<int> arrived(units);
  launch_sq_norm(&task, 1, rows, {row_order, unit_offsets, units}, 1.0, nullptr, arrived.data(), workspace.data(), out,
                 factor.data(), nullptr);
}
}
