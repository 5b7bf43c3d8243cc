// Normals from consecutive ChaCha20 blocks, computed side by side.
#pragma once

#include <algorithm>
#include <cstring>

#include "../common/gaussian.h"
#include "simd.h"
#include "transpose.h"

namespace dpcgan::cpu {

constexpr int kNoiseLanes = 16;  // blocks computed side by side; fewer, and the compiler unrolls instead of vectorising

constexpr uint32_t kLaneNumbers[kNoiseLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// words[w][lane]: word w of block counter + lane.
template <int kBytes>
DPCGAN_INLINE void noise_words(const ChaChaKey& key, uint64_t counter, uint32_t (&words)[kChaChaWords][kNoiseLanes]) {
  using Vector = typename VectorOf<uint32_t, kBytes>::type;
  constexpr int kLanes = VectorOf<uint32_t, kBytes>::kLanes;
  for (int first = 0; first < kNoiseLanes; first += kLanes) {
    const uint64_t number = counter + static_cast<uint64_t>(first);
    Vector lanes, block[kChaChaWords] = {};
    std::memcpy(&lanes, kLaneNumbers, kBytes);
    const Vector low = lanes + static_cast<uint32_t>(number);
    // A comparison gives -1 where it holds: there the lower half has wrapped round.
    const Vector high = static_cast<uint32_t>(number >> 32) - (Vector)(low < lanes);
    chacha20_block(key, kNoiseNonce, low, high, block);
    for (int w = 0; w < kChaChaWords; ++w) std::memcpy(&words[w][first], &block[w], kBytes);
  }
}

// Normals of kNoiseLanes consecutive blocks, block-major.
template <int kBytes>
DPCGAN_INLINE void normal_blocks(const ChaChaKey& key, uint64_t counter,
                                 double (&out)[kNoiseLanes * kNormalsPerBlock]) {
  using Vector = typename VectorOf<double, kBytes>::type;
  constexpr int kLanes = VectorOf<double, kBytes>::kLanes;
  alignas(64) uint32_t words[kChaChaWords][kNoiseLanes];
  alignas(64) double normals[kNormalsPerBlock][kNoiseLanes];
  noise_words<kBytes>(key, counter, words);
  for (int pair = 0; pair < kNormalsPerBlock / 2; ++pair)
    for (int lane = 0; lane < kNoiseLanes; ++lane)
      box_muller(words[4 * pair][lane], words[4 * pair + 1][lane], words[4 * pair + 2][lane], words[4 * pair + 3][lane],
                 normals[2 * pair][lane], normals[2 * pair + 1][lane]);
  for (int lane = 0; lane < kNoiseLanes; lane += kLanes)
    for (int i = 0; i < kNormalsPerBlock; i += kLanes) {
      Vector square[kLanes];
      for (int r = 0; r < kLanes; ++r) std::memcpy(&square[r], &normals[i + r][lane], kBytes);
      transpose_lanes<kLanes>(square);
      for (int r = 0; r < kLanes; ++r) std::memcpy(&out[(lane + r) * kNormalsPerBlock + i], &square[r], kBytes);
    }
}

// Adds noise to values in double and rounds once to the grid; value i takes normal i of the stream from `counter` on.
template <int kBytes, class T>
DPCGAN_INLINE void add_normals(T* values, int64_t numel, double std_dev, const ChaChaKey& key, uint64_t counter) {
  constexpr int64_t kBatch = kNoiseLanes * kNormalsPerBlock;
  const double grid = noise_grid(std_dev), inverse_grid = 1.0 / grid;
  alignas(64) double normals[kBatch];
  for (int64_t begin = 0; begin < numel; begin += kBatch) {
    normal_blocks<kBytes>(key, counter + begin / kNormalsPerBlock, normals);
    const int64_t size = std::min(kBatch, numel - begin);
    for (int64_t i = 0; i < size; ++i)
      values[begin + i] = static_cast<T>(round_to_grid(values[begin + i] + std_dev * normals[i], grid, inverse_grid));
  }
}

}  // namespace dpcgan::cpu
