// Weight gradients of one row of a convolution in two or three dimensions, straight from the row's input.
//
// The input is copied with its channels last and with margins of zeros, so that what the taps of one line see of a
// position lies side by side: a run. A tile is some outputs by some vectors of runs, summed over all positions in
// registers; it is measured before it leaves them.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/conv_geometry.h"
#include "lane_correlate.h"
#include "simd.h"
#include "transpose.h"

namespace dpcgan::cpu {

constexpr size_t kDimensions = 3;  // two dimensions are three, of which the first has one position and one tap
using Extents = std::array<int64_t, kDimensions>;

inline int64_t count_of(const Extents& extents) { return extents[0] * extents[1] * extents[2]; }

// Geometry of G[o, c, j] = sum_t g[o, t] x[c, stride t + dilation j - padding], each of t and j in all dimensions.
struct WindowGeometry {
  int64_t rows, channels, outputs, groups;
  Extents size, positions;  // of x and g
  Extents kernel, stride, padding, dilation;

  int64_t group_channels() const { return channels / groups; }
  int64_t group_outputs() const { return outputs / groups; }
  int64_t taps() const { return group_channels() * count_of(kernel); }  // of a channel group
  Extents padded() const { return {size[0] + 2 * padding[0], size[1] + 2 * padding[1], size[2] + 2 * padding[2]}; }
  int64_t padded_numel() const { return count_of(padded()) * group_channels(); }  // of a channel group
};

inline int64_t at_padded(const Extents& padded, int64_t i, int64_t j, int64_t k) {
  return (i * padded[1] + j) * padded[2] + k;
}

// A vector of a run: where it begins for the first position, where its gradient goes, and how many of its lanes count.
struct RunVector {
  int64_t from, to, count;
};

// Lanes of a packed vector that one run fills, from first_lane on; lane i is at from + i of the copied input.
struct RunPiece {
  int64_t from, first_lane;
};

// Pieces [begin, end) of a packed vector.
struct PackedVector {
  int64_t begin, end;
};

// What is the same for all rows: which vectors there are, and how far each position is from the first.
//
// Where runs fill their vectors badly, as with few channels, what a position sees is copied once more, run after run,
// to a record of the position: packed.
class WindowPlan {
 public:
  WindowPlan(const WindowGeometry& w, int64_t lanes)
      : run_length(one_run_a_line(w) ? w.kernel[2] * w.group_channels() : w.group_channels()),
        record_length(ceil_div(w.taps(), lanes) * lanes) {
    const Extents padded = w.padded();
    const auto at = [&](int64_t i, int64_t j, int64_t k) { return at_padded(padded, i, j, k) * w.group_channels(); };
    const int64_t runs_of_line = one_run_a_line(w) ? 1 : w.kernel[2];
    for (int64_t i = 0; i < w.kernel[0]; ++i)
      for (int64_t j = 0; j < w.kernel[1]; ++j)
        for (int64_t k = 0; k < runs_of_line; ++k)
          run_starts.push_back(at(i * w.dilation[0], j * w.dilation[1], k * w.dilation[2]));
    for (int64_t i = 0; i < w.positions[0]; ++i)
      for (int64_t j = 0; j < w.positions[1]; ++j)
        for (int64_t k = 0; k < w.positions[2]; ++k)
          position_offsets.push_back(at(i * w.stride[0], j * w.stride[1], k * w.stride[2]));
    packed = packing_pays(w, lanes);
    packed ? list_records(w.taps(), lanes) : list_runs(lanes);
  }

  // Elements of a row's records, and of the vector that reaches beyond the last; 0 where they are not packed.
  int64_t packed_numel(int64_t lanes) const { return packed ? positions() * record_length + lanes : 0; }
  int64_t positions() const { return static_cast<int64_t>(position_offsets.size()); }

  int64_t run_length;
  int64_t record_length;  // where packed
  bool packed = false;
  std::vector<int64_t> run_starts;        // of the first position, in the copy of the input
  std::vector<int64_t> position_offsets;  // likewise, of each position
  std::vector<RunVector> vectors;         // in what tiles read
  std::vector<int64_t> read_offsets;      // likewise, of each position
  std::vector<PackedVector> packed_vectors;
  std::vector<RunPiece> pieces;  // of all packed vectors

