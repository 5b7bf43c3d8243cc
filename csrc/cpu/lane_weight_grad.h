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
constexpr double kLargestSquare = 1e30;  // of one position's inputs or output gradients
constexpr int64_t kStreamBytes =
    1 << 20;  // kept gradients of a layer and group that a second-level cache does not hold

// A tensor of one group, and the block that it lies in.
struct LaneSource {
  const LaneTensor& tensor;
  const float* block;

  template <int kLanes>
  DPCGAN_INLINE const float* at(int64_t channel, int64_t position) const {
    return block + tensor.at(channel, position) * kLanes;
  }
};

// The squared norm of each row of a group, and whether its gradient cancels.
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

// Stores past the caches, for gradients that are next read when they are summed. In assembly, since the intrinsic
// cannot be inlined into a function that is compiled for the baseline too.
template <int kBytes>
DPCGAN_INLINE void stream_lanes(float* to, typename VectorOf<float, kBytes>::type lanes) {
#if defined(__x86_64__)
  if constexpr (kBytes == 64) {
    asm volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<float (*)[16]>(to)) : "v"(lanes));
    return;
  }
#endif
  store_lanes<kBytes>(to, lanes);
}

// Has streamed stores done before those that follow; on their own they are not ordered.
DPCGAN_INLINE void end_stream() {
#if defined(__x86_64__)
  asm volatile("sfence" ::: "memory");
#endif
}

// Where the weight gradients of one convolution go.
struct KeptWeights {
  float* kept;
  int64_t output_stride;  // from an output channel to the next
  bool stream;
  double* sq_norm;  // one a lane, or nothing
};

// G[o + r, tap + q] for r < kOutputs, q < kTaps; `taps` of the latter exist. g, x: at position 0.
template <int kBytes, int kOutputs, int kTaps>
DPCGAN_INLINE void weight_grad_tile(const float* g, int64_t g_stride, const float* const (&x)[kTaps], int64_t x_step,
                                    int64_t positions, int64_t taps, const KeptWeights& out, int64_t offset) {
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
  for (int r = 0; r < kOutputs; ++r) {
    Vector squares{};
#pragma GCC unroll 8
    for (int q = 0; q < kTaps; ++q) {
      if (q >= taps) break;
      float* to = out.kept + offset + r * out.output_stride + q * kLanes;
      out.stream ? stream_lanes<kBytes>(to, sum[r][q]) : store_lanes<kBytes>(to, sum[r][q]);
      squares += sum[r][q] * sum[r][q];
    }
    if (out.sq_norm != nullptr) add_lanes<kBytes>(squares, out.sq_norm);
  }
}

// Keeps the weight gradient of each row, in the layout of the weight, and adds up its squares.
template <int kBytes>
DPCGAN_INLINE void keep_weight_grad(const ConvGeometry& conv, const LaneSource& x, const LaneSource& g, float* kept,
                                    double* sq_norm) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  constexpr int kOutputs = 4, kTaps = kBytes == 64 ? 5 : 2;
  const int64_t outputs = conv.g_group_channels(), inputs = conv.x_group_channels(), taps = conv.taps();
  const KeptWeights out{kept, taps * kLanes, conv.weight_numel() * kBytes > kStreamBytes, sq_norm};
  for (int64_t group = 0; group < conv.groups; ++group)
    for (int64_t tap = 0; tap < taps; tap += kTaps) {
      const int64_t count = std::min<int64_t>(kTaps, taps - tap);
      const float* line[kTaps];
      for (int q = 0; q < kTaps; ++q) {
        const int64_t cj = tap + std::min<int64_t>(q, count - 1);
        line[q] = x.at<kLanes>(group * inputs + cj / conv.kernel_size, conv.x_position(0, cj % conv.kernel_size));
      }
      const auto at_output = [&](int64_t o) { return g.at<kLanes>(group * outputs + o, 0); };
      const auto offset = [&](int64_t o) { return ((group * outputs + o) * taps + tap) * kLanes; };
      int64_t o = 0;
      run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
        for (; o + kOutputs <= outputs; o += kOutputs)
          weight_grad_tile<kBytes, kOutputs, kTaps>(at_output(o), g.tensor.stride * kLanes, line, conv.stride * kLanes,
                                                    conv.g_length, count, out, offset(o));
      });
      for (; o < outputs; ++o)
        weight_grad_tile<kBytes, 1, kTaps>(at_output(o), g.tensor.stride * kLanes, line, conv.stride * kLanes,
                                           conv.g_length, count, out, offset(o));
    }
  if (out.stream) end_stream();
}

