// Squared norms of weight gradients over one group of rows, from Gram matrices of both sides in double, a row in each
// lane: sums over pairs of positions of (x's taps at both) times (g at both), without forming the gradient. A row whose
// norm is far below its Cauchy-Schwarz bound (common/cancellation.h) is reported, and taken by another path.
//
// Products are taken half a vector of rows at a time. Columns are widened once into a panel that the caches hold: in
// the products themselves, widening would cost as much as the arithmetic.
#pragma once

#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "../common/cancellation.h"
#include "lane_correlate.h"

namespace dpcgan::cpu {

template <int kBytes>
constexpr int kGramTile = kBytes == 64 ? 4 : 3;  // columns by columns: as many sums as registers hold beside operands

// Lines of a panel, for a number of columns. The more, the less often sums leave their registers; but few columns are
// done with soon, and then the panel is better small enough for the first-level cache.
inline int64_t panel_depth(int64_t columns) { return columns < 16 ? 16 : columns < 32 ? 32 : 64; }

// Vectors of a panel from a tile's columns to the next's. Not a multiple of a page: those would all compete for the
// same few cache lines.
template <int kBytes>
constexpr int64_t tile_stride(int64_t depth) {
  return (depth + 1) * kGramTile<kBytes>;
}

constexpr double kLargestSquare = 1e30;  // of one position's inputs or output gradients

// The squared norm of each row of a group, and whether its gradient cancels.
struct LaneNorms {
  double sq_norm[kMaxLanes] = {};
  bool cancelled[kMaxLanes] = {};
};

// Doubles that begin at a cache line: a vector across two lines takes twice as long.
class LineBuffer {
 public:
  // At least so many, with anything in them.
  void reserve(int64_t size) {
    if (size <= size_) return;
    size_ = 0;
    data_.reset(
        static_cast<double*>(std::aligned_alloc(kLine, ceil_div<int64_t>(size * sizeof(double), kLine) * kLine)));
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = size;
  }
  double* data() const { return data_.get(); }

 private:
  static constexpr int64_t kLine = 64;
  struct Free {
    void operator()(double* data) const { std::free(data); }
  };
  std::unique_ptr<double, Free> data_;
  int64_t size_ = 0;
};

struct LaneGramScratch {
  LineBuffer last;   // (columns, columns): products over the phases of the last fold
  LineBuffer full;   // (columns, columns): and over all phases, but for the last column
  LineBuffer grads;  // (positions, positions): products over the outputs
  LineBuffer panel;  // of the columns' values
};

// The columns of a Gram matrix, a row in each lane: column q is what lies at start + q * column_step, over `channels`
// times `phases` lines. Steps are in floats.
struct GramColumns {
  const float* start;
  int64_t column_step;
  int64_t channels, channel_step;
  int64_t phases, phase_step;

  int64_t lines() const { return channels * phases; }
};

// A Gram matrix of half a vector's rows; entries below the diagonal are not written.
struct GramMatrix {
  double* values;
  int64_t columns;

  template <int kBytes>
  double* at(int64_t a, int64_t b) const {
    return values + (a * columns + b) * VectorOf<double, kBytes>::kLanes;
  }
};

// Products of a tile's columns over the lines of a panel, added to `initial`, or to zero; both matrices have
// row_step doubles from a row to the next. left, right: [line][kGramTile].
template <int kBytes, int kRows, int kColumns, bool kDiagonal>
DPCGAN_INLINE void gram_tile(const double* left, const double* right, int64_t lines, const double* initial, double* out,
                             int64_t row_step) {
  using Vector = typename VectorOf<double, kBytes>::type;
  constexpr int64_t kWide = VectorOf<double, kBytes>::kLanes;
  Vector sum[kRows][kColumns] = {};
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = kDiagonal ? r : 0; c < kColumns; ++c)
      if (initial != nullptr) sum[r][c] = load_doubles<kBytes>(initial + r * row_step + c * kWide);
  for (int64_t line = 0; line < lines; ++line) {
    Vector value[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) value[r] = load_doubles<kBytes>(left + r * kWide);
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      const Vector other = kDiagonal ? value[c] : load_doubles<kBytes>(right + c * kWide);
#pragma GCC unroll 4
      for (int r = 0; r < (kDiagonal ? c + 1 : kRows); ++r) sum[r][c] += value[r] * other;
    }
    left += kGramTile<kBytes> * kWide;
    right += kGramTile<kBytes> * kWide;
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = kDiagonal ? r : 0; c < kColumns; ++c) std::memcpy(out + r * row_step + c * kWide, &sum[r][c], kBytes);
}

