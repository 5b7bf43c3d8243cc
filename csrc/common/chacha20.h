// ChaCha20 block function with a 64-bit nonce and a 64-bit block counter (D. J. Bernstein, "ChaCha, a variant of
// Salsa20", 2008; the round function is that of RFC 8439 section 2.1).
#pragma once

#include "host_device.h"

namespace dpcgan {

constexpr int kChaChaWords = 16;    // 32-bit words that one block yields
constexpr int kChaChaKeyWords = 8;  // 256-bit key
constexpr int kChaChaDoubleRounds = 10;

struct ChaChaKey {
  uint32_t word[kChaChaKeyWords];
};

DPCGAN_HOST_DEVICE uint32_t rotate_left(uint32_t value, int bits) { return (value << bits) | (value >> (32 - bits)); }

DPCGAN_HOST_DEVICE void chacha_quarter_round(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  a += b;
  d ^= a;
  d = rotate_left(d, 16);
  c += d;
  b ^= c;
  b = rotate_left(b, 12);
  a += b;
  d ^= a;
  d = rotate_left(d, 8);
  c += d;
  b ^= c;
  b = rotate_left(b, 7);
}

// Writes kBlocks consecutive blocks from `counter` on, word-major: out[w][lane] is word w of block counter + lane.
// The lane loops are what a compiler turns into vector instructions; a GPU thread calls it with kBlocks = 1.
template <int kBlocks>
DPCGAN_HOST_DEVICE void chacha20_blocks(const ChaChaKey& key, uint64_t nonce, uint64_t counter,
                                        uint32_t (&out)[kChaChaWords][kBlocks]) {
  const uint32_t constants[4] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};  // "expand 32-byte k"
  uint32_t start[kChaChaWords][kBlocks];
  for (int lane = 0; lane < kBlocks; ++lane) {
    const uint64_t block = counter + static_cast<uint64_t>(lane);
    for (int w = 0; w < 4; ++w) start[w][lane] = constants[w];
    for (int w = 0; w < kChaChaKeyWords; ++w) start[4 + w][lane] = key.word[w];
    start[12][lane] = static_cast<uint32_t>(block);
    start[13][lane] = static_cast<uint32_t>(block >> 32);
    start[14][lane] = static_cast<uint32_t>(nonce);
    start[15][lane] = static_cast<uint32_t>(nonce >> 32);
  }
  for (int w = 0; w < kChaChaWords; ++w)
    for (int lane = 0; lane < kBlocks; ++lane) out[w][lane] = start[w][lane];
  for (int round = 0; round < kChaChaDoubleRounds; ++round) {
    for (int i = 0; i < 4; ++i)
      for (int lane = 0; lane < kBlocks; ++lane)
        chacha_quarter_round(out[i][lane], out[4 + i][lane], out[8 + i][lane], out[12 + i][lane]);
    for (int i = 0; i < 4; ++i)
      for (int lane = 0; lane < kBlocks; ++lane)
        chacha_quarter_round(out[i][lane], out[4 + (i + 1) % 4][lane], out[8 + (i + 2) % 4][lane],
                             out[12 + (i + 3) % 4][lane]);
  }
  for (int w = 0; w < kChaChaWords; ++w)
    for (int lane = 0; lane < kBlocks; ++lane) out[w][lane] += start[w][lane];
}

}  // namespace dpcgan
