// Clip factors, and weighted sums of materialised per-sample gradients.
#include "../common/clip.h"
#include "rows.cuh"

namespace dpcgan::cuda {
namespace {

// out: (slices, numel)
template <class T>
__global__ void __launch_bounds__(kThreads)
    rows_weighted_sum_kernel(const T* grad, const double* factor, const RowOwners slices, int64_t numel, double* out) {
  const int64_t blocks = ceil_div<int64_t>(numel, kThreads);  // of one slice
  for (int64_t item = blockIdx.x; item < slices.owners * blocks; item += gridDim.x) {
    const int64_t slice = item / blocks, i = item % blocks * kThreads + threadIdx.x;
    const RowSpan rows = slices.span(slice);
    if (i >= numel) continue;
    double sum = 0;
    for (int64_t row = rows.begin; row < rows.begin + rows.count; ++row)
      if (factor[row] != 0) sum += factor[row] * grad[row * numel + i];  // 0 times NaN is NaN
    out[slice * numel + i] = sum;
  }
}

__global__ void __launch_bounds__(kThreads)
    clip_factor_kernel(const double* sq_norm, int64_t units, double max_grad_norm, const int64_t* valid,
                       double* factor) {
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < units;
       u += static_cast<int64_t>(gridDim.x) * kThreads)
    factor[u] = valid != nullptr && u >= *valid ? 0.0 : clip_factor(sq_norm[u], max_grad_norm);
}

RowSlices weighted_slices(int64_t rows, int64_t numel) {
  constexpr int64_t kMinRows = 16;  // shorter slices would cost more to add up than they save
  return RowSlices(rows, ceil_div<int64_t>(numel, kThreads), kMinRows);
}

}  // namespace

int64_t rows_weighted_sum_workspace(int64_t rows, int64_t numel) {
  const int64_t slices = weighted_slices(rows, numel).slices;
  return slices == 1 ? 0 : slices * numel;
}

template <class T>
void launch_rows_weighted_sum(const T* grad, const double* factor, int64_t rows, int64_t numel, double* workspace,
                              double* out, cudaStream_t stream) {
  const RowSlices cut = weighted_slices(rows, numel);
  const int64_t blocks = ceil_div<int64_t>(numel, kThreads);
  launch(rows_weighted_sum_kernel<T>, cut.slices * blocks, kThreads, stream, grad, factor, sliced_rows(rows, cut),
         numel, cut.slices == 1 ? out : workspace);
  if (cut.slices > 1)
    launch(sum_slices_kernel<kThreads>, blocks, kThreads, stream, workspace, cut.slices, out, numel, nullptr, 0);
}

void launch_clip_factor(const double* sq_norm, int64_t units, double max_grad_norm, const int64_t* valid,
                        double* factor, cudaStream_t stream) {
  launch(clip_factor_kernel, ceil_div<int64_t>(units, kThreads), kThreads, stream, sq_norm, units, max_grad_norm, valid,
         factor);
}

#define DPCGAN_INSTANTIATE(T) \
  template void launch_rows_weighted_sum<T>(const T*, const double*, int64_t, int64_t, double*, double*, cudaStream_t);
DPCGAN_INSTANTIATE(float)
DPCGAN_INSTANTIATE(double)
#undef DPCGAN_INSTANTIATE

}  // namespace dpcgan::cuda
