// Per-sample weight gradients of a convolution over one group of rows, and their squared norms.
//
// `materialise` keeps each lane's gradient: what is later summed is exactly what was measured, so cancellation in the
// sum over positions cannot make a norm too small. `gram` measures without forming the gradient, in double; a row whose
// norm is far below its Cauchy-Schwarz bound (common/cancellation.h) is reported, and taken by another path.
#pragma once

#include <cmath>
#include <vector>

#include "../common/cancellation.h"
#include "lane_correlate.h"

namespace dpcgan::cpu {

constexpr int kMaxLanes = 16;

// A squared norm, and a bound where one is needed, for each row of a group.
struct LaneNorms {
  double sq_norm[kMaxLanes] = {};
  bool cancelled[kMaxLanes] = {};
};

template <int kBytes>
DPCGAN_INLINE void add_lanes(typename VectorOf<float, kBytes>::type lanes, double* sum) {
  float single[VectorOf<float, kBytes>::kLanes];
  std::memcpy(single, &lanes, kBytes);
  for (int i = 0; i < VectorOf<float, kBytes>::kLanes; ++i) sum[i] += single[i];
}

// Adds the squares of kept gradients; few enough are added in single precision to cost no accuracy.
template <int kBytes>
DPCGAN_INLINE void add_squares(const float* kept, int64_t vectors, double* sq_norm) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  constexpr int64_t kSingleTerms = 8;
  for (int64_t i = 0; i < vectors; i += kSingleTerms) {
    Vector sum{};
    for (int64_t j = i; j < std::min(i + kSingleTerms, vectors); ++j) {
      const Vector value = load_lanes<kBytes>(kept + j * kLanes);
      sum += value * value;
    }
    add_lanes<kBytes>(sum, sq_norm);
  }
}

// G[o + r, tap + q] for r < kOutputs, q < kTaps; `taps` of the latter exist. g, x: at position 0.
template <int kBytes, int kOutputs, int kTaps>
DPCGAN_INLINE void weight_grad_tile(const float* g, int64_t g_stride, const float* const (&x)[kTaps], int64_t x_step,
                                    int64_t positions, int64_t taps, float* kept, int64_t kept_stride) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  Vector sum[kOutputs][kTaps] = {};
  for (int64_t t = 0; t < positions; ++t) {
    Vector value[kTaps];
#pragma GCC unroll 8
    for (int q = 0; q < kTaps; ++q) value[q] = load_lanes<kBytes>(x[q] + t * x_step);
#pragma GCC unroll 8
    for (int r = 0; r < kOutputs; ++r) {
      const Vector grad = load_lanes<kBytes>(g + r * g_stride + t * kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < kTaps; ++q) sum[r][q] += grad * value[q];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kOutputs; ++r)
#pragma GCC unroll 8
    for (int q = 0; q < kTaps; ++q)
      if (q < taps) store_lanes<kBytes>(kept + r * kept_stride + q * kLanes, sum[r][q]);
}

// Keeps the weight gradient of each row: kept[(o * taps + c * kernel + j)] in the layout of the weight.
template <int kBytes>
DPCGAN_INLINE void keep_weight_grad(const ConvGeometry& conv, const LaneTensor& x, const LaneTensor& g,
                                    const float* rows, float* kept) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  constexpr int kOutputs = 4, kTaps = kBytes == 64 ? 5 : 2;
  const int64_t outputs = conv.g_group_channels(), inputs = conv.x_group_channels(), taps = conv.taps();
  for (int64_t group = 0; group < conv.groups; ++group)
    for (int64_t tap = 0; tap < taps; tap += kTaps) {
      const int64_t count = std::min<int64_t>(kTaps, taps - tap);
      const float* line[kTaps];
      for (int q = 0; q < kTaps; ++q) {
        const int64_t cj = tap + std::min<int64_t>(q, count - 1);
        line[q] = rows + (x.at(group * inputs + cj / conv.kernel_size, 0) - conv.padding +
                          conv.dilation * (cj % conv.kernel_size)) *
                             kLanes;
      }
      int64_t o = 0;
      for (; o + kOutputs <= outputs; o += kOutputs)
        weight_grad_tile<kBytes, kOutputs, kTaps>(rows + g.at(group * outputs + o, 0) * kLanes, g.stride * kLanes, line,
                                                  conv.stride * kLanes, conv.g_length, count,
                                                  kept + ((group * outputs + o) * taps + tap) * kLanes, taps * kLanes);
      for (; o < outputs; ++o)
        weight_grad_tile<kBytes, 1, kTaps>(rows + g.at(group * outputs + o, 0) * kLanes, g.stride * kLanes, line,
                                           conv.stride * kLanes, conv.g_length, count,
                                           kept + ((group * outputs + o) * taps + tap) * kLanes, taps * kLanes);
    }
}

// Per-sample bias gradient: the sum over positions, in four partial sums.
template <int kBytes>
DPCGAN_INLINE void keep_bias_grad(const LaneTensor& grad, const float* rows, float* kept) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  for (int64_t c = 0; c < grad.channels; ++c) {
    Vector part[4] = {};
    for (int64_t l = 0; l < grad.length; ++l) part[l % 4] += load_lanes<kBytes>(rows + grad.at(c, l) * kLanes);
    store_lanes<kBytes>(kept + c * kLanes, (part[0] + part[1]) + (part[2] + part[3]));
  }
}

// Sums of products of two lines of doubles, a lane a row.
template <int kBytes>
struct DoubleLanes {
  using Vector = typename VectorOf<double, kBytes>::type;
  static constexpr int kHalf = VectorOf<double, kBytes>::kLanes;
  Vector low[2] = {}, high[2] = {};

