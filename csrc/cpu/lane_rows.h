// Between tensors with a row after the other, (B, C, L), and groups with a row in each lane of a vector.
#pragma once

#include <algorithm>
#include <cstring>

#include "fused_program.h"
#include "lane_correlate.h"
#include "transpose.h"

namespace dpcgan::cpu {

DPCGAN_INLINE void zero_margins(const LaneTensor& tensor, int64_t lanes, float* block) {
  const int64_t right = tensor.stride - tensor.left - tensor.length;
  for (int64_t c = 0; c < tensor.channels; ++c) {
    std::memset(block + tensor.at(c, -tensor.left) * lanes, 0, tensor.left * lanes * sizeof(float));
    std::memset(block + tensor.at(c, tensor.length) * lanes, 0, right * lanes * sizeof(float));
  }
}

// Calls move(offset in a row, vector in the block, count) for runs of at most kLanes elements that lie side by side in
// both.
template <int kLanes>
DPCGAN_INLINE void each_run(const LaneTensor& tensor, auto move) {
  const bool one_line = tensor.stride == tensor.length;  // no margins: all channels are one line
  const int64_t lines = one_line ? 1 : tensor.channels;
  const int64_t length = one_line ? tensor.channels * tensor.length : tensor.length;
  for (int64_t c = 0; c < lines; ++c)
    for (int64_t l = 0; l < length; l += kLanes)
      move(c * length + l, tensor.at(c, l), std::min<int64_t>(kLanes, length - l));
}

// Rows [first, first + count) of x, (B, C, L), to lanes; lanes beyond them are zero.
template <int kBytes>
DPCGAN_INLINE void load_rows(const float* x, const LaneTensor& tensor, int64_t first, int64_t count, float* block) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t numel = tensor.channels * tensor.length;
  each_run<kLanes>(tensor, [&](int64_t offset, int64_t vector, int64_t run) DPCGAN_INLINE_BODY {
    Vector square[kLanes] = {};
    for (int64_t n = 0; n < count; ++n) {
      const float* from = x + (first + n) * numel + offset;
      if (run == kLanes)
        square[n] = load_lanes<kBytes>(from);
      else
        std::memcpy(&square[n], from, run * sizeof(float));
    }
    transpose_lanes<kLanes>(square);
    for (int64_t i = 0; i < run; ++i) store_lanes<kBytes>(block + (vector + i) * kLanes, square[i]);
  });
}

template <int kBytes>
DPCGAN_INLINE void store_rows(const LaneTensor& tensor, int64_t first, int64_t count, const float* block, float* out) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t numel = tensor.channels * tensor.length;
  each_run<kLanes>(tensor, [&](int64_t offset, int64_t vector, int64_t run) DPCGAN_INLINE_BODY {
    Vector square[kLanes] = {};
    for (int64_t i = 0; i < run; ++i) square[i] = load_lanes<kBytes>(block + (vector + i) * kLanes);
    transpose_lanes<kLanes>(square);
    for (int64_t n = 0; n < count; ++n)
      std::memcpy(out + (first + n) * numel + offset, &square[n], run * sizeof(float));
  });
}

}  // namespace dpcgan::cpu
