// Per-sample and clip-weighted weight gradients of the conv family.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../checks.h"
#include "conv_contract.h"
#include "outer_products.h"
#include "parallel.h"

namespace dpcgan::cpu {
namespace {

// Sums are in double throughout: what a row adds must not depend on which others there are, and must be what was
// measured, also by rounding, which whoever makes the data may have point one way.
constexpr int64_t kBlockRows = 16;
constexpr int64_t kBlockElements = 32 * 1024;  // packed taps of a block, to stay in the second-level cache

template <class T>
ConvOperands<T> operands(const at::Tensor& x, const at::Tensor& g) {
  return {x.const_data_ptr<T>(), operand_strides(x), g.const_data_ptr<T>(), operand_strides(g)};
}

template <class T>
void per_sample_grad(const ConvGeometry& conv, const ConvOperands<T>& data, T* weight, T* bias) {
  at::parallel_for(0, conv.rows, grain_size(conv.weight_numel() * conv.g_length), [&](int64_t begin, int64_t end) {
    PackedRows<T> packed;
    std::vector<double> bias_sum(conv.bias_numel());
    for (int64_t n = begin; n < end; ++n) {
      simd_dispatch([&](auto width) DPCGAN_INLINE_BODY {
        constexpr int kBytes = decltype(width)::value;
        for (int64_t group = 0; group < conv.groups; ++group) {
          T* out = weight + n * conv.weight_numel() + group * conv.g_group_channels() * conv.taps();
          pack_rows(conv, data, group, &n, 1, nullptr, VectorOf<T, kBytes>::kLanes, packed);
          contract<T, kBytes>(conv, packed,
                              [&](int64_t o, int64_t tap, int64_t outputs, int64_t taps, const T* tile,
                                  int64_t tile_stride) DPCGAN_INLINE_BODY {
                                for (int64_t i = 0; i < outputs; ++i)
                                  for (int64_t l = 0; l < taps; ++l)
                                    out[(o + i) * conv.taps() + tap + l] = tile[i * tile_stride + l];
                              });
        }
      });
      std::fill(bias_sum.begin(), bias_sum.end(), 0.0);
      add_bias_grad(conv, data, n, 1.0, bias_sum.data());
      for (int64_t c = 0; c < conv.bias_numel(); ++c) bias[n * conv.bias_numel() + c] = static_cast<T>(bias_sum[c]);
    }
  });
}

// Adds the weight gradients of some rows to `out`.
template <class T>
void add_block(const ConvGeometry& conv, const ConvOperands<T>& data, const int64_t* rows, int64_t count,
               const double* factor, PackedRows<double>& packed, double* out) {
  simd_dispatch([&](auto width) DPCGAN_INLINE_BODY {
    constexpr int kBytes = decltype(width)::value;
    for (int64_t group = 0; group < conv.groups; ++group) {
      double* group_out = out + group * conv.g_group_channels() * conv.taps();
      pack_rows(conv, data, group, rows, count, factor, VectorOf<double, kBytes>::kLanes, packed);
      contract<double, kBytes>(conv, packed,
                               [&](int64_t o, int64_t tap, int64_t outputs, int64_t taps, const double* tile,
                                   int64_t tile_stride) DPCGAN_INLINE_BODY {
                                 for (int64_t i = 0; i < outputs; ++i)
                                   for (int64_t l = 0; l < taps; ++l)
                                     group_out[(o + i) * conv.taps() + tap + l] += tile[i * tile_stride + l];
                               });
    }
  });
}

template <class T>
void weighted_grad(const ConvGeometry& conv, const ConvOperands<T>& data, const double* factor, double* weight,
                   double* bias) {
  std::vector<int64_t> rows;  // those of factor 0 (padding, or non-finite: 0 times NaN is NaN) are never read
  for (int64_t n = 0; n < conv.rows; ++n)
    if (factor[n] != 0) rows.push_back(n);
  const int64_t used = static_cast<int64_t>(rows.size()), numel = conv.weight_numel() + conv.bias_numel();
  const int64_t row_elements = std::max<int64_t>(1, conv.g_length * conv.taps());
  const int64_t block_rows = std::clamp<int64_t>(kBlockElements / row_elements, 1, kBlockRows);
  const int64_t tasks = conv.rows * conv.g_length * conv.weight_numel() / kTaskWork;
  const int64_t workers = std::clamp<int64_t>(std::min(tasks, ceil_div(used, block_rows)), 1, at::get_num_threads());
  std::vector<double> partial(workers * numel, 0.0);
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    PackedRows<double> packed;
    for (int64_t worker = begin; worker < end; ++worker) {
      double* sum = partial.data() + worker * numel;
      for (int64_t first = worker * block_rows; first < used; first += workers * block_rows) {
        const int64_t count = std::min(block_rows, used - first);
        add_block(conv, data, rows.data() + first, count, factor, packed, sum);
        for (int64_t r = first; r < first + count; ++r)
          add_bias_grad(conv, data, rows[r], factor[rows[r]], sum + conv.weight_numel());
      }
    }
  });
  for (int64_t worker = 0; worker < workers; ++worker) {
    const double* sum = partial.data() + worker * numel;
    for (int64_t i = 0; i < conv.weight_numel(); ++i) weight[i] += sum[i];
    for (int64_t i = 0; i < conv.bias_numel(); ++i) bias[i] += sum[conv.weight_numel() + i];
  }
}

