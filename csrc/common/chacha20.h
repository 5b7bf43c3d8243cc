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

template <class Word>
DPCGAN_HOST_DEVICE Word rotate_left(Word value, int bits) {
  return (value << bits) | (value >> (32 - bits));
}

template <class Word>
DPCGAN_HOST_DEVICE void chacha_quarter_round(Word& a, Word& b, Word& c, Word& d) {
  a += b;
  d = rotate_left(d ^ a, 16);
  c += d;
  b = rotate_left(b ^ c, 12);
  a += b;
  d = rotate_left(d ^ a, 8);
  c += d;
  b = rotate_left(b ^ c, 7);
}

// Writes the block of a counter, given by its halves. Word is uint32_t, or a vector of them whose lanes are blocks of
// their own: with as many registers as words, no round touches memory.
template <class Word>
DPCGAN_HOST_DEVICE void chacha20_block(const ChaChaKey& key, uint64_t nonce, Word counter_low, Word counter_high,
                                       Word (&out)[kChaChaWords]) {
  const uint32_t constants[4] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};  // "expand 32-byte k"
  for (int w = 0; w < 4; ++w) out[w] = Word{} + constants[w];
  for (int w = 0; w < kChaChaKeyWords; ++w) out[4 + w] = Word{} + key.word[w];
  out[12] = counter_low;
  out[13] = counter_high;
  out[14] = Word{} + static_cast<uint32_t>(nonce);
  out[15] = Word{} + static_cast<uint32_t>(nonce >> 32);
  for (int round = 0; round < kChaChaDoubleRounds; ++round) {
    chacha_quarter_round(out[0], out[4], out[8], out[12]);
    chacha_quarter_round(out[1], out[5], out[9], out[13]);
    chacha_quarter_round(out[2], out[6], out[10], out[14]);
    chacha_quarter_round(out[3], out[7], out[11], out[15]);
    chacha_quarter_round(out[0], out[5], out[10], out[15]);
    chacha_quarter_round(out[1], out[6], out[11], out[12]);
    chacha_quarter_round(out[2], out[7], out[8], out[13]);
    chacha_quarter_round(out[3], out[4], out[9], out[14]);
  }
  for (int w = 0; w < 4; ++w) out[w] += Word{} + constants[w];
  for (int w = 0; w < kChaChaKeyWords; ++w) out[4 + w] += Word{} + key.word[w];
  out[12] += counter_low;
  out[13] += counter_high;
  out[14] += Word{} + static_cast<uint32_t>(nonce);
  out[15] += Word{} + static_cast<uint32_t>(nonce >> 32);
}

// The block of one counter.
DPCGAN_HOST_DEVICE void chacha20_block(const ChaChaKey& key, uint64_t nonce, uint64_t counter,
                                       uint32_t (&out)[kChaChaWords]) {
  chacha20_block(key, nonce, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), out);
}

}  // namespace dpcgan
