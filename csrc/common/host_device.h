// Marks functions that both the CPU build and nvcc compile, so that arithmetic is written once.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DPCGAN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DPCGAN_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace dpcgan {

// Reinterprets the bits of a value; std::bit_cast is not available in device code of every toolkit.
template <class To, class From>
DPCGAN_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class T>
DPCGAN_HOST_DEVICE T ceil_div(T numerator, T denominator) {
  return (numerator + denominator - 1) / denominator;
}

}  // namespace dpcgan
