// Per-sample weight gradients of convolutions in two and three dimensions: for each row, what every tap sees is laid
// out beside the others, in the caches, and one matrix product of the vendor's library gives the gradient.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "../common/conv_geometry.h"
#include "parallel.h"

namespace dpcgan::cpu {
namespace {

constexpr size_t kDimensions = 3;  // two dimensions are three, of which the first has one position and one tap
using Extents = std::array<int64_t, kDimensions>;

struct Windows {
  int64_t rows, channels, outputs, groups;
  Extents size, positions, kernel, stride, padding, dilation;

  int64_t count(const Extents& of) const { return of[0] * of[1] * of[2]; }
  int64_t taps() const { return channels / groups * count(kernel); }  // of a channel group
};

Extents extents(const char* name, c10::IntArrayRef given, size_t dimensions, int64_t first) {
  TORCH_CHECK(given.size() == dimensions, "window_per_sample_grad_: expected ", dimensions, " numbers in ", name,
              ", got ", given.size());
  Extents all{first, first, first};
  std::copy(given.begin(), given.end(), all.end() - static_cast<int64_t>(dimensions));
  return all;
}

Windows check_windows(const at::Tensor& x, const at::Tensor& g, c10::IntArrayRef kernel_size, c10::IntArrayRef stride,
                      c10::IntArrayRef padding, c10::IntArrayRef dilation, int64_t groups) {
  TORCH_CHECK(x.dim() == g.dim() && (x.dim() == 4 || x.dim() == 5) && x.size(0) == g.size(0) &&
                  x.scalar_type() == g.scalar_type(),
              "window_per_sample_grad_: expected x (B, C, ...) and g (B, O, ...) of one dtype, in two or three "
              "dimensions, got ",
              x.sizes(), " ", x.scalar_type(), " and ", g.sizes(), " ", g.scalar_type());
  const size_t dimensions = static_cast<size_t>(x.dim() - 2);
  const Windows windows{x.size(0),
                        x.size(1),
                        g.size(1),
                        groups,
                        extents("x", x.sizes().slice(2), dimensions, 1),
                        extents("g", g.sizes().slice(2), dimensions, 1),
                        extents("kernel_size", kernel_size, dimensions, 1),
                        extents("stride", stride, dimensions, 1),
                        extents("padding", padding, dimensions, 0),
                        extents("dilation", dilation, dimensions, 1)};
  TORCH_CHECK(groups > 0 && windows.channels % groups == 0 && windows.outputs % groups == 0,
              "window_per_sample_grad_: expected groups to divide ", windows.channels, " and ", windows.outputs,
              " channels, got ", groups);
  for (size_t i = 0; i < kDimensions; ++i) {
    const int64_t seen = windows.stride[i] * (windows.positions[i] - 1) + windows.dilation[i] * (windows.kernel[i] - 1);
    TORCH_CHECK(windows.kernel[i] > 0 && windows.stride[i] > 0 && windows.dilation[i] > 0 && windows.padding[i] >= 0 &&
                    seen < windows.size[i] + 2 * windows.padding[i],
                "window_per_sample_grad_: the windows of g's ", g.sizes().slice(2), " positions reach beyond x's ",
                x.sizes().slice(2), " with kernel_size ", kernel_size, ", stride ", stride, ", padding ", padding,
                ", dilation ", dilation);
  }
  return windows;
}

// Which positions of a line see a value of it through one tap: [begin, end), at offset + stride position.
struct Seen {
  int64_t offset, begin, end;
};

Seen seen_by(const Windows& w, int64_t tap) {
  const int64_t offset = tap * w.dilation[2] - w.padding[2], size = w.size[2], stride = w.stride[2];
  const int64_t begin = std::min(w.positions[2], offset >= 0 ? 0 : ceil_div(-offset, stride));
  return {offset, begin,
          std::max(begin, std::min(w.positions[2], ceil_div(std::max<int64_t>(0, size - offset), stride)))};
}

template <class T>
void copy_line(const T* line, const Seen& seen, int64_t stride, int64_t positions, T* out) {
  for (int64_t q = 0; q < seen.begin; ++q) out[q] = T(0);
  const T* from = line + seen.offset;
  if (stride == 1) {
    for (int64_t q = seen.begin; q < seen.end; ++q) out[q] = from[q];
  } else {
    for (int64_t q = seen.begin; q < seen.end; ++q) out[q] = from[stride * q];
  }
  for (int64_t q = seen.end; q < positions; ++q) out[q] = T(0);
}

// columns: (taps of the group, positions) of one row; x: one channel group of it; seen: of each tap of a line.
template <class T>
void lay_out(const Windows& w, const std::vector<Seen>& seen, const T* x, T* columns) {
  const auto at = [&w](size_t i, int64_t tap, int64_t position) {
    return position * w.stride[i] + tap * w.dilation[i] - w.padding[i];
  };
  for (int64_t c = 0; c < w.channels / w.groups; ++c, x += w.count(w.size))
    for (int64_t i = 0; i < w.kernel[0]; ++i)
      for (int64_t j = 0; j < w.kernel[1]; ++j)
        for (const Seen& tap : seen)
          for (int64_t p = 0; p < w.positions[0]; ++p)
            for (int64_t q = 0; q < w.positions[1]; ++q, columns += w.positions[2]) {
              const int64_t depth = at(0, i, p), height = at(1, j, q);
              if (depth < 0 || depth >= w.size[0] || height < 0 || height >= w.size[1]) {
                std::fill(columns, columns + w.positions[2], T(0));
              } else {
                copy_line(x + (depth * w.size[1] + height) * w.size[2], tap, w.stride[2], w.positions[2], columns);
              }
            }
}

template <class T>
void window_grads(const Windows& w, const at::Tensor& x, const at::Tensor& g, const at::Tensor& out) {
  const int64_t taps = w.taps(), positions = w.count(w.positions), outputs = w.outputs / w.groups;
  const int64_t x_group = w.channels / w.groups * w.count(w.size), work = w.outputs * taps * positions;
  const T* values = x.const_data_ptr<T>();
  std::vector<Seen> seen;
  for (int64_t tap = 0; tap < w.kernel[2]; ++tap) seen.push_back(seen_by(w, tap));
  const at::Tensor grads = g.view({w.rows * w.groups, outputs, positions});
  const at::Tensor products = out.view({w.rows * w.groups, outputs, taps});
  at::parallel_for(0, w.rows, grain_size(work), [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView plain;  // of this thread
    const at::Tensor columns = at::empty({taps, positions}, x.options());
    const at::Tensor windows = columns.t();
    for (int64_t part = begin * w.groups; part < end * w.groups; ++part) {
      lay_out(w, seen, values + part * x_group, columns.mutable_data_ptr<T>());
      at::Tensor product = products.select(0, part);
      at::mm_out(product, grads.select(0, part), windows);
    }
  });
}

}  // namespace

void window_per_sample_grad_cpu(at::Tensor out, const at::Tensor& x, const at::Tensor& g, c10::IntArrayRef kernel_size,
                                c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                                int64_t groups) {
  const Windows windows = check_windows(x, g, kernel_size, stride, padding, dilation, groups);
  std::vector<int64_t> shape{windows.rows, windows.outputs, windows.channels / groups};
  shape.insert(shape.end(), kernel_size.begin(), kernel_size.end());
  TORCH_CHECK(out.sizes() == shape && out.scalar_type() == x.scalar_type() && out.is_contiguous(),
              "window_per_sample_grad_: expected a contiguous out of shape ", shape, " and type ", x.scalar_type(),
              ", got ", out.sizes(), " ", out.scalar_type());
  if (windows.count(windows.positions) == 0) {
    out.zero_();
    return;
  }
  const at::Tensor x_rows = x.contiguous(), g_rows = g.contiguous();
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "window_per_sample_grad_",
                             [&] { window_grads<scalar_t>(windows, x_rows, g_rows, out); });
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) { m.impl("window_per_sample_grad_", &dpcgan::cpu::window_per_sample_grad_cpu); }
