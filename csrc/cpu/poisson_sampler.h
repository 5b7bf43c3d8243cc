// Poisson sampling of units in O(draws + blocks): geometric skips inside fixed blocks of units.
//
// Each block of units has its own ChaCha20 stream, keyed by (secret key, step, block). A draw therefore depends
// neither on how many processes share the units nor on the order in which blocks are visited.
#pragma once

#include <cmath>
#include <vector>

#include "../common/gaussian.h"

namespace dpcgan::cpu {

constexpr int64_t kUnitsPerBlock = 65536;

// Stream of uniforms in (0, 1] of one (step, block of units).
class UniformStream {
 public:
  UniformStream(const ChaChaKey& key, uint64_t step, uint64_t unit_block)
      : key_(key), nonce_(step), counter_(unit_block << 32) {}

  double next() {
    if (used_ == kChaChaWords) {
      chacha20_block(key_, nonce_, counter_++, words_);
      used_ = 0;
    }
    const double value = uniform_positive(uniform53(words_[used_], words_[used_ + 1]));
    used_ += 2;
    return value;
  }

 private:
  ChaChaKey key_;
  uint64_t nonce_;
  uint64_t counter_;
  uint32_t words_[kChaChaWords];
  int used_ = kChaChaWords;
};

// Sorted indices in [0, units); each is present independently with probability sample_rate in (0, 1].
// P(skip = m) = q (1 - q)^m by inversion: skip = floor(log(u) / log(1 - q)), u uniform.
inline std::vector<int64_t> poisson_sample(const ChaChaKey& key, uint64_t step, int64_t units, double sample_rate) {
  std::vector<int64_t> drawn;
  const double log_miss = std::log1p(-sample_rate);
  for (int64_t begin = 0; begin < units; begin += kUnitsPerBlock) {
    const int64_t end = std::min(begin + kUnitsPerBlock, units);
    UniformStream uniforms(key, step, static_cast<uint64_t>(begin / kUnitsPerBlock));
    for (int64_t unit = begin; unit < end; ++unit) {
      const double skip = std::floor(std::log(uniforms.next()) / log_miss);  // sample_rate 1: -x / -inf = 0
      if (skip >= static_cast<double>(end - unit)) break;
      unit += static_cast<int64_t>(skip);
      drawn.push_back(unit);
    }
  }
  return drawn;
}

}  // namespace dpcgan::cpu
