// Uniform numbers from ChaCha20, several times as fast as a generator that goes from number to number.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../checks.h"
#include "normal_blocks.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kBatch = kNoiseLanes * kChaChaWords;  // numbers of the blocks that are computed side by side

// Word w of block b is number (w, b) of its batch. The upper 24 bits are all that a float in [0, 1) has room for.
template <int kBytes>
DPCGAN_INLINE void fill_batch(const ChaChaKey& key, int64_t batch, float* out, int64_t count) {
  using Words = typename VectorOf<int32_t, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  alignas(64) uint32_t words[kChaChaWords][kNoiseLanes];
  noise_words<kBytes>(key, static_cast<uint64_t>(batch * kNoiseLanes), words);
  const uint32_t* word = words[0];
  for (int64_t i = 0; i < count; i += kLanes) {
    typename VectorOf<uint32_t, kBytes>::type bits;
    std::memcpy(&bits, word + i, kBytes);
    const auto number = __builtin_convertvector((Words)(bits >> 8), typename VectorOf<float, kBytes>::type) * 0x1p-24F;
    store_some(out + i, number, std::min(kLanes, count - i));
  }
}

}  // namespace

void uniform_cpu(at::Tensor out, const at::Tensor& key) {
  TORCH_CHECK(out.is_contiguous() && out.scalar_type() == at::kFloat,
              "uniform_: expected out to be contiguous float32, got ", out.scalar_type(), " of strides ",
              out.strides());
  const ChaChaKey words = check_key("uniform_", key);
  float* numbers = out.mutable_data_ptr<float>();
  const int64_t count = out.numel();
  at::parallel_for(0, ceil_div(count, kBatch), 8, [&](int64_t begin, int64_t end) {
    simd_dispatch([&](auto width) DPCGAN_INLINE_BODY {
      for (int64_t batch = begin; batch < end; ++batch)
        fill_batch<decltype(width)::value>(words, batch, numbers + batch * kBatch,
                                           std::min(kBatch, count - batch * kBatch));
    });
  });
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) { m.impl("uniform_", &dpcgan::cpu::uniform_cpu); }
