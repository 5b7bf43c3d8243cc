// Normals from consecutive ChaCha20 blocks, computed side by side.
#pragma once

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

}  // namespace dpcgan::cpu