// Calls body with a size in [1, kGramTile] as a constant.
template <int kBytes>
DPCGAN_INLINE void with_tile_size(int64_t size, auto body) {
  static_assert(kGramTile<kBytes> <= 4);
  if constexpr (kGramTile<kBytes> == 4)
    if (size == 4) return body(std::integral_constant<int, 4>{});
  if (size == 3) return body(std::integral_constant<int, 3>{});
  if (size == 2) return body(std::integral_constant<int, 2>{});
  body(std::integral_constant<int, 1>{});
}

// Widens half the rows of lines [first, first + count) of all columns: [tile][line][column of the tile].
template <int kBytes>
DPCGAN_INLINE void fill_panel(const GramColumns& from, int64_t columns, int64_t first_lane, int64_t first,
                              int64_t count, int64_t stride, double* panel) {
  constexpr int64_t kWide = VectorOf<double, kBytes>::kLanes, kTile = kGramTile<kBytes>;
  const auto widen = [&](const float* at, double* to) DPCGAN_INLINE_BODY {
    const auto wide = load_wide<kBytes>(at);
    std::memcpy(to, &wide, kBytes);
  };
  const float* channel = from.start + first / from.phases * from.channel_step + first_lane;
  int64_t phase = first % from.phases;
  for (int64_t line = 0; line < count; ++line, panel += kTile * kWide) {
    const float* at = channel + phase * from.phase_step;
    double* to = panel;
    int64_t column = 0;
    for (; column + kTile <= columns; column += kTile, at += kTile * from.column_step, to += stride * kWide)
#pragma GCC unroll 4
      for (int64_t i = 0; i < kTile; ++i) widen(at + i * from.column_step, to + i * kWide);
    for (int64_t i = 0; i < columns - column; ++i) widen(at + i * from.column_step, to + i * kWide);
    if (++phase < from.phases) continue;
    phase = 0;
    channel += from.channel_step;
  }
}

// out[a][b] = initial[a][b] + the products of columns a <= b < a + lags, for the rows from first_lane on; of others,
// some. initial: nothing, or a matrix as wide as out.
template <int kBytes>
DPCGAN_INLINE void gram_products(const GramColumns& from, int64_t columns, int64_t lags, int64_t first_lane,
                                 const double* initial, const GramMatrix& out, double* panel) {
  constexpr int64_t kWide = VectorOf<double, kBytes>::kLanes, kTile = kGramTile<kBytes>;
  const int64_t row_step = out.columns * kWide;
  const int64_t depth = panel_depth(columns), stride = tile_stride<kBytes>(depth);
  for (int64_t first = 0; first < from.lines(); first += depth) {
    const int64_t lines = std::min(depth, from.lines() - first);
    fill_panel<kBytes>(from, columns, first_lane, first, lines, stride, panel);
    for (int64_t a = 0; a < columns; a += kTile)
      for (int64_t b = a; b < std::min(columns, a + kTile - 1 + lags); b += kTile)
        run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
          with_tile_size<kBytes>(std::min(kTile, columns - b), [&](auto width) DPCGAN_INLINE_BODY {
            constexpr int kColumns = decltype(width)::value;
            const double* left = panel + a / kTile * stride * kWide;
            const double* right = panel + b / kTile * stride * kWide;
            double* to = out.at<kBytes>(a, b);
            const double* from_tile = initial == nullptr ? nullptr : initial + (to - out.values);
            if (a == b)
              gram_tile<kBytes, kColumns, kColumns, true>(left, right, lines, from_tile, to, row_step);
            else
              gram_tile<kBytes, kTile, kColumns, false>(left, right, lines, from_tile, to, row_step);
          });
        });
    initial = out.values;
  }
}

