// Weight gradients of convolutions in two and three dimensions: of each row, their squared norms, and their weighted
// sum.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "parallel.h"
#include "window_tiles.h"

namespace dpcgan::cpu {
namespace {

Extents extents(const char* op, const char* name, c10::IntArrayRef given, size_t dimensions, int64_t first) {
  TORCH_CHECK(given.size() == dimensions, op, ": expected ", dimensions, " numbers in ", name, ", got ", given.size());
  Extents all{first, first, first};
  std::copy(given.begin(), given.end(), all.end() - static_cast<int64_t>(dimensions));
  return all;
}

WindowGeometry check_windows(const char* op, const at::Tensor& x, const at::Tensor& g, c10::IntArrayRef kernel_size,
                             c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                             int64_t groups) {
  TORCH_CHECK(x.dim() == g.dim() && (x.dim() == 4 || x.dim() == 5) && x.size(0) == g.size(0) &&
                  x.scalar_type() == g.scalar_type(),
              op,
              ": expected x (B, C, ...) and g (B, O, ...) of one dtype, in two or three "
              "dimensions, got ",
              x.sizes(), " ", x.scalar_type(), " and ", g.sizes(), " ", g.scalar_type());
  const size_t dimensions = static_cast<size_t>(x.dim() - 2);
  const WindowGeometry windows{x.size(0),
                               x.size(1),
                               g.size(1),
                               groups,
                               extents(op, "x", x.sizes().slice(2), dimensions, 1),
                               extents(op, "g", g.sizes().slice(2), dimensions, 1),
                               extents(op, "kernel_size", kernel_size, dimensions, 1),
                               extents(op, "stride", stride, dimensions, 1),
                               extents(op, "padding", padding, dimensions, 0),
                               extents(op, "dilation", dilation, dimensions, 1)};
  TORCH_CHECK(groups > 0 && windows.channels % groups == 0 && windows.outputs % groups == 0, op,
              ": expected groups to divide ", windows.channels, " and ", windows.outputs, " channels, got ", groups);
  constexpr int64_t kMost = 1LL << 31;  // beyond, products overflow
  for (size_t i = 0; i < kDimensions; ++i) {
    TORCH_CHECK(std::max({windows.kernel[i], windows.stride[i], windows.padding[i], windows.dilation[i]}) < kMost, op,
                ": expected kernel_size, stride, padding and dilation below 2^31, got ", kernel_size, ", ", stride,
                ", ", padding, " and ", dilation);
    const int64_t seen = windows.stride[i] * (windows.positions[i] - 1) + windows.dilation[i] * (windows.kernel[i] - 1);
    TORCH_CHECK(windows.kernel[i] > 0 && windows.stride[i] > 0 && windows.dilation[i] > 0 && windows.padding[i] >= 0 &&
                    seen < windows.size[i] + 2 * windows.padding[i],
                op, ": the windows of g's ", g.sizes().slice(2), " positions reach beyond x's ", x.sizes().slice(2),
                " with kernel_size ", kernel_size, ", stride ", stride, ", padding ", padding, ", dilation ", dilation);
  }
  return windows;
}

int64_t vector_bytes() {
  int64_t bytes = 0;
  simd_dispatch([&](auto width) DPCGAN_INLINE_BODY { bytes = decltype(width)::value; });
  return bytes;
}

// Both operands, one row after another, and what is the same for all rows.
template <class T>
struct Operands {
  static constexpr int64_t kSize = sizeof(T), kLanes = 64 / kSize;  // of the widest vectors

  const WindowGeometry w;
  const int64_t bytes;  // of a vector; the level may change in between
  const WindowPlan plan;
  const at::Tensor x, g;

  Operands(const WindowGeometry& geometry, const at::Tensor& given_x, const at::Tensor& given_g)
      : w(geometry), bytes(vector_bytes()), plan(w, bytes / kSize), x(given_x.contiguous()), g(given_g.contiguous()) {}

