// Both operands of the weight gradients of convolutions in two or three dimensions, checked and loaded row by row, and
// the gradient of one row.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "window_tiles.h"

namespace dpcgan::cpu {

inline Extents extents(const char* op, const char* name, c10::IntArrayRef given, size_t dimensions, int64_t first) {
  TORCH_CHECK(given.size() == dimensions, op, ": expected ", dimensions, " numbers in ", name, ", got ", given.size());
  Extents all{first, first, first};
  std::copy(given.begin(), given.end(), all.end() - static_cast<int64_t>(dimensions));
  return all;
}

inline WindowGeometry check_windows(const char* op, const at::Tensor& x, const at::Tensor& g,
                                    c10::IntArrayRef kernel_size, c10::IntArrayRef stride, c10::IntArrayRef padding,
                                    c10::IntArrayRef dilation, int64_t groups) {
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
  double padded_numel = static_cast<double>(windows.channels);
  for (const int64_t size : windows.padded()) padded_numel *= static_cast<double>(size);
  TORCH_CHECK(padded_numel < 0x1p60, op, ": a row of x's ", x.sizes().slice(1), " with padding ", padding,
              " has more elements than can be counted");
  return windows;
}

inline int64_t vector_bytes() {
  int64_t bytes = 0;
  simd_dispatch([&](auto width) DPCGAN_INLINE_BODY { bytes = decltype(width)::value; });
  return bytes;
}

// Both operands, one row after another, and what is the same for all rows.
template <class T>
struct WindowOperands {
  static constexpr int64_t kSize = sizeof(T), kLanes = 64 / kSize;  // of the widest vectors

  const WindowGeometry w;
  const int64_t bytes;  // of a vector
  const WindowPlan plan;
  const at::Tensor x, g;

  // vector: bytes of one, the same for all operands of a call, in the midst of which the level may change
  WindowOperands(const WindowGeometry& geometry, const at::Tensor& given_x, const at::Tensor& given_g, int64_t vector)
      : w(geometry), bytes(vector), plan(w, bytes / kSize), x(given_x.contiguous()), g(given_g.contiguous()) {}

  const T* grads(int64_t row, int64_t group) const {
    return g.const_data_ptr<T>() + (row * w.groups + group) * w.group_outputs() * count_of(w.positions);
  }
  int64_t row_work() const { return w.outputs * w.taps() * count_of(w.positions); }
  // Vectors reach beyond both ends; what is packed begins at a cache line.
  int64_t copy_numel() const { return ceil_div(w.padded_numel() + 2 * kLanes, kLanes) * kLanes; }
  // Elements of the memory that a row's input is loaded to.
  int64_t loaded_numel() const { return copy_numel() + plan.packed_numel(kLanes); }
  // That memory: zeros, as margins are.
  at::Tensor allocate() const { return at::zeros({loaded_numel()}, x.options()); }
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

// Forms the gradient of one row, and returns its squared norm with that of its bias.
// loaded: memory of `WindowOperands::allocate`  weights: (outputs, taps)  biases: (outputs,), or nothing
template <int kBytes, class T>
DPCGAN_INLINE double form_row(const WindowOperands<T>& of, int64_t n, T* loaded, T* weights, T* biases) {
  const WindowGeometry& w = of.w;
  const int64_t taps = w.taps(), outputs = w.group_outputs(), positions = count_of(w.positions);
  alignas(kBytes) double sq_norms[VectorOf<double, kBytes>::kLanes] = {};
  for (int64_t group = 0; group < w.groups; ++group) {
    const WindowRow<T> row{of.template load<kBytes>(n, group, loaded), of.grads(n, group)};
    const int64_t first = group * outputs;
    if (biases != nullptr) {
      sum_lines<kBytes>(row.grads, of.grads(w.rows, 0), outputs, positions, biases + first);
      for (int64_t o = first; o < first + outputs; ++o) sq_norms[0] += static_cast<double>(biases[o]) * biases[o];
    }
    each_tile<kBytes, T>(of.plan, outputs, [&](auto tile) DPCGAN_INLINE_BODY {
      tile.sum(of.plan, row);
      tile.keep(taps, weights + first * taps);
      tile.measure(sq_norms);
    });
  }
  double sq_norm = 0;
  for (double part : sq_norms) sq_norm += part;
  return sq_norm;
}

}  // namespace dpcgan::cpu