  DPCGAN_INLINE void add_products(const double* a, const double* b, int64_t count) {
    int64_t i = 0;
    for (; i + 2 <= count; i += 2)
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        low[k] += load(a + (i + k) * 2 * kHalf) * load(b + (i + k) * 2 * kHalf);
        high[k] += load(a + (i + k) * 2 * kHalf + kHalf) * load(b + (i + k) * 2 * kHalf + kHalf);
      }
    if (i < count) {
      low[0] += load(a + i * 2 * kHalf) * load(b + i * 2 * kHalf);
      high[0] += load(a + i * 2 * kHalf + kHalf) * load(b + i * 2 * kHalf + kHalf);
    }
  }
  DPCGAN_INLINE void store(double* out) const {
    const Vector l = low[0] + low[1], h = high[0] + high[1];
    std::memcpy(out, &l, kBytes);
    std::memcpy(out + kHalf, &h, kBytes);
  }
  static DPCGAN_INLINE Vector load(const double* from) {
    Vector value;
    std::memcpy(&value, from, kBytes);
    return value;
  }
};

struct LaneGramScratch {
  std::vector<double> x;     // (columns, lines), lines of the last fold's phases first
  std::vector<double> g;     // (positions, outputs)
  std::vector<double> last;  // (columns): products over the phases of the last fold
  std::vector<double> full;  // (columns): and over all phases
};

template <int kBytes>
DPCGAN_INLINE void load_gram_lanes(const ConvGeometry& conv, const PolyphaseGeometry& poly, const LaneTensor& x,
                                   const LaneTensor& g, const float* rows, int64_t group, double* wide_x,
                                   double* wide_g) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t inputs = conv.x_group_channels(), outputs = conv.g_group_channels();
  for (int64_t q = 0; q < poly.columns; ++q)
    for (int64_t phase = 0; phase < poly.phases; ++phase) {
      const int64_t position = polyphase_position(conv, q, phase);
      for (int64_t c = 0; c < inputs; ++c, wide_x += kLanes) {
        const float* from = rows + x.at(group * inputs + c, position) * kLanes;
        for (int64_t i = 0; i < kLanes; ++i) wide_x[i] = conv.inside(position) ? from[i] : 0.0;
      }
    }
  for (int64_t t = 0; t < conv.g_length; ++t)
    for (int64_t o = 0; o < outputs; ++o, wide_g += kLanes) {
      const float* from = rows + g.at(group * outputs + o, t) * kLanes;
      for (int64_t i = 0; i < kLanes; ++i) wide_g[i] = from[i];
    }
}

// Adds the squared norm of one channel group's weight gradient, and says which rows cancel.
template <int kBytes>
DPCGAN_INLINE void add_gram_norm(const ConvGeometry& conv, const LaneTensor& x, const LaneTensor& g, const float* rows,
                                 int64_t group, LaneGramScratch& scratch, LaneNorms& norms) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const PolyphaseGeometry poly(conv);
  const int64_t inputs = conv.x_group_channels(), outputs = conv.g_group_channels(), positions = conv.g_length;
  const int64_t lines = poly.phases * inputs, last_lines = poly.last_phases * inputs;
  double* wide_x = scratch.x.data();
  double* wide_g = scratch.g.data();
  double* last = scratch.last.data();
  double* full = scratch.full.data();
  load_gram_lanes<kBytes>(conv, poly, x, g, rows, group, wide_x, wide_g);
  NormAndBound result[kMaxLanes];
  for (int64_t lag = 0; lag < positions; ++lag) {
    const int64_t pairs = positions - lag;
    for (int64_t q = 0; q < pairs + poly.folds - 1; ++q) {
      const double* a = wide_x + q * lines * kLanes;
      const double* b = a + lag * lines * kLanes;
      DoubleLanes<kBytes> sum;
      sum.add_products(a, b, last_lines);
      sum.store(last + q * kLanes);
      sum.add_products(a + last_lines * kLanes, b + last_lines * kLanes, lines - last_lines);
      sum.store(full + q * kLanes);
    }
    for (int64_t t = 0; t < pairs; ++t) {
      DoubleLanes<kBytes> sum;
      sum.add_products(wide_g + t * outputs * kLanes, wide_g + (t + lag) * outputs * kLanes, outputs);
      double grads[kMaxLanes];
      sum.store(grads);
      for (int64_t i = 0; i < kLanes; ++i) {
        double taps = last[(t + poly.folds - 1) * kLanes + i];
        for (int64_t m = 0; m + 1 < poly.folds; ++m) taps += full[(t + m) * kLanes + i];
        result[i].sq_norm += (lag == 0 ? 1.0 : 2.0) * taps * grads[i];
        if (lag == 0) result[i].bound += std::sqrt(taps * grads[i]);
      }
    }
  }
  for (int64_t i = 0; i < kLanes; ++i) {
    norms.cancelled[i] |= result[i].cancels(kFloatCancellation);
    norms.sq_norm[i] += result[i].sq_norm + result[i].rounding_sq_norm();
  }
}

inline void reserve_gram(const ConvGeometry& conv, int64_t lanes, LaneGramScratch& scratch) {
  const PolyphaseGeometry poly(conv);
  const auto grow = [](std::vector<double>& buffer, int64_t size) {
    if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  };
  grow(scratch.x, poly.columns * poly.phases * conv.x_group_channels() * lanes);
  grow(scratch.g, conv.g_length * conv.g_group_channels() * lanes);
  grow(scratch.last, poly.columns * lanes);
  grow(scratch.full, poly.columns * lanes);
}

}  // namespace dpcgan::cpu
