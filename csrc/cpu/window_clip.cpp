// Clipped sums of convolutions in two and three dimensions, each row's gradients formed once: they stay in the cache
// until the norm over all layers is known.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../common/clip.h"
#include "parallel.h"
#include "window_operands.h"

namespace dpcgan::cpu {
namespace {

constexpr const char* kOp = "windows_clipped_sum";
constexpr int64_t kLeastRows = 4;  // of a worker, whose own sums are cleared and added up

// A layer, and where a row's gradients and a worker's sums of it begin: first the weight's, then the bias's.
struct Layer {
  WindowGeometry windows;
  bool bias;
  int64_t begin;

  int64_t weights() const { return windows.outputs * windows.taps(); }
  int64_t numel() const { return weights() + (bias ? windows.outputs : 0); }
};

// geometry: of each layer, kernel_size, stride, padding and dilation in its dimensions, groups, and 1 with a bias.
std::vector<Layer> check_layers(at::TensorList x, at::TensorList g, c10::IntArrayRef geometry) {
  TORCH_CHECK(!x.empty() && x.size() == g.size(), kOp, ": expected one g for each x, and at least one, got ", g.size(),
              " and ", x.size());
  std::vector<Layer> layers;
  int64_t begin = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t dimensions = static_cast<size_t>(std::max<int64_t>(0, x[i].dim() - 2));
    TORCH_CHECK(geometry.size() >= 4 * dimensions + 2, kOp, ": expected ", 4 * dimensions + 2,
                " numbers in geometry for layer ", i, ", got ", geometry.size());
    const auto part = [&](size_t which) { return geometry.slice(which * dimensions, dimensions); };
    const WindowGeometry windows =
        check_windows(kOp, x[i], g[i], part(0), part(1), part(2), part(3), geometry[4 * dimensions]);
    TORCH_CHECK(x[i].size(0) == x[0].size(0) && x[i].scalar_type() == x[0].scalar_type(), kOp,
                ": expected layers of the same rows and dtype, got ", x[i].sizes(), " ", x[i].scalar_type(), " and ",
                x[0].sizes(), " ", x[0].scalar_type());
    layers.push_back({windows, geometry[4 * dimensions + 1] != 0, begin});
    begin += layers.back().numel();
    geometry = geometry.slice(4 * dimensions + 2);
  }
  TORCH_CHECK(geometry.empty(), kOp, ": ", geometry.size(), " numbers of geometry are left after the last layer");
  return layers;
}

// sums[i] += factor * values[i]
template <class T>
DPCGAN_INLINE void add_times(const T* values, int64_t count, double factor, double* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += factor * static_cast<double>(values[i]);
}

template <class T>
class ClippedSum {
 public:
  ClippedSum(const std::vector<Layer>& layers, at::TensorList x, at::TensorList g, double max_grad_norm, double scale)
      : layers_(layers),
        numel_(layers.back().begin + layers.back().numel()),
        max_grad_norm_(max_grad_norm),
        scale_(scale) {
    const int64_t vector = vector_bytes();
    for (size_t i = 0; i < layers.size(); ++i) operands_.emplace_back(layers[i].windows, x[i], g[i], vector);
    for (const WindowOperands<T>& of : operands_) row_work_ += of.row_work();
  }

  // factor: (B,), which is written; returns the sums of all workers, (workers, numel).
  at::Tensor run(const double* others, double* factor) {
    const int64_t rows = layers_[0].windows.rows;
    workers_ = std::clamp<int64_t>(rows / std::max(kLeastRows, grain_size(row_work_)), 1, at::get_num_threads());
    const at::Tensor sums = at::empty({workers_, numel_}, operands_[0].x.options().dtype(at::kDouble));
    double* all = sums.mutable_data_ptr<double>();
    at::parallel_for(0, workers_, 1, [&](int64_t begin, int64_t end) {
      const at::AutoDispatchBelowADInplaceOrView plain;  // a thread has its own dispatch state, with autograd
      std::vector<at::Tensor> loaded;
      for (const WindowOperands<T>& of : operands_) loaded.push_back(of.allocate());
      const at::Tensor grads = at::empty({numel_}, operands_[0].x.options());
      for (int64_t worker = begin; worker < end; ++worker) {
        double* own = all + worker * numel_;
        std::fill_n(own, numel_, 0.0);
        operands_[0].dispatch([&](auto width) DPCGAN_INLINE_BODY {
          for (int64_t n = worker * rows / workers_; n < (worker + 1) * rows / workers_; ++n)
            add_row<decltype(width)::value>(n, others, factor, loaded, grads.mutable_data_ptr<T>(), own);
        });
      }
    });
    return sums;
  }

