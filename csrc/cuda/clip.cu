// Clip factors, and norms and weighted sums of materialised per-sample gradients.
#include "../common/clip.h"
#include "rows.cuh"

namespace dpcgan::cuda {
namespace {

// How many blocks share the columns of one unit's gradient in one tensor.
int64_t column_parts(int64_t numel, int64_t units) {
  return larger(1, smaller(ceil_div<int64_t>(numel, kThreads), kTargetBlocks / larger(1, units)));
}

// partial: (units, all_parts), of which this tensor's begin at first_part
template <class T>
__global__ void __launch_bounds__(kThreads)
    rows_sq_norm_kernel(const T* grad, int64_t numel, const RowOwners units, int64_t parts, int64_t first_part,
                        int64_t all_parts, double* partial) {
  for (int64_t item = blockIdx.x; item < units.owners * parts; item += gridDim.x) {
    const int64_t unit = item / parts, part = item % parts;
    const RowSpan rows = units.span(unit);
    double squares = 0;
    for (int64_t i = part * kThreads + threadIdx.x; i < numel; i += parts * kThreads) {
      double sum = 0;
      for (int64_t r = 0; r < rows.count; ++r) {
        const int64_t row = rows.row(r);
        sum += row == kNoRow ? kNan : static_cast<double>(grad[row * numel + i]);
      }
      squares += sum * sum;
    }
    squares = block_sum<kThreads>(squares);
    if (threadIdx.x == 0) partial[unit * all_parts + first_part + part] = squares;
  }
}

// A warp adds the partial sums of one unit.
__global__ void __launch_bounds__(kThreads)
    rows_sq_norm_sum_kernel(const double* partial, int64_t units, int64_t parts, double* out) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarpSize);
  for (int64_t unit = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarpSize; unit < units;
       unit += warps) {
    double sum = 0;
    for (int64_t part = lane; part < parts; part += kWarpSize) sum += partial[unit * parts + part];
    sum = warp_sum(sum);
    if (lane == 0) out[unit] = sum;
  }
}

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
    clip_factor_kernel(const double* sq_norm, int64_t units, double max_grad_norm, double* factor) {
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; u < units;
       u += static_cast<int64_t>(gridDim.x) * kThreads)
    factor[u] = clip_factor(sq_norm[u], max_grad_norm);
}

RowSlices weighted_slices(int64_t rows, int64_t numel) {
  constexpr int64_t kMinRows = 16;  // shorter slices would cost more to add up than they save
  return RowSlices(rows, ceil_div<int64_t>(numel, kThreads), kMinRows);
}

}  // namespace

int64_t rows_sq_norm_workspace(const int64_t* numel, int64_t tensors, int64_t units) {
  int64_t parts = 0;
  for (int64_t i = 0; i < tensors; ++i) parts += column_parts(numel[i], units);
  return units * parts;
}

template <class T>
void launch_rows_sq_norm(const T* const* grads, const int64_t* numel, int64_t tensors, int64_t rows,
                         const UnitIndex& index, double* workspace, double* out, cudaStream_t stream) {
  const RowOwners units = unit_rows(rows, index);
  const int64_t all_parts = rows_sq_norm_workspace(numel, tensors, index.units) / larger(1, index.units);
  int64_t first_part = 0;
  for (int64_t i = 0; i < tensors; ++i) {
    const int64_t parts = column_parts(numel[i], index.units);
    launch(rows_sq_norm_kernel<T>, index.units * parts, kThreads, stream, grads[i], numel[i], units, parts, first_part,
           all_parts, workspace);
    first_part += parts;
  }
  launch(rows_sq_norm_sum_kernel, ceil_div<int64_t>(index.units, kThreads / kWarpSize), kThreads, stream, workspace,
         index.units, all_parts, out);
}

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

void launch_clip_factor(const double* sq_norm, int64_t units, double max_grad_norm, double* factor,
                        cudaStream_t stream) {
  launch(clip_factor_kernel, ceil_div<int64_t>(units, kThreads), kThreads, stream, sq_norm, units, max_grad_norm,
         factor);
}

#define DPCGAN_INSTANTIATE(T)                                                                                        \
  template void launch_rows_sq_norm<T>(const T* const*, const int64_t*, int64_t, int64_t, const UnitIndex&, double*, \
                                       double*, cudaStream_t);                                                       \
  template void launch_rows_weighted_sum<T>(const T*, const double*, int64_t, int64_t, double*, double*, cudaStream_t);
DPCGAN_INSTANTIATE(float)
DPCGAN_INSTANTIATE(double)
#undef DPCGAN_INSTANTIATE

}  // namespace dpcgan::cuda
