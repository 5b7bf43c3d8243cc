// The sum over rows of factor g x^T, in double: what a linear layer without positions adds up.
//
// g is taken in panels of a few outputs, x in blocks of a few vectors, a number of rows at a time: in double they fit
// the first-level cache, and the layer's x is never stored in double as a whole.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "../common/conv_geometry.h"
#include "parallel.h"
#include "simd.h"

namespace dpcgan::cpu {

constexpr int64_t kRowsAtATime = 256;
constexpr int kBlockVectors = 3;  // of a block of x

// `count` channels of rows [begin, end) times each row's scale, to (rows, kWidth); zeros beyond them. Rows of factor 0
// become zeros: 0 times NaN is NaN.
template <int64_t kWidth, class T>
DPCGAN_INLINE void widen_rows(const T* side, const OperandStrides& strides, int64_t begin, int64_t end, int64_t count,
                              const double* factor, bool scale, double* out) {
  for (int64_t n = begin; n < end; ++n, out += kWidth) {
    const T* from = side + n * strides.row;
    const double by = scale ? factor[n] : 1.0;
    if (factor[n] != 0 && count == kWidth && strides.channel == 1) {
      for (int64_t c = 0; c < kWidth; ++c) out[c] = by * from[c];
      continue;
    }
    std::fill_n(out, kWidth, 0.0);
    if (factor[n] != 0)
      for (int64_t c = 0; c < count; ++c) out[c] = by * from[c * strides.channel];
  }
}

// The products of `rows` rows of a panel of g, (rows, kOutputs), and a block of x, (rows, kBlockVectors vectors): to
// out, (outputs, inputs), or added to it.
template <int kBytes, int kOutputs>
DPCGAN_INLINE void multiply_panel(const double* g, const double* x, int64_t rows, int64_t outputs, int64_t width,
                                  bool add, double* out, int64_t inputs) {
  using Vector = typename VectorOf<double, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<double, kBytes>::kLanes;
  Vector sum[kOutputs][kBlockVectors] = {};
  for (int64_t n = 0; n < rows; ++n, x += kBlockVectors * kLanes, g += kOutputs) {
    Vector value[kBlockVectors];
#pragma GCC unroll 8
    for (int q = 0; q < kBlockVectors; ++q) std::memcpy(&value[q], x + q * kLanes, kBytes);
#pragma GCC unroll 8
    for (int r = 0; r < kOutputs; ++r)
#pragma GCC unroll 8
      for (int q = 0; q < kBlockVectors; ++q) sum[r][q] += g[r] * value[q];
  }
#pragma GCC unroll 8
  for (int r = 0; r < kOutputs; ++r) {
    if (r == outputs) break;
    double* to = out + r * inputs;
#pragma GCC unroll 8
    for (int q = 0; q < kBlockVectors; ++q, to += kLanes) {
      Vector all = sum[r][q];
      if (width >= (q + 1) * kLanes) {
        Vector before{};
        if (add) std::memcpy(&before, to, kBytes);
        all += before;
        std::memcpy(to, &all, kBytes);
      } else {
        double lanes[kLanes];
        std::memcpy(lanes, &all, kBytes);
        for (int64_t i = 0; i < width - q * kLanes; ++i) to[i] = lanes[i] + (add ? to[i] : 0.0);
      }
    }
  }
}

// weight: (outputs, inputs); bias: (outputs,), or none. Both are written, for any number of rows.
template <int kBytes, class T>
DPCGAN_INLINE void sum_outer_products(const ConvGeometry& conv, const ConvOperands<T>& data, const double* factor,
                                      double* weight, double* bias) {
  constexpr int64_t kOutputs = kBytes == 64 ? 8 : 4;  // times 3 vectors: of 32 and 16 registers
  constexpr int64_t kBlock = kBlockVectors * VectorOf<double, kBytes>::kLanes;
  const int64_t rows = conv.rows, inputs = conv.x_channels, outputs = conv.g_channels;
  const int64_t panels = ceil_div(outputs, kOutputs), blocks = ceil_div(inputs, kBlock);
  const std::unique_ptr<double[]> g(new double[panels * rows * kOutputs]);
  at::parallel_for(0, panels, grain_size(rows * kOutputs), [&](int64_t begin, int64_t end) {
    run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * kOutputs, count = std::min(kOutputs, outputs - first);
        double* to = g.get() + first * rows;
        widen_rows<kOutputs>(data.g + first * data.g_strides.channel, data.g_strides, 0, rows, count, factor, true, to);
        double sum[kOutputs] = {};
        for (int64_t n = 0; n < rows; ++n)
          for (int64_t o = 0; o < kOutputs; ++o) sum[o] += to[n * kOutputs + o];
        if (bias != nullptr) std::copy_n(sum, count, bias + first);
      }
    });
  });
  at::parallel_for(0, blocks, grain_size(rows * outputs * kBlock), [&](int64_t begin, int64_t end) {
    run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
      alignas(kBytes) double x[kRowsAtATime * kBlock];
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlock, width = std::min(kBlock, inputs - first);
        for (int64_t done = 0; done == 0 || done < rows; done += kRowsAtATime) {
          const int64_t count = std::min(kRowsAtATime, rows - done);
          widen_rows<kBlock>(data.x + first * data.x_strides.channel, data.x_strides, done, done + count, width, factor,
                             false, x);
          for (int64_t o = 0; o < outputs; o += kOutputs)
            multiply_panel<kBytes, kOutputs>(g.get() + o * rows + done * kOutputs, x, count, outputs - o, width,
                                             done > 0, weight + o * inputs + first, inputs);
        }
      }
    });
  });
}

}  // namespace dpcgan::cpu
