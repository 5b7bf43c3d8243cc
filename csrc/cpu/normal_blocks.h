// Normals from consecutive ChaCha20 blocks, computed side by side.
#pragma once

#include <algorithm>

#include "../common/gaussian.h"
#include "simd.h"

namespace dpcgan::cpu {

constexpr int kNoiseLanes = 16;  // blocks computed side by side; fewer, and the compiler unrolls instead of vectorising

// Normals of kNoiseLanes consecutive blocks, block-major.
DPCGAN_INLINE void normal_blocks(const ChaChaKey& key, uint64_t counter,
                                 double (&out)[kNoiseLanes * kNormalsPerBlock]) {
  uint32_t words[kChaChaWords][kNoiseLanes];
  double normals[kNormalsPerBlock][kNoiseLanes];
  chacha20_blocks<kNoiseLanes>(key, kNoiseNonce, counter, words);
  for (int pair = 0; pair < kNormalsPerBlock / 2; ++pair)
    for (int lane = 0; lane < kNoiseLanes; ++lane)
      box_muller(words[4 * pair][lane], words[4 * pair + 1][lane], words[4 * pair + 2][lane], words[4 * pair + 3][lane],
                 normals[2 * pair][lane], normals[2 * pair + 1][lane]);
  for (int lane = 0; lane < kNoiseLanes; ++lane)
    for (int i = 0; i < kNormalsPerBlock; ++i) out[lane * kNormalsPerBlock + i] = normals[i][lane];
}

// Adds noise to values in double and rounds once to the grid; value i takes normal i of the stream from `counter` on.
template <class T>
DPCGAN_INLINE void add_normals(T* values, int64_t numel, double std_dev, const ChaChaKey& key, uint64_t counter) {
  constexpr int64_t kBatch = kNoiseLanes * kNormalsPerBlock;
  const double grid = noise_grid(std_dev), inverse_grid = 1.0 / grid;
  double normals[kBatch];
  for (int64_t begin = 0; begin < numel; begin += kBatch) {
    normal_blocks(key, counter + begin / kNormalsPerBlock, normals);
    const int64_t size = std::min(kBatch, numel - begin);
    for (int64_t i = 0; i < size; ++i)
      values[begin + i] = static_cast<T>(round_to_grid(values[begin + i] + std_dev * normals[i], grid, inverse_grid));
  }
}

}  // namespace dpcgan::cpu