  const T* grads(int64_t row, int64_t group) const {
    return g.const_data_ptr<T>() + (row * w.groups + group) * w.group_outputs() * count_of(w.positions);
  }
  int64_t row_work() const { return w.outputs * w.taps() * count_of(w.positions); }
  // Vectors reach beyond both ends; what is packed begins at a cache line.
  int64_t copy_numel() const { return ceil_div(w.padded_numel() + 2 * kLanes, kLanes) * kLanes; }
  // Elements of the memory that a row's input is loaded to.
  int64_t loaded_numel() const { return copy_numel() + plan.packed_numel(kLanes); }
  // Such memory for some rows: zeros, as margins are.
  at::Tensor allocate(int64_t rows) const { return at::zeros({rows * loaded_numel()}, x.options()); }
  const T* input(int64_t row, int64_t group) const {
    return x.const_data_ptr<T>() + (row * w.groups + group) * w.group_channels() * count_of(w.size);
  }
  // Has the cache fetch a row's input, of which a load takes a little from many places at a time.
  void prefetch(int64_t row) const {
    if (row >= w.rows) return;
    const T *from = input(row, 0), *end = input(row + 1, 0);
    for (; from < end; from += kLanes) __builtin_prefetch(from);
  }
  // Loads a row's input; what tiles read of it.
  template <int kBytes>
  DPCGAN_INLINE const T* load(int64_t row, int64_t group, T* to) const {
    const T* from = input(row, group);
    T* copied = to + kLanes;
    copy_channels_last<kBytes>(w, from, copied);
    if (!plan.packed) return copied;
    pack_windows<kBytes>(plan, copied, to + copy_numel());
    return to + copy_numel();
  }
  void dispatch(auto body) const { lanes_dispatch(bytes / static_cast<int64_t>(sizeof(float)), body); }
};

// What is formed row by row; all but the norms may be nothing.
template <class T>
struct Formed {
  T* weights;       // (B, outputs, taps)
  T* biases;        // (B, outputs): sums of g over positions
  double* sq_norm;  // (B,), of both; added to
};

template <int kBytes, class T>
DPCGAN_INLINE void form_rows(const Operands<T>& of, const Formed<T>& out, T* loaded, int64_t begin, int64_t end) {
  const WindowGeometry& w = of.w;
  const int64_t taps = w.taps(), outputs = w.group_outputs(), positions = count_of(w.positions);
  for (int64_t n = begin; n < end; ++n) {
    of.prefetch(n + 1);
    alignas(kBytes) double sq_norms[VectorOf<double, kBytes>::kLanes] = {};
    for (int64_t group = 0; group < w.groups; ++group) {
      const WindowRow<T> row{of.template load<kBytes>(n, group, loaded), of.grads(n, group)};
      const int64_t first = (n * w.groups + group) * outputs;  // output
      if (out.biases != nullptr) {
        T* biases = out.biases + first;
        sum_lines<kBytes>(row.grads, of.grads(w.rows, 0), outputs, positions, biases);
        for (int64_t o = 0; o < outputs; ++o) sq_norms[0] += static_cast<double>(biases[o]) * biases[o];
      }
      T* weights = out.weights == nullptr ? nullptr : out.weights + first * taps;
      each_tile<kBytes, T>(of.plan, outputs, [&](auto tile) DPCGAN_INLINE_BODY {
        tile.sum(of.plan, row);
        if (weights != nullptr) tile.keep(taps, weights);
        tile.measure(sq_norms);
      });
    }
    for (double part : sq_norms) out.sq_norm[n] += part;
  }
}

template <class T>
void form(const WindowGeometry& w, const at::Tensor& x, const at::Tensor& g, const Formed<T>& out) {
  const Operands<T> of(w, x, g);
  at::parallel_for(0, w.rows, grain_size(of.row_work()), [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView plain;  // a thread has its own dispatch state, with autograd
    const at::Tensor loaded = of.allocate(1);
    of.dispatch([&](auto width) DPCGAN_INLINE_BODY {
      form_rows<decltype(width)::value>(of, out, loaded.mutable_data_ptr<T>(), begin, end);
    });
  });
}

constexpr int64_t kMostRows = 32;  // whose inputs are loaded at a time

// As many as a second-level cache holds beside their output gradients.
template <class T>
int64_t rows_at_a_time(const Operands<T>& of) {
  constexpr int64_t kBytesHeld = 1 << 18;
  const int64_t row = (of.loaded_numel() + of.w.group_outputs() * count_of(of.w.positions)) * sizeof(T);
  return std::clamp<int64_t>(kBytesHeld / row, 1, kMostRows);
}

// Adds factor[n] times the gradients of rows [begin, end) to sums, (outputs, taps); rows of factor 0 are not read.
template <int kBytes, class T>
DPCGAN_INLINE void add_rows(const Operands<T>& of, const double* factor, double* sums, T* loaded, int64_t begin,
                            int64_t end) {
  const WindowGeometry& w = of.w;
  const int64_t taps = w.taps(), at_a_time = rows_at_a_time(of);
  for (int64_t first = begin; first < end; first += at_a_time)
    for (int64_t group = 0; group < w.groups; ++group) {
      const int64_t last = std::min(first + at_a_time, end);
      const T* inputs[kMostRows];
      for (int64_t n = first; n < last; ++n)
        if (factor[n] != 0) {
          of.prefetch(n + 1);
          inputs[n - first] = of.template load<kBytes>(n, group, loaded + (n - first) * of.loaded_numel());
        }
      double* to = sums + group * w.group_outputs() * taps;
      each_tile<kBytes, T>(of.plan, w.group_outputs(), [&](auto tile) DPCGAN_INLINE_BODY {
        alignas(kBytes) double total[decltype(tile)::kNumel] = {};
        for (int64_t n = first; n < last; ++n) {
          if (factor[n] == 0) continue;
          tile.sum(of.plan, WindowRow<T>{inputs[n - first], of.grads(n, group)});
          tile.accumulate(factor[n], total);
        }
        tile.add_to(taps, total, to);
      });
    }
}

// out, (outputs, channels, taps of a channel), from the workers' sums, which have channels last.
void add_up_channels_first(const WindowGeometry& w, const double* sums, int64_t workers, double* out) {
  const int64_t channels = w.group_channels(), kernel = count_of(w.kernel), numel = w.outputs * w.taps();
  at::parallel_for(0, w.outputs, grain_size(w.taps() * workers), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t k = 0; k < kernel; ++k) {
          double sum = 0;
          for (int64_t worker = 0; worker < workers; ++worker)
            sum += sums[worker * numel + o * w.taps() + k * channels + c];
          out[o * w.taps() + c * kernel + k] = sum;
        }
  });
}

