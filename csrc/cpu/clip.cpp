// Clip factors, and norms and weighted sums of materialised per-sample gradients.
#include "../common/clip.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>

#include "../checks.h"
#include "../common/cancellation.h"
#include "parallel.h"
#include "simd.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kColumnBlock = 2048;  // columns of a gradient that one task sums, to stay in the first-level cache
constexpr int64_t kSums = 32;           // sums of squares side by side: one alone would wait for each addition

DPCGAN_INLINE double sum_of_squares(const double* values, int64_t size) {
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= size; i += kSums)
    for (int64_t lane = 0; lane < kSums; ++lane) sums[lane] += values[i + lane] * values[i + lane];
  for (int64_t lane = 0; i < size; ++i, ++lane) sums[lane] += values[i] * values[i];
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// Some columns of the sum of a unit's rows.
struct ColumnSums {
  double sum[kColumnBlock];
  double sizes[kColumnBlock];  // sums of absolute values
};

template <class T>
DPCGAN_INLINE double sq_norm_of_sum(const T* grads, int64_t numel, const int64_t* rows, int64_t count,
                                    ColumnSums& columns) {
  double total = 0, total_sizes = 0;
  double* sum = columns.sum;
  double* sizes = columns.sizes;
  for (int64_t begin = 0; begin < numel; begin += kColumnBlock) {
    const int64_t size = std::min(kColumnBlock, numel - begin);
    const T* first = grads + rows[0] * numel + begin;
    for (int64_t i = 0; i < size; ++i) sum[i] = first[i];
    if (count > 1) {
      for (int64_t i = 0; i < size; ++i) sizes[i] = std::abs(sum[i]);
      for (int64_t r = 1; r < count; ++r) {
        const T* row = grads + rows[r] * numel + begin;
        for (int64_t i = 0; i < size; ++i) {
          sum[i] += row[i];
          sizes[i] += std::abs(static_cast<double>(row[i]));
        }
      }
      total_sizes += sum_of_squares(sizes, size);
    }
    total += sum_of_squares(sum, size);
  }
  return at_least_share(total, total_sizes);
}

template <class T>
void add_rows_sq_norm(const T* grads, int64_t rows, int64_t numel, const int64_t* order, const int64_t* offsets,
                      int64_t units, double* out) {
  const int64_t unit_work = units == 0 ? 0 : numel * ceil_div(rows, units);
  at::parallel_for(0, units, grain_size(unit_work), [&](int64_t begin, int64_t end) {
    ColumnSums columns;
    simd_dispatch([&](auto) DPCGAN_INLINE_BODY {
      for (int64_t u = begin; u < end; ++u) {
        const int64_t count = order == nullptr ? 1 : offsets[u + 1] - offsets[u];
        if (count > 0)
          out[u] += sq_norm_of_sum(grads, numel, order == nullptr ? &u : order + offsets[u], count, columns);
      }
    });
  });
}

template <class T>
void rows_weighted_sum(const T* grad, int64_t numel, const double* factor, int64_t rows, double* out) {
  const int64_t block_work = rows * std::min(numel, kColumnBlock);
  at::parallel_for(0, ceil_div(numel, kColumnBlock), grain_size(block_work), [&](int64_t first, int64_t last) {
    simd_dispatch([&](auto) DPCGAN_INLINE_BODY {
      const int64_t begin = first * kColumnBlock, end = std::min(last * kColumnBlock, numel);
      for (int64_t n = 0; n < rows; ++n) {
        if (factor[n] == 0) continue;  // 0 times NaN is NaN
        const T* row = grad + n * numel;
        for (int64_t i = begin; i < end; ++i) out[i] += factor[n] * row[i];
      }
    });
  });
}

// Rows one after another, whatever the order of the elements in each; a copy only where there is none.
at::Tensor dense_rows(const at::Tensor& grad) {
  const int64_t rows = grad.size(0);
  const bool dense = grad.is_non_overlapping_and_dense() && (rows < 2 || grad.stride(0) == grad.numel() / rows);
  return dense ? grad : grad.contiguous();
}

}  // namespace

at::Tensor rows_sq_norm_cpu(at::TensorList grads, const std::optional<at::Tensor>& row_order,
                            const std::optional<at::Tensor>& unit_offsets) {
  const int64_t rows = check_per_sample_grads("rows_sq_norm", grads);
  const int64_t units = check_units("rows_sq_norm", row_order, unit_offsets, rows, grads[0].device());
  at::Tensor out = at::zeros({units}, grads[0].options().dtype(at::kDouble));
  for (const at::Tensor& grad : grads) {
    const at::Tensor dense = dense_rows(grad);
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "rows_sq_norm", [&] {
      add_rows_sq_norm(dense.const_data_ptr<scalar_t>(), rows, rows == 0 ? 0 : grad.numel() / rows,
                       row_order ? row_order->const_data_ptr<int64_t>() : nullptr,
                       unit_offsets ? unit_offsets->const_data_ptr<int64_t>() : nullptr, units,
                       out.mutable_data_ptr<double>());
    });
  }
  return out;
}

at::Tensor rows_weighted_sum_cpu(const at::Tensor& grad, const at::Tensor& factor) {
  const int64_t rows = check_per_sample_grads("rows_weighted_sum", {grad});
  check_row_factor("rows_weighted_sum", factor, rows, grad.device());
  const at::Tensor dense = dense_rows(grad);
  const at::Tensor out =
      at::empty_strided(dense.sizes().slice(1), dense.strides().slice(1), grad.options().dtype(at::kDouble)).zero_();
  AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "rows_weighted_sum", [&] {
    rows_weighted_sum(dense.const_data_ptr<scalar_t>(), out.numel(), factor.const_data_ptr<double>(), rows,
                      out.mutable_data_ptr<double>());
  });
  return out.contiguous();
}

at::Tensor clip_factor_cpu(const at::Tensor& sq_norm, double max_grad_norm, const std::optional<at::Tensor>& valid) {
  check_clip_factor("clip_factor", sq_norm, max_grad_norm, valid);
  at::Tensor out = at::empty_like(sq_norm);
  const double* in = sq_norm.const_data_ptr<double>();
  double* factor = out.mutable_data_ptr<double>();
  const int64_t units =
      valid ? std::clamp<int64_t>(*valid->const_data_ptr<int64_t>(), 0, sq_norm.numel()) : sq_norm.numel();
  for (int64_t u = 0; u < units; ++u) factor[u] = clip_factor(in[u], max_grad_norm);
  std::fill(factor + units, factor + sq_norm.numel(), 0.0);
  return out;
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) {
  m.impl("rows_sq_norm", &dpcgan::cpu::rows_sq_norm_cpu);
  m.impl("rows_weighted_sum", &dpcgan::cpu::rows_weighted_sum_cpu);
  m.impl("clip_factor", &dpcgan::cpu::clip_factor_cpu);
}
