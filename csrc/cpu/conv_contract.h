// The contraction under every conv op on the CPU: G = sum over rows and positions of g x^T, tile by tile.
//
// Rows are packed as U (positions x taps, im2col) and V (positions x output channels), then multiplied in register
// tiles; what happens to a finished tile is the caller's `emit`: store it (per-sample gradient), square it (norm), or
// add it to a double accumulator (weighted gradient). One packing can hold several rows: those of one patient, whose
// gradients add before the norm, or a block of a batch.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/conv_geometry.h"
#include "simd.h"

namespace dpcgan::cpu {

constexpr int kTileOutputs = 4;  // output channels of a register tile
constexpr int kTileVectors = 2;  // vectors of taps of a register tile

// Scratch of one thread, in the type that sums are formed in: that of the tensors for a gradient that is kept, double
// for norms and sums over rows.
template <class Sum>
struct PackedRows {
  std::vector<Sum> taps;     // U: (positions, tap_stride)
  std::vector<Sum> outputs;  // V: (positions, output_stride)
  int64_t positions = 0;
  int64_t tap_stride = 0;
  int64_t output_stride = 0;
};

// Packs `count` rows of one channel group; row r is scaled by factor[row] when factor is given.
template <class T, class Sum>
DPCGAN_INLINE void pack_rows(const ConvGeometry& conv, const ConvOperands<T>& data, int64_t group, const int64_t* rows,
                             int64_t count, const double* factor, int64_t lanes, PackedRows<Sum>& packed) {
  const int64_t taps = conv.taps();
  const int64_t outputs = conv.g_group_channels();
  packed.positions = count * conv.g_length;
  packed.tap_stride = ceil_div(taps, kTileVectors * lanes) * kTileVectors * lanes;
  packed.output_stride = ceil_div<int64_t>(outputs, kTileOutputs) * kTileOutputs;
  packed.taps.assign(packed.positions * packed.tap_stride, Sum(0));
  packed.outputs.assign(packed.positions * packed.output_stride, Sum(0));
  for (int64_t r = 0; r < count; ++r) {
    const T* x = data.x + rows[r] * data.x_strides.row + group * conv.x_group_channels() * data.x_strides.channel;
    const T* g = data.g + rows[r] * data.g_strides.row + group * outputs * data.g_strides.channel;
    Sum* u = packed.taps.data() + r * conv.g_length * packed.tap_stride;
    Sum* v = packed.outputs.data() + r * conv.g_length * packed.output_stride;
    for (int64_t t = 0; t < conv.g_length; ++t)
      for (int64_t c = 0; c < conv.x_group_channels(); ++c) {
        const T* from = x + c * data.x_strides.channel;
        Sum* to = u + t * packed.tap_stride + c * conv.kernel_size;
        for (int64_t j = 0; j < conv.kernel_size; ++j) {
          const int64_t position = conv.x_position(t, j);
          if (conv.inside(position)) to[j] = from[position * data.x_strides.position];
        }
      }
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t t = 0; t < conv.g_length; ++t) {
        const T value = g[o * data.g_strides.channel + t * data.g_strides.position];
        v[t * packed.output_stride + o] = static_cast<Sum>(factor == nullptr ? value : factor[rows[r]] * value);
      }
  }
}

// Calls emit(o, tap, outputs, taps, tile) for each tile of G; tile[i * tile_stride + l] is G[o + i, tap + l].
template <class Sum, int kBytes, class Emit>
DPCGAN_INLINE void contract(const ConvGeometry& conv, const PackedRows<Sum>& packed, Emit emit) {
  using Vector = typename VectorOf<Sum, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<Sum, kBytes>::kLanes;
  constexpr int64_t kTileTaps = kTileVectors * kLanes;
  const int64_t taps = conv.taps();
  const int64_t outputs = conv.g_group_channels();
  for (int64_t tap = 0; tap < taps; tap += kTileTaps)
    for (int64_t o = 0; o < outputs; o += kTileOutputs) {
      Vector sum[kTileOutputs][kTileVectors] = {};
      const Sum* u = packed.taps.data() + tap;
      const Sum* v = packed.outputs.data() + o;
      for (int64_t t = 0; t < packed.positions; ++t, u += packed.tap_stride, v += packed.output_stride) {
        Vector x[kTileVectors];
        std::memcpy(x, u, sizeof(x));
        for (int i = 0; i < kTileOutputs; ++i)
          for (int l = 0; l < kTileVectors; ++l) sum[i][l] += v[i] * x[l];
      }
      emit(o, tap, std::min<int64_t>(kTileOutputs, outputs - o), std::min<int64_t>(kTileTaps, taps - tap),
           reinterpret_cast<const Sum*>(sum), kTileTaps);
    }
}

// What the gradient of the bias sums over positions: g or x.
template <class T>
struct BiasSource {
  const T* base;
  OperandStrides strides;
  int64_t length;

  BiasSource(const ConvGeometry& conv, const ConvOperands<T>& data)
      : base(conv.bias == BiasRole::kGrad ? data.g : data.x),
        strides(conv.bias == BiasRole::kGrad ? data.g_strides : data.x_strides),
        length(conv.bias == BiasRole::kGrad ? conv.g_length : conv.x_length) {}

  const T* line(int64_t row, int64_t channel) const { return base + row * strides.row + channel * strides.channel; }
};

// Gradient of the bias of one row, in double.
template <class T>
DPCGAN_INLINE void add_bias_grad(const ConvGeometry& conv, const ConvOperands<T>& data, int64_t row, double factor,
                                 double* bias) {
  const BiasSource<T> source(conv, data);
  for (int64_t c = 0; c < conv.bias_numel(); ++c) {
    const T* line = source.line(row, c);
    double sum = 0;
    for (int64_t t = 0; t < source.length; ++t) sum += line[t * source.strides.position];
    bias[c] += factor * sum;
  }
}

}  // namespace dpcgan::cpu