// Adds the squared norm of one channel group's weight gradient, and says which rows cancel.
template <int kBytes>
DPCGAN_INLINE void add_gram_norm(const ConvGeometry& conv, const LaneSource& x, const LaneSource& g, int64_t group,
                                 LaneGramScratch& scratch, LaneNorms& norms) {
  using Vector = typename VectorOf<double, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes, kWide = kLanes / 2;
  const PolyphaseGeometry poly(conv);
  const int64_t inputs = conv.x_group_channels(), outputs = conv.g_group_channels(), positions = conv.g_length;
  const GramColumns last_lines{x.at<kLanes>(group * inputs, polyphase_position(conv, 0, 0)),
                               conv.stride * kLanes,
                               inputs,
                               x.tensor.stride * kLanes,
                               poly.last_phases,
                               conv.dilation * kLanes};
  GramColumns other_lines = last_lines;
  other_lines.start += poly.last_phases * conv.dilation * kLanes;
  other_lines.phases = poly.phases - poly.last_phases;
  const GramColumns grad_lines{g.at<kLanes>(group * outputs, 0), kLanes, 1, 0, outputs, g.tensor.stride * kLanes};
  const GramMatrix last{scratch.last.data(), poly.columns}, grads{scratch.grads.data(), positions};
  const GramMatrix full = other_lines.phases > 0 ? GramMatrix{scratch.full.data(), poly.columns} : last;
  double* panel = scratch.panel.data();
  for (int64_t first_lane = 0; first_lane < kLanes; first_lane += kWide) {
    gram_products<kBytes>(last_lines, poly.columns, positions, first_lane, nullptr, last, panel);
    // The last column has no further phases: there the tensor's margin may end.
    if (other_lines.phases > 0)
      gram_products<kBytes>(other_lines, poly.columns - 1, positions, first_lane, last.values, full, panel);
    gram_products<kBytes>(grad_lines, positions, positions, first_lane, nullptr, grads, panel);
    Vector sq_norm{};
    NormAndBound result[kWide];
    for (int64_t a = 0; a < positions; ++a)
      for (int64_t b = a; b < positions; ++b) {
        const int64_t end = poly.folds - 1;
        Vector taps = load_doubles<kBytes>(last.at<kBytes>(a + end, b + end));
        for (int64_t m = 0; m < end; ++m) taps += load_doubles<kBytes>(full.at<kBytes>(a + m, b + m));
        const Vector grad = load_doubles<kBytes>(grads.at<kBytes>(a, b));
        const Vector product = taps * grad;
        sq_norm += a == b ? product : 2.0 * product;
        if (a != b) continue;
        for (int64_t i = 0; i < kWide; ++i) {
          result[i].bound += std::sqrt(product[i]);
          // So large a side meets a clip factor that makes the other too small for single precision.
          norms.cancelled[first_lane + i] |= taps[i] > kLargestSquare || grad[i] > kLargestSquare;
        }
      }
    for (int64_t i = 0; i < kWide; ++i) {
      result[i].sq_norm = sq_norm[i];
      norms.cancelled[first_lane + i] |= result[i].cancels(kFloatCancellation);
      norms.sq_norm[first_lane + i] += result[i].single_sq_norm(positions);
    }
  }
}

inline void reserve_gram(const ConvGeometry& conv, int64_t lanes, LaneGramScratch& scratch) {
  const PolyphaseGeometry poly(conv);
  const int64_t wide = lanes / 2;
  scratch.last.reserve(poly.columns * poly.columns * wide);
  scratch.full.reserve(poly.columns * poly.columns * wide);
  scratch.grads.reserve(conv.g_length * conv.g_length * wide);
  // The largest: there are no more positions than columns, and depth grows with columns.
  const int64_t depth = panel_depth(poly.columns);
  lanes_dispatch(lanes, [&](auto width) DPCGAN_INLINE_BODY {
    constexpr int kBytes = decltype(width)::value;
    scratch.panel.reserve(wide * ceil_div<int64_t>(poly.columns, kGramTile<kBytes>) * tile_stride<kBytes>(depth));
  });
}

}  // namespace dpcgan::cpu