template <class T>
void weighted_grad(const WindowGeometry& w, const at::Tensor& x, const at::Tensor& g, const double* factor,
                   double* out) {
  const Operands<T> of(w, x, g);
  const int64_t workers = std::clamp<int64_t>(w.rows / grain_size(of.row_work()), 1, at::get_num_threads());
  const int64_t numel = w.outputs * w.taps();
  const std::unique_ptr<double[]> sums(new double[workers * numel]);
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView plain;  // a thread has its own dispatch state, with autograd
    const at::Tensor loaded = of.allocate(rows_at_a_time(of));
    for (int64_t worker = begin; worker < end; ++worker) {
      double* own = sums.get() + worker * numel;
      std::fill_n(own, numel, 0.0);
      of.dispatch([&](auto width) DPCGAN_INLINE_BODY {
        add_rows<decltype(width)::value>(of, factor, own, loaded.mutable_data_ptr<T>(), worker * w.rows / workers,
                                         (worker + 1) * w.rows / workers);
      });
    }
  });
  add_up_channels_first(w, sums.get(), workers, out);
}

std::vector<int64_t> channels_last_shape(const WindowGeometry& w, c10::IntArrayRef kernel_size) {
  std::vector<int64_t> shape{w.outputs};
  shape.insert(shape.end(), kernel_size.begin(), kernel_size.end());
  shape.push_back(w.group_channels());
  return shape;
}