// Per-sample bias gradient: the sum over positions, in four partial sums.
template <int kBytes>
DPCGAN_INLINE void keep_bias_grad(const LaneSource& grad, float* kept) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  for (int64_t c = 0; c < grad.tensor.channels; ++c) {
    Vector part[4] = {};
    for (int64_t l = 0; l < grad.tensor.length; ++l) part[l % 4] += load_lanes<kBytes>(grad.at<kLanes>(c, l));
    store_lanes<kBytes>(kept + c * kLanes, (part[0] + part[1]) + (part[2] + part[3]));
  }
}

struct LaneGramScratch {
  std::vector<double> last;   // (columns, columns): products over the phases of the last fold
  std::vector<double> full;   // (columns, columns): and over all phases, but for the last column
  std::vector<double> grads;  // (positions, positions): products over the outputs
};

// The columns of a Gram matrix, a row in each lane: column q is what lies at start + q * column_step, over `channels`
// times `phases` lines. Steps are in floats.
struct GramColumns {
  const float* start;
  int64_t column_step;
  int64_t channels, channel_step;
  int64_t phases, phase_step;
};

constexpr int kGramTile = 4;  // columns by columns of a register tile

// Products of columns [a, a + rows) by [b, b + columns), in double, a lane a row; added to what `out` holds.
template <int kBytes, int kRows, int kColumns>
DPCGAN_INLINE void gram_tile(const GramColumns& from, int64_t a, int64_t b, double* out, int64_t out_stride) {
  using Vector = typename VectorOf<double, kBytes>::type;
  constexpr int64_t kHalf = VectorOf<double, kBytes>::kLanes, kLanes = 2 * kHalf;
  for (int64_t h = 0; h < kLanes; h += kHalf) {
    Vector sum[kRows][kColumns];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) std::memcpy(&sum[r][c], out + r * out_stride + c * kLanes + h, kBytes);
    for (int64_t channel = 0; channel < from.channels; ++channel) {
      const float* line = from.start + channel * from.channel_step + h;
      for (int64_t phase = 0; phase < from.phases; ++phase, line += from.phase_step) {
        Vector left[kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) left[r] = load_wide<kBytes>(line + (a + r) * from.column_step);
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) {
          const Vector right = load_wide<kBytes>(line + (b + c) * from.column_step);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) sum[r][c] += left[r] * right;
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) std::memcpy(out + r * out_stride + c * kLanes + h, &sum[r][c], kBytes);
  }
}

// Calls body with a size in [1, kGramTile] as a constant.
DPCGAN_INLINE void with_tile_size(int64_t size, auto body) {
  static_assert(kGramTile == 4);
  if (size == 4) return body(std::integral_constant<int, 4>{});
  if (size == 3) return body(std::integral_constant<int, 3>{});
  if (size == 2) return body(std::integral_constant<int, 2>{});
  body(std::integral_constant<int, 1>{});
}

// Adds the products of all pairs of columns a <= b to out[a][b]; entries below the diagonal may be written, too.
template <int kBytes>
DPCGAN_INLINE void gram_products(const GramColumns& from, int64_t columns, int64_t out_stride, double* out) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  for (int64_t a = 0; a < columns; a += kGramTile)
    for (int64_t b = a; b < columns; b += kGramTile)
      run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
        with_tile_size(std::min<int64_t>(kGramTile, columns - a), [&](auto rows) DPCGAN_INLINE_BODY {
          with_tile_size(std::min<int64_t>(kGramTile, columns - b), [&](auto width) DPCGAN_INLINE_BODY {
            gram_tile<kBytes, decltype(rows)::value, decltype(width)::value>(
                from, a, b, out + a * out_stride + b * kLanes, out_stride);
          });
        });
      });
}