 private:
  static bool one_run_a_line(const WindowGeometry& w) { return w.dilation[2] == 1; }
  bool packing_pays(const WindowGeometry& w, int64_t lanes) const {
    constexpr int64_t kMostElements = 1 << 18;  // of a row's records: what a second-level cache holds
    constexpr int64_t kLeastOutputs = 8;        // fewer read what was copied but once
    const int64_t unpacked = static_cast<int64_t>(run_starts.size()) * ceil_div(run_length, lanes) * lanes;
    return 4 * record_length < 3 * unpacked && positions() * record_length <= kMostElements &&
           w.group_outputs() >= kLeastOutputs;
  }
  void list_records(int64_t taps, int64_t lanes) {
    for (int64_t tap = 0; tap < taps; tap += lanes) vectors.push_back({tap, tap, std::min(lanes, taps - tap)});
    for (int64_t t = 0; t < positions(); ++t) read_offsets.push_back(t * record_length);
    for (int64_t tap = 0; tap < taps; tap += lanes) {
      const int64_t begin = static_cast<int64_t>(pieces.size());
      for (int64_t run = tap / run_length; run * run_length < std::min(tap + lanes, taps); ++run)
        pieces.push_back({run_starts[run] + tap - run * run_length, std::max<int64_t>(0, run * run_length - tap)});
      packed_vectors.push_back({begin, static_cast<int64_t>(pieces.size())});
    }
  }
  void list_runs(int64_t lanes) {
    int64_t to = 0;
    for (const int64_t start : run_starts) {
      for (int64_t c = 0; c < run_length; c += lanes)
        vectors.push_back({start + c, to + c, std::min(lanes, run_length - c)});
      to += run_length;
    }
    read_offsets = position_offsets;
  }
};

template <class Vector>
using LanesOf = decltype(Vector{} < Vector{});  // whole numbers, as many and as wide

template <class Vector>
DPCGAN_INLINE auto lane_number(int64_t lane) {
  return static_cast<std::remove_cvref_t<decltype(LanesOf<Vector>{}[0])>>(lane);
}

// 0, 1, 2 and so on.
template <class Vector>
DPCGAN_INLINE LanesOf<Vector> lane_numbers() {
  LanesOf<Vector> numbers;
  for (size_t i = 0; i < sizeof(Vector) / sizeof(numbers[0]); ++i) numbers[i] = lane_number<Vector>(i);
  return numbers;
}

// A line of all channels, channel_step apart, to (size, channels). end: of the memory that may be read
template <int kBytes, class T>
DPCGAN_INLINE void copy_line(const T* line, const T* end, int64_t channels, int64_t channel_step, int64_t size, T* to) {
  using Vector = typename VectorOf<T, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<T, kBytes>::kLanes;
  if (channels == 1) {
    std::copy_n(line, size, to);
    return;
  }
  if (channels < kLanes / 2) {  // squares would be almost empty
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t k = 0; k < size; ++k) to[k * channels + c] = line[c * channel_step + k];
    return;
  }
  for (int64_t k = 0; k < size; k += kLanes)
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t width = std::min(kLanes, size - k), depth = std::min(kLanes, channels - c);
      Vector square[kLanes];
      for (int64_t r = depth; r < kLanes; ++r) square[r] = Vector{};
      for (int64_t r = 0; r < depth; ++r) {
        const T* from = line + (c + r) * channel_step + k;
        // What is read beyond the line is not stored; to read less takes several times as long.
        square[r] = load_some<Vector>(from, end - from >= kLanes ? kLanes : width);
      }
      transpose_lanes<static_cast<int>(kLanes)>(square);
      for (int64_t r = 0; r < width; ++r) store_some(to + (k + r) * channels + c, square[r], depth);
    }
}

// One channel group of a row, (channels, *size), to channels last within margins, which stay as they are.
template <int kBytes, class T>
DPCGAN_INLINE void copy_channels_last(const WindowGeometry& w, const T* x, T* copied) {
  const Extents padded = w.padded();
  const int64_t channels = w.group_channels();
  const T* end = x + channels * count_of(w.size);
  for (int64_t i = 0; i < w.size[0]; ++i)
    for (int64_t j = 0; j < w.size[1]; ++j)
      copy_line<kBytes>(x + (i * w.size[1] + j) * w.size[2], end, channels, count_of(w.size), w.size[2],
                        copied + at_padded(padded, i + w.padding[0], j + w.padding[1], w.padding[2]) * channels);
}

