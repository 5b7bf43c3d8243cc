// Per-sample gradients of the affine pair of GroupNorm (and InstanceNorm: groups = channels) and LayerNorm.
//
// weight[n, c] = sum_s g[n, c, s] xhat[n, c, s],  bias[n, c] = sum_s g[n, c, s],  xhat = (x - mean) / sqrt(var + eps)
// with mean and biased variance over what the layer normalises. Sums are in double.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "parallel.h"

namespace dpcgan::cpu {
namespace {

struct Moments {
  double mean;
  double inverse_std;
};

template <class T>
Moments moments(const T* values, int64_t size, double eps) {
  if (size == 0) return {0.0, 0.0};
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += values[i];
  const double mean = sum / static_cast<double>(size);
  double sq_sum = 0;
  for (int64_t i = 0; i < size; ++i) sq_sum += (values[i] - mean) * (values[i] - mean);
  return {mean, 1.0 / std::sqrt(sq_sum / static_cast<double>(size) + eps)};
}

template <class T>
void group_norm(const T* x, const T* g, int64_t rows, int64_t channels, int64_t length, int64_t groups, double eps,
                T* weight, T* bias) {
  const int64_t group_channels = channels / groups;
  at::parallel_for(0, rows * groups, grain_size(4 * group_channels * length), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * group_channels;  // (row, group) pairs are contiguous blocks of channels
      const Moments m = moments(x + first * length, group_channels * length, eps);
      for (int64_t c = first; c < first + group_channels; ++c) {
        double weight_sum = 0, bias_sum = 0;
        for (int64_t s = 0; s < length; ++s) {
          weight_sum += g[c * length + s] * (x[c * length + s] - m.mean);
          bias_sum += g[c * length + s];
        }
        weight[c] = static_cast<T>(weight_sum * m.inverse_std);
        bias[c] = static_cast<T>(bias_sum);
      }
    }
  });
}

template <class T>
void layer_norm(const T* x, const T* g, int64_t rows, int64_t positions, int64_t features, double eps, T* weight,
                T* bias) {
  at::parallel_for(0, rows, grain_size(4 * positions * features), [&](int64_t begin, int64_t end) {
    std::vector<double> weight_sum(features), bias_sum(features);
    for (int64_t n = begin; n < end; ++n) {
      std::fill(weight_sum.begin(), weight_sum.end(), 0.0);
      std::fill(bias_sum.begin(), bias_sum.end(), 0.0);
      for (int64_t s = 0; s < positions; ++s) {
        const T* line = x + (n * positions + s) * features;
        const T* grad = g + (n * positions + s) * features;
        const Moments m = moments(line, features, eps);
        for (int64_t f = 0; f < features; ++f) {
          weight_sum[f] += grad[f] * (line[f] - m.mean) * m.inverse_std;
          bias_sum[f] += grad[f];
        }
      }
      for (int64_t f = 0; f < features; ++f) {
        weight[n * features + f] = static_cast<T>(weight_sum[f]);
        bias[n * features + f] = static_cast<T>(bias_sum[f]);
      }
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> group_norm_per_sample_grad_cpu(const at::Tensor& x, const at::Tensor& g,
                                                                  int64_t groups, double eps) {
  check_norm_affine("group_norm_per_sample_grad", x, g, groups, eps);
  const at::Tensor xc = x.contiguous(), gc = g.contiguous();
  at::Tensor weight = at::empty({x.size(0), x.size(1)}, x.options());
  at::Tensor bias = at::empty_like(weight);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "group_norm_per_sample_grad", [&] {
    group_norm(xc.const_data_ptr<scalar_t>(), gc.const_data_ptr<scalar_t>(), x.size(0), x.size(1), x.size(2), groups,
               eps, weight.mutable_data_ptr<scalar_t>(), bias.mutable_data_ptr<scalar_t>());
  });
  return {weight, bias};
}

std::tuple<at::Tensor, at::Tensor> layer_norm_per_sample_grad_cpu(const at::Tensor& x, const at::Tensor& g,
                                                                  double eps) {
  check_norm_affine("layer_norm_per_sample_grad", x, g, 1, eps);
  const at::Tensor xc = x.contiguous(), gc = g.contiguous();
  at::Tensor weight = at::empty({x.size(0), x.size(2)}, x.options());
  at::Tensor bias = at::empty_like(weight);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "layer_norm_per_sample_grad", [&] {
    layer_norm(xc.const_data_ptr<scalar_t>(), gc.const_data_ptr<scalar_t>(), x.size(0), x.size(1), x.size(2), eps,
               weight.mutable_data_ptr<scalar_t>(), bias.mutable_data_ptr<scalar_t>());
  });
  return {weight, bias};
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) {
  m.impl("group_norm_per_sample_grad", &dpcgan::cpu::group_norm_per_sample_grad_cpu);
  m.impl("layer_norm_per_sample_grad", &dpcgan::cpu::layer_norm_per_sample_grad_cpu);
}