// Adds the squared norm of one channel group's weight gradient, and says which rows cancel.
template <int kBytes>
DPCGAN_INLINE void add_gram_norm(const ConvGeometry& conv, const LaneSource& x, const LaneSource& g, int64_t group,
                                 LaneGramScratch& scratch, LaneNorms& norms) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const PolyphaseGeometry poly(conv);
  const int64_t inputs = conv.x_group_channels(), outputs = conv.g_group_channels(), positions = conv.g_length;
  const int64_t square = poly.columns * poly.columns * kLanes, row = poly.columns * kLanes;
  double* last = scratch.last.data();
  double* full = scratch.full.data();
  double* grads = scratch.grads.data();
  GramColumns lines{x.at<kLanes>(group * inputs, polyphase_position(conv, 0, 0)),
                    conv.stride * kLanes,
                    inputs,
                    x.tensor.stride * kLanes,
                    poly.last_phases,
                    conv.dilation * kLanes};
  std::fill_n(last, square, 0.0);
  gram_products<kBytes>(lines, poly.columns, row, last);
  if (poly.folds > 1) {  // the last column has no further phases: there the tensor's margin may end
    std::copy_n(last, square, full);
    lines.start += poly.last_phases * conv.dilation * kLanes;
    lines.phases = poly.phases - poly.last_phases;
    if (lines.phases > 0) gram_products<kBytes>(lines, poly.columns - 1, row, full);
  }
  std::fill_n(grads, positions * positions * kLanes, 0.0);
  const GramColumns grad_lines{g.at<kLanes>(group * outputs, 0), kLanes, 1, 0, outputs, g.tensor.stride * kLanes};
  gram_products<kBytes>(grad_lines, positions, positions * kLanes, grads);
  using Vector = typename VectorOf<double, kBytes>::type;
  constexpr int64_t kHalf = VectorOf<double, kBytes>::kLanes;
  const auto load = [](const double* from) DPCGAN_INLINE_BODY {
    Vector value;
    std::memcpy(&value, from, kBytes);
    return value;
  };
  NormAndBound result[kMaxLanes];
  for (int64_t h = 0; h < kLanes; h += kHalf) {
    Vector sq_norm{};
    for (int64_t a = 0; a < positions; ++a)
      for (int64_t b = a; b < positions; ++b) {
        const int64_t from = a * poly.columns + b, step = poly.columns + 1;  // to the next position of both
        Vector taps = load(last + (from + (poly.folds - 1) * step) * kLanes + h);
        for (int64_t m = 0; m + 1 < poly.folds; ++m) taps += load(full + (from + m * step) * kLanes + h);
        const Vector grad = load(grads + (a * positions + b) * kLanes + h);
        const Vector product = taps * grad;
        sq_norm += a == b ? product : 2.0 * product;
        if (a != b) continue;
        for (int64_t i = 0; i < kHalf; ++i) {
          result[h + i].bound += std::sqrt(product[i]);
          // So large a side meets a clip factor that makes the other too small for single precision.
          norms.cancelled[h + i] |= taps[i] > kLargestSquare || grad[i] > kLargestSquare;
        }
      }
    for (int64_t i = 0; i < kHalf; ++i) result[h + i].sq_norm = sq_norm[i];
  }
  for (int64_t i = 0; i < kLanes; ++i) {
    norms.cancelled[i] |= result[i].cancels(kFloatCancellation);
    norms.sq_norm[i] += result[i].single_sq_norm(positions) + result[i].rounding_sq_norm();
  }
}

inline void reserve_gram(const ConvGeometry& conv, int64_t lanes, LaneGramScratch& scratch) {
  const PolyphaseGeometry poly(conv);
  const auto grow = [](std::vector<double>& buffer, int64_t size) {
    if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  };
  grow(scratch.last, poly.columns * poly.columns * lanes);
  grow(scratch.full, poly.columns * poly.columns * lanes);
  grow(scratch.grads, conv.g_length * conv.g_length * lanes);
}

}  // namespace dpcgan::cpu