// What each position sees, run after run. copied: channels last, behind as many elements as a vector has
template <int kBytes, class T>
DPCGAN_INLINE void pack_windows(const WindowPlan& plan, const T* copied, T* records) {
  using Vector = typename VectorOf<T, kBytes>::type;
  using Lanes = LanesOf<Vector>;
  constexpr int64_t kLanes = VectorOf<T, kBytes>::kLanes;
  const auto number = lane_numbers<Vector>();
  const int64_t count = plan.positions(), record = plan.record_length;
  const int64_t* offsets = plan.position_offsets.data();
  for (const PackedVector& vector : plan.packed_vectors) {
    // One vector of all positions at a time: which lanes come from where stays in registers.
    const RunPiece first = plan.pieces[vector.begin];
    const RunPiece second = vector.end - vector.begin > 1 ? plan.pieces[vector.begin + 1] : RunPiece{first.from, 0};
    const Lanes in_second = number >= lane_number<Vector>(second.first_lane);
    for (int64_t t = 0; t < count; ++t) {
      const T* from = copied + offsets[t];
      const Vector low = load_some<Vector>(from + first.from, kLanes);
      const Vector high = load_some<Vector>(from + second.from, kLanes);
      store_some(records + t * record, in_second ? high : low, kLanes);
    }
    for (int64_t p = vector.begin + 2; p < vector.end; ++p) {
      const RunPiece piece = plan.pieces[p];
      const Lanes in_piece = number >= lane_number<Vector>(piece.first_lane);
      for (int64_t t = 0; t < count; ++t) {
        const Vector next = load_some<Vector>(copied + offsets[t] + piece.from, kLanes);
        const Vector before = load_some<Vector>(records + t * record, kLanes);
        store_some(records + t * record, in_piece ? next : before, kLanes);
      }
    }
    records += kLanes;
  }
}

// One row and channel group: what tiles read of its input, and its output gradients, (outputs, positions).
template <class T>
struct WindowRow {
  const T* windows;
  const T* grads;
};

constexpr int64_t kPositionsAtATime = 256;  // partial sums keep rounding small where there are many

// Outputs [begin, end) by vectors of runs. Every reader of a row's gradient takes it from here, in one order of
// additions: what is measured is what is kept, and what is summed.
template <int kBytes, class T, int kRows, int kColumns>
struct WindowTile {
  using Vector = typename VectorOf<T, kBytes>::type;

  int64_t begin, end;
  const RunVector* vectors;
  Vector total[kRows][kColumns];

  DPCGAN_INLINE WindowTile(int64_t first_output, int64_t end_of_outputs, const RunVector* runs)
      : begin(first_output),
        end(end_of_outputs),
        vectors(runs) {}  // clearing `total` would take long beside few positions

  DPCGAN_INLINE void sum(const WindowPlan& plan, const WindowRow<T>& row) {
    const int64_t count = plan.positions();
    const int64_t* offsets = plan.read_offsets.data();
    const T* grads[kRows];
    for (int r = 0; r < kRows; ++r) grads[r] = row.grads + std::min(begin + r, end - 1) * count;
    const T* from[kColumns];
    for (int q = 0; q < kColumns; ++q) from[q] = row.windows + vectors[q].from;
    for (int64_t done = 0; done < count; done += kPositionsAtATime) {
      Vector part[kRows][kColumns] = {};
      for (int64_t t = done; t < std::min(done + kPositionsAtATime, count); ++t) {
        const int64_t at = offsets[t];
        Vector value[kColumns];
#pragma GCC unroll 8
        for (int q = 0; q < kColumns; ++q) std::memcpy(&value[q], from[q] + at, kBytes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
          for (int q = 0; q < kColumns; ++q) part[r][q] += grads[r][t] * value[q];
      }
      for (int r = 0; r < kRows; ++r)
        for (int q = 0; q < kColumns; ++q) total[r][q] = done == 0 ? part[r][q] : total[r][q] + part[r][q];
    }
    // What lies beyond a run is another's.
    for (int q = 0; q < kColumns; ++q)
      if (vectors[q].count < VectorOf<T, kBytes>::kLanes)
        for (int r = 0; r < kRows; ++r)
          total[r][q] = load_some<Vector>(reinterpret_cast<const T*>(&total[r][q]), vectors[q].count);
  }

  // Writes the gradients to (outputs, taps).
  DPCGAN_INLINE void keep(int64_t taps, T* out) const {
    for (int r = 0; r < kRows && begin + r < end; ++r)
      for (int q = 0; q < kColumns; ++q)
        store_some(out + (begin + r) * taps + vectors[q].to, total[r][q], vectors[q].count);
  }

  // Adds their squares to a vector of sums; in double, but for those of a few vectors.
  DPCGAN_INLINE void measure(double* sums) const {
    Wide sum[2] = {load_doubles<kBytes>(sums), {}};  // additions of one would wait for each other
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      if (begin + r >= end) break;
      Vector squares{};
#pragma GCC unroll 8
      for (int q = 0; q < kColumns; ++q) squares += total[r][q] * total[r][q];
      each_half(squares, [&](int lane, const Wide& half) DPCGAN_INLINE_BODY { sum[lane > 0] += half; });
    }
    const Wide both = sum[0] + sum[1];
    std::memcpy(sums, &both, kBytes);
  }