// An output that the caller made.
void check_out(const char* name, const at::Tensor& out, c10::IntArrayRef shape, at::ScalarType type) {
  TORCH_CHECK(out.sizes() == shape && out.scalar_type() == type && out.is_contiguous(),
              "window_per_sample_grad_: expected a contiguous ", name, " of shape ", shape, " and type ", type,
              ", got ", out.sizes(), " ", out.scalar_type());
}

}  // namespace

void window_per_sample_grad_cpu(at::Tensor out, at::Tensor sq_norm, const std::optional<at::Tensor>& bias,
                                const at::Tensor& x, const at::Tensor& g, c10::IntArrayRef kernel_size,
                                c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                                int64_t groups) {
  constexpr const char* op = "window_per_sample_grad_";
  const WindowGeometry windows = check_windows(op, x, g, kernel_size, stride, padding, dilation, groups);
  std::vector<int64_t> shape = channels_last_shape(windows, kernel_size);
  shape.insert(shape.begin(), windows.rows);
  check_out("out", out, shape, x.scalar_type());
  check_out("sq_norm", sq_norm, {windows.rows}, at::kDouble);
  if (bias) check_out("bias", *bias, {windows.rows, windows.outputs}, x.scalar_type());
  if (count_of(windows.positions) == 0) {
    out.zero_();
    if (bias) bias->zero_();
    return;
  }
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    form<scalar_t>(windows, x, g,
                   {out.mutable_data_ptr<scalar_t>(), bias ? bias->mutable_data_ptr<scalar_t>() : nullptr,
                    sq_norm.mutable_data_ptr<double>()});
  });
}

std::tuple<at::Tensor, at::Tensor> window_sq_norm_cpu(const at::Tensor& x, const at::Tensor& g,
                                                      c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                                                      c10::IntArrayRef padding, c10::IntArrayRef dilation,
                                                      int64_t groups, bool bias) {
  constexpr const char* op = "window_sq_norm";
  const WindowGeometry windows = check_windows(op, x, g, kernel_size, stride, padding, dilation, groups);
  at::Tensor sq_norm = at::zeros({windows.rows}, x.options().dtype(at::kDouble));
  at::Tensor sums = at::zeros({windows.rows, bias ? windows.outputs : 0}, x.options());
  if (count_of(windows.positions) == 0) return {sq_norm, sums};
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    scalar_t* biases = bias ? sums.mutable_data_ptr<scalar_t>() : nullptr;
    form<scalar_t>(windows, x, g, {nullptr, biases, sq_norm.mutable_data_ptr<double>()});
  });
  return {sq_norm, sums};
}

at::Tensor window_weighted_grad_cpu(const at::Tensor& x, const at::Tensor& g, const at::Tensor& factor,
                                    c10::IntArrayRef kernel_size, c10::IntArrayRef stride, c10::IntArrayRef padding,
                                    c10::IntArrayRef dilation, int64_t groups) {
  constexpr const char* op = "window_weighted_grad";
  const WindowGeometry windows = check_windows(op, x, g, kernel_size, stride, padding, dilation, groups);
  check_row_factor(op, factor, windows.rows, x.device());
  std::vector<int64_t> shape{windows.outputs, windows.group_channels()};
  shape.insert(shape.end(), kernel_size.begin(), kernel_size.end());
  at::Tensor out = at::zeros(shape, x.options().dtype(at::kDouble));
  if (windows.rows > 0 && count_of(windows.positions) > 0)
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
      weighted_grad<scalar_t>(windows, x, g, factor.const_data_ptr<double>(), out.mutable_data_ptr<double>());
    });
  return out;
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) {
  m.impl("window_per_sample_grad_", &dpcgan::cpu::window_per_sample_grad_cpu);
  m.impl("window_sq_norm", &dpcgan::cpu::window_sq_norm_cpu);
  m.impl("window_weighted_grad", &dpcgan::cpu::window_weighted_grad_cpu);
}
