// Squares of vectors, transposed in registers.
#pragma once

#include <cstddef>
#include <utility>

#include "simd.h"

namespace dpcgan::cpu {

template <int kStep, class Vector, size_t... kLane>
DPCGAN_INLINE void swap_blocks(Vector& a, Vector& b, std::index_sequence<kLane...>) {
  constexpr int kLanes = sizeof...(kLane);
  const Vector low = __builtin_shufflevector(a, b, (kLane & kStep ? kLanes + kLane - kStep : kLane)...);
  b = __builtin_shufflevector(a, b, (kLane & kStep ? kLanes + kLane : kLane + kStep)...);
  a = low;
}

// Transposes a square of vectors in place, in log2 steps: each swaps the off-diagonal blocks of its size.
template <int kLanes, int kStep = kLanes / 2, class Vector>
DPCGAN_INLINE void transpose_lanes(Vector (&square)[kLanes]) {
  if constexpr (kStep > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if ((i & kStep) == 0)
        swap_blocks<kStep>(square[i], square[i + kStep], std::make_index_sequence<static_cast<size_t>(kLanes)>{});
    transpose_lanes<kLanes, kStep / 2>(square);
  }
}

}  // namespace dpcgan::cpu