  int64_t workers() const { return workers_; }
  int64_t numel() const { return numel_; }

 private:
  template <int kBytes>
  DPCGAN_INLINE void add_row(int64_t n, const double* others, double* factor, const std::vector<at::Tensor>& loaded,
                             T* grads, double* sums) const {
    double sq_norm = others[n];
    for (size_t i = 0; i < layers_.size(); ++i) {
      operands_[i].prefetch(n + 1);
      T* own = grads + layers_[i].begin;
      if (operands_[i].plan.positions() == 0) {
        std::fill_n(own, layers_[i].numel(), T(0));
        continue;
      }
      sq_norm += form_row<kBytes>(operands_[i], n, loaded[i].mutable_data_ptr<T>(), own,
                                  layers_[i].bias ? own + layers_[i].weights() : nullptr);
    }
    factor[n] = clip_factor(sq_norm, max_grad_norm_);
    if (factor[n] != 0) add_times(grads, numel_, scale_ * factor[n], sums);  // 0 times NaN is NaN
  }

  const std::vector<Layer>& layers_;
  int64_t numel_, row_work_ = 0, workers_ = 1;
  double max_grad_norm_, scale_;
  std::vector<WindowOperands<T>> operands_;
};

// out, (outputs, channels, taps of a channel), from the workers' sums, which have channels last and are `step` apart.
void add_up_channels_first(const WindowGeometry& w, const double* sums, int64_t workers, int64_t step, double* out) {
  const int64_t channels = w.group_channels(), kernel = count_of(w.kernel);
  at::parallel_for(0, w.outputs, grain_size(w.taps() * workers), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t k = 0; k < kernel; ++k) {
          double sum = 0;
          for (int64_t worker = 0; worker < workers; ++worker)
            sum += sums[worker * step + o * w.taps() + k * channels + c];
          out[o * w.taps() + c * kernel + k] = sum;
        }
  });
}

// (outputs,), likewise.
void add_up(const double* sums, int64_t workers, int64_t step, int64_t count, double* out) {
  std::copy_n(sums, count, out);
  for (int64_t worker = 1; worker < workers; ++worker)
    for (int64_t i = 0; i < count; ++i) out[i] += sums[worker * step + i];
}

}  // namespace

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>> windows_clipped_sum_cpu(
    at::TensorList x, at::TensorList g, c10::IntArrayRef geometry, const at::Tensor& others_sq_norm,
    double max_grad_norm, double scale) {
  const std::vector<Layer> layers = check_layers(x, g, geometry);
  TORCH_CHECK(others_sq_norm.dim() == 1 && others_sq_norm.size(0) == layers[0].windows.rows &&
                  others_sq_norm.scalar_type() == at::kDouble && others_sq_norm.is_contiguous(),
              kOp, ": expected others_sq_norm to be a contiguous float64 vector of shape (", layers[0].windows.rows,
              ",), got shape ", others_sq_norm.sizes(), " of dtype ", others_sq_norm.scalar_type());
  check_clip_limits(kOp, max_grad_norm, std::nullopt, x[0].device());
  const at::TensorOptions doubles = x[0].options().dtype(at::kDouble);
  at::Tensor factor = at::empty({layers[0].windows.rows}, doubles);
  std::vector<at::Tensor> weights, biases;
  for (const Layer& layer : layers) {
    const WindowGeometry& w = layer.windows;
    weights.push_back(at::empty({w.outputs, w.group_channels(), count_of(w.kernel)}, doubles));
    biases.push_back(at::empty({layer.bias ? w.outputs : 0}, doubles));
  }
  AT_DISPATCH_FLOATING_TYPES(x[0].scalar_type(), kOp, [&] {
    ClippedSum<scalar_t> clipped(layers, x, g, max_grad_norm, scale);
    const at::Tensor sums = clipped.run(others_sq_norm.const_data_ptr<double>(), factor.mutable_data_ptr<double>());
    for (size_t i = 0; i < layers.size(); ++i) {
      const double* own = sums.const_data_ptr<double>() + layers[i].begin;
      add_up_channels_first(layers[i].windows, own, clipped.workers(), clipped.numel(),
                            weights[i].mutable_data_ptr<double>());
      add_up(own + layers[i].weights(), clipped.workers(), clipped.numel(), biases[i].numel(),
             biases[i].mutable_data_ptr<double>());
    }
  });
  return {factor, weights, biases};
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) { m.impl("windows_clipped_sum", &dpcgan::cpu::windows_clipped_sum_cpu); }
