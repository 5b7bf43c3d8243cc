// Draws of one categorical distribution for each block of a record, by inversion: a row in each lane of a vector.
#pragma once

#include <cstring>
#include <limits>

#include "lane_correlate.h"

namespace dpcgan::cpu {

// e^x for x <= 0, to 2 units in the last place; 0 below -87, also for -inf and NaN. Cephes's polynomial of degree 6.
template <int kBytes>
DPCGAN_INLINE typename VectorOf<float, kBytes>::type exp_lanes(typename VectorOf<float, kBytes>::type x) {
  using Vector = typename VectorOf<float, kBytes>::type;
  using Ints = decltype(x < x);
  constexpr float kRound = 12582912.0F;  // 1.5 times 2^23: what is added to it keeps no fraction
  const Ints counts = x >= -87.0F;
  x = counts ? x : Vector{};
  const Vector n = (x * 1.44269504088896341F + kRound) - kRound;
  const Vector r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  Vector p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  Vector scale;
  std::memcpy(&scale, &exponent, kBytes);
  return counts ? p * scale : Vector{};
}

struct CellDraw {
  const float* prior;  // (classes, blocks, cells)
  const int64_t* classes;
  const int64_t* last_cells;  // (blocks,)
  int64_t cells, blocks;
};

// The prior of the classes of a group's rows, a row in each lane.
template <int kBytes>
class LanePrior {
  using Vector = typename VectorOf<float, kBytes>::type;
  static constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;

 public:
  // Rows [first, first + count); the lanes beyond them take the first row's.
  DPCGAN_INLINE LanePrior(const CellDraw& d, int64_t first, int64_t count) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      of_lane_[lane] = d.prior + d.classes[first + (lane < count ? lane : 0)] * d.blocks * d.cells;
      same_ = same_ && of_lane_[lane] == of_lane_[0];
    }
  }
  DPCGAN_INLINE Vector at(int64_t offset) const {
    if (same_) return Vector{} + of_lane_[0][offset];
    Vector value;
    for (int64_t lane = 0; lane < kLanes; ++lane) value[lane] = of_lane_[lane][offset];
    return value;
  }

 private:
  const float* of_lane_[kLanes];
  bool same_ = true;
};

// logits: a channel a cell, of which the first `blocks` positions count. uniform: a vector a block, overwritten by the
// cells that are drawn. scratch: a vector a cell
template <int kBytes>
DPCGAN_INLINE void draw_group(const CellDraw& d, const LanePrior<kBytes>& prior, const LaneTensor& logits,
                              const float* values, float* uniform, float* scratch) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int64_t block = 0; block < d.blocks; ++block) {
    Vector largest = Vector{} - kInfinity, finite{};  // `finite` is 0, or NaN where a logit is
    for (int64_t c = 0; c < d.cells; ++c) {
      const Vector x = load_lanes<kBytes>(values + logits.at(c, block) * kLanes) + prior.at(block * d.cells + c);
      largest = x > largest ? x : largest;
      finite = x == x ? finite : x;
      store_lanes<kBytes>(scratch + c * kLanes, x);
    }
    finite += largest - largest;
    Vector below{};
    for (int64_t c = 0; c < d.cells; ++c) {
      below += exp_lanes<kBytes>(load_lanes<kBytes>(scratch + c * kLanes) - largest);
      store_lanes<kBytes>(scratch + c * kLanes, below);
    }
    const Vector wanted = load_lanes<kBytes>(uniform + block * kLanes) * below;
    Vector cell{};
    for (int64_t c = 0; c + 1 < d.cells; ++c)
      cell += load_lanes<kBytes>(scratch + c * kLanes) <= wanted ? Vector{} + 1.0F : Vector{};
    const Vector last = Vector{} + static_cast<float>(d.last_cells[block]);
    cell = cell < last ? cell : last;  // where the product was rounded up to the whole
    store_lanes<kBytes>(uniform + block * kLanes, cell + finite);
  }
}

}  // namespace dpcgan::cpu