// A linear layer without positions.
bool is_matrix_product(const ConvGeometry& conv) {
  return conv.g_length == 1 && conv.x_length == 1 && conv.kernel_size == 1 && conv.padding == 0 && conv.groups == 1 &&
         conv.bias != BiasRole::kInput;
}

template <class T>
std::tuple<at::Tensor, at::Tensor> weighted_matrix_product(const ConvGeometry& conv, const ConvOperands<T>& data,
                                                           const double* factor) {
  at::Tensor weight = at::empty({conv.g_channels, conv.x_channels, 1}, at::kDouble);
  at::Tensor bias = at::empty({conv.bias_numel()}, at::kDouble);
  simd_dispatch([&](auto width) DPCGAN_INLINE_BODY {
    sum_outer_products<decltype(width)::value>(conv, data, factor, weight.mutable_data_ptr<double>(),
                                               conv.bias_numel() > 0 ? bias.mutable_data_ptr<double>() : nullptr);
  });
  return {weight, bias};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> conv_per_sample_grad_cpu(const at::Tensor& x, const at::Tensor& g,
                                                            int64_t kernel_size, int64_t stride, int64_t padding,
                                                            int64_t dilation, int64_t groups, int64_t bias_role) {
  const ConvGeometry conv =
      check_conv("conv_per_sample_grad", x, g, kernel_size, stride, padding, dilation, groups, bias_role);
  at::Tensor weight = at::empty({conv.rows, conv.g_channels, conv.x_group_channels(), kernel_size}, x.options());
  at::Tensor bias = at::empty({conv.rows, conv.bias_numel()}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "conv_per_sample_grad", [&] {
    per_sample_grad(conv, operands<scalar_t>(x, g), weight.mutable_data_ptr<scalar_t>(),
                    bias.mutable_data_ptr<scalar_t>());
  });
  return {weight, bias};
}

std::tuple<at::Tensor, at::Tensor> conv_weighted_grad_cpu(const at::Tensor& x, const at::Tensor& g,
                                                          const at::Tensor& factor, int64_t kernel_size, int64_t stride,
                                                          int64_t padding, int64_t dilation, int64_t groups,
                                                          int64_t bias_role) {
  const ConvGeometry conv =
      check_conv("conv_weighted_grad", x, g, kernel_size, stride, padding, dilation, groups, bias_role);
  check_row_factor("conv_weighted_grad", factor, conv.rows, x.device());
  if (is_matrix_product(conv))
    return AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "conv_weighted_grad", [&] {
      return weighted_matrix_product(conv, operands<scalar_t>(x, g), factor.const_data_ptr<double>());
    });
  const at::TensorOptions options = x.options().dtype(at::kDouble);
  at::Tensor weight = at::zeros({conv.g_channels, conv.x_group_channels(), kernel_size}, options);
  at::Tensor bias = at::zeros({conv.bias_numel()}, options);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "conv_weighted_grad", [&] {
    weighted_grad(conv, operands<scalar_t>(x, g), factor.const_data_ptr<double>(), weight.mutable_data_ptr<double>(),
                  bias.mutable_data_ptr<double>());
  });
  return {weight, bias};
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) {
  m.impl("conv_per_sample_grad", &dpcgan::cpu::conv_per_sample_grad_cpu);
  m.impl("conv_weighted_grad", &dpcgan::cpu::conv_weighted_grad_cpu);
}