 private:
  using Wide = typename VectorOf<double, kBytes>::type;

  // Calls body with the lanes in double, a vector of them at a time, and the number of the first.
  DPCGAN_INLINE static void each_half(const Vector& lanes, auto body) {
    if constexpr (sizeof(T) == sizeof(double)) {
      body(0, lanes);
    } else {
      constexpr size_t kWide = VectorOf<double, kBytes>::kLanes;
      body(0, lanes_from<0>(lanes, std::make_index_sequence<kWide>{}));
      body(kWide, lanes_from<kWide>(lanes, std::make_index_sequence<kWide>{}));
    }
  }
  template <size_t kFirst, size_t... kLane>
  DPCGAN_INLINE static Wide lanes_from(const Vector& lanes, std::index_sequence<kLane...>) {
    return widen<kBytes>(__builtin_shufflevector(lanes, lanes, (kFirst + kLane)...));
  }
};

// The sums of lines, each in partial sums side by side. end: of the memory that may be read
template <int kBytes, class T>
DPCGAN_INLINE void sum_lines(const T* lines, const T* end, int64_t count, int64_t size, T* sums) {
  using Vector = typename VectorOf<T, kBytes>::type;
  using Lanes = LanesOf<Vector>;
  constexpr int64_t kLanes = VectorOf<T, kBytes>::kLanes, kParts = 4;
  const auto number = lane_numbers<Vector>();
  const Lanes in_last = number < lane_number<Vector>((size - 1) % kLanes + 1);
  for (int64_t line = 0; line < count; line += kLanes) {
    const int64_t depth = std::min(kLanes, count - line);
    Vector square[kLanes] = {};
    for (int64_t r = 0; r < depth; ++r) {
      const T* from = lines + (line + r) * size;
      Vector part[kParts] = {};
      int64_t i = 0;
      while (size - i > kLanes) {
#pragma GCC unroll 4
        for (int64_t p = 0; p < kParts; ++p)
          if (size - i > kLanes) {
            part[p] += load_some<Vector>(from + i, kLanes);
            i += kLanes;
          }
      }
      const Vector last = load_some<Vector>(from + i, end - from - i >= kLanes ? kLanes : size - i);
      square[r] = (part[0] + part[1]) + (part[2] + part[3]) + (in_last ? last : Vector{});
    }
    transpose_lanes<static_cast<int>(kLanes)>(square);
#pragma GCC unroll 5
    for (int64_t step = kLanes / 2; step > 0; step /= 2)
      for (int64_t r = 0; r < step; ++r) square[r] += square[r + step];
    store_some(sums + line, square[0], depth);
  }
}

// Calls body, as a function of its own, with every tile of outputs [begin, end).
template <int kBytes, class T, int kRows>
DPCGAN_INLINE void each_tile_of_outputs(const WindowPlan& plan, int64_t begin, int64_t end, auto body) {
  const int64_t vectors = static_cast<int64_t>(plan.vectors.size());
  for (int64_t q = 0; q < vectors;) {
    const RunVector* at = plan.vectors.data() + q;
    const int64_t width = product_columns(vectors - q);
    run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
      if (width == 3) return body(WindowTile<kBytes, T, kRows, 3>(begin, end, at));
      if (width == 2) return body(WindowTile<kBytes, T, kRows, 2>(begin, end, at));
      body(WindowTile<kBytes, T, kRows, 1>(begin, end, at));
    });
    q += width;
  }
}

// And of all outputs.
template <int kBytes, class T>
DPCGAN_INLINE void each_tile(const WindowPlan& plan, int64_t outputs, auto body) {
  constexpr int kRows = kBytes == 64 ? 8 : 4;  // times 3 vectors: of 32 and 16 registers
  int64_t o = 0;
  for (; outputs - o > 1; o += kRows)
    each_tile_of_outputs<kBytes, T, kRows>(plan, o, std::min(o + kRows, outputs), body);
  if (o < outputs) each_tile_of_outputs<kBytes, T, 1>(plan, o, outputs, body);
}

}  // namespace dpcgan::cpu
