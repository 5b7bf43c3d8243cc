// Picks the vector width at run time: one kernel body is compiled for AVX-512, AVX2 and the baseline instruction set.
//
//   simd_dispatch([&](auto width) DPCGAN_INLINE_BODY { kernel_body<decltype(width)::value>(...); });
//
// Every function that the body calls with vectors must be marked DPCGAN_INLINE, or it would be compiled for the
// baseline only.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#define DPCGAN_INLINE inline __attribute__((always_inline))
#define DPCGAN_INLINE_BODY __attribute__((always_inline))

#if defined(__x86_64__)
#define DPCGAN_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"), noinline))
#define DPCGAN_TARGET_AVX2 __attribute__((target("avx2,fma"), noinline))
#endif

namespace dpcgan::cpu {

enum class SimdLevel : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

SimdLevel detected_simd_level();
SimdLevel simd_level();
// Forces a level at or below the detected one; tests run every kernel at each. Throws std::invalid_argument.
void set_simd_level(const std::string& name);
const char* simd_level_name(SimdLevel level);

template <int kBytes>
using VectorBytes = std::integral_constant<int, kBytes>;

// `kBytes` wide vector of T; the compiler's own vector extension, so arithmetic is written with plain operators.
template <class T, int kBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));
};

// The first `count` lanes of a vector; the others are zero, and are not stored.
template <class Vector, class T>
DPCGAN_INLINE Vector load_some(const T* from, int64_t count) {
  constexpr int64_t kLanes = sizeof(Vector) / sizeof(T);
  Vector lanes{};
  if (count == kLanes)  // in one instruction; a size that is chosen, and the compiler calls a function
    std::memcpy(&lanes, from, sizeof(Vector));
  else
    std::memcpy(&lanes, from, static_cast<size_t>(count) * sizeof(T));
  return lanes;
}

template <class Vector, class T>
DPCGAN_INLINE void store_some(T* to, const Vector& lanes, int64_t count) {
  constexpr int64_t kLanes = sizeof(Vector) / sizeof(T);
  if (count == kLanes)
    std::memcpy(to, &lanes, sizeof(Vector));
  else
    std::memcpy(to, &lanes, static_cast<size_t>(count) * sizeof(T));
}

#if defined(__x86_64__)
template <class Body>
DPCGAN_TARGET_AVX512 void run_avx512(const Body& body) {
  body(VectorBytes<64>{});
}
template <class Body>
DPCGAN_TARGET_AVX2 void run_avx2(const Body& body) {
  body(VectorBytes<32>{});
}
#endif
template <class Body>
__attribute__((noinline)) void run_portable(const Body& body) {
  body(VectorBytes<16>{});
}

template <class Body>
void simd_dispatch(const Body& body) {
#if defined(__x86_64__)
  if (simd_level() == SimdLevel::kAvx512) return run_avx512(body);
  if (simd_level() == SimdLevel::kAvx2) return run_avx2(body);
#endif
  run_portable(body);
}

// Runs a body as a function of its own, so that its loops get the registers to themselves; from within a body of the
// same width.
template <int kBytes, class Body>
void run_apart(const Body& body) {
#if defined(__x86_64__)
  if constexpr (kBytes == 64) return run_avx512(body);
  if constexpr (kBytes == 32) return run_avx2(body);
#endif
  if constexpr (kBytes == 16) run_portable(body);
}

// `simd_dispatch` for a given number of floats in a vector, which the CPU must offer.
template <class Body>
void lanes_dispatch(int64_t lanes, const Body& body) {
#if defined(__x86_64__)
  if (lanes == 16) return run_avx512(body);
  if (lanes == 8) return run_avx2(body);
#endif
  run_portable(body);
}

// Vectors of a register tile where so many are left of a line: 3, and 2 at the end where 1 would be left over.
inline int64_t product_columns(int64_t left) { return left == 4 ? 2 : left < 3 ? left : 3; }

}  // namespace dpcgan::cpu
