// Standard normals from ChaCha20 words: 53-bit uniforms, Box-Muller in double, and the public rounding grid.
//
// Why double and 53 bits: with 24-bit or 32-bit uniforms the radii of Box-Muller form a lattice that an observer of
// one noisy sum can recognise, which breaks differential privacy outright. Why a grid: the sum `value + noise` is
// rounded once to multiples of a power of two that depends on public quantities only (I. Mironov, "On significance
// of the least significant bits for differential privacy", CCS 2012).
//
// The functions are branch-free so that a loop over them vectorises; accuracy is a few ulp, checked against libm.
#pragma once

#include <cmath>

#include "chacha20.h"

namespace dpcgan {

constexpr int kNormalsPerBlock = kChaChaWords / 2;  // a pair of normals takes two 53-bit uniforms, that is, four words
constexpr uint64_t kNoiseNonce = 0;                 // the key serves noise alone, so the counter tells all blocks apart
constexpr int kGridBits = 20;                       // grid = 2^(floor(log2(std)) - kGridBits)

// Integer in [0, 2^53) from two words, kept as two halves because int32 -> double converts fast on every target.
struct Uniform53 {
  int32_t high;  // 27 bits
  int32_t low;   // 26 bits
};

DPCGAN_HOST_DEVICE Uniform53 uniform53(uint32_t word0, uint32_t word1) {
  return {static_cast<int32_t>(word0 >> 5), static_cast<int32_t>(word1 >> 6)};
}

// (integer + 1) / 2^53, in (0, 1]: never zero, so that the logarithm is finite.
DPCGAN_HOST_DEVICE double uniform_positive(Uniform53 u) {
  return (static_cast<double>(u.high) * 67108864.0 + (static_cast<double>(u.low) + 1.0)) * 0x1p-53;
}

// Natural logarithm of a normal positive double. Polynomial of FreeBSD's e_log.c (Sun Microsystems, 1993).
DPCGAN_HOST_DEVICE double fast_log(double value) {
  const uint64_t bits = bit_cast<uint64_t>(value);
  // Shifts the mantissa interval to [sqrt(1/2), sqrt(2)), where the series is shortest.
  const uint64_t shifted = bits + (0x3ff0000000000000ull - 0x3fe6a09e667f3bcdull);
  const int32_t exponent = static_cast<int32_t>(static_cast<uint32_t>(shifted >> 32) >> 20) - 1023;
  const double mantissa = bit_cast<double>((shifted & 0x000fffffffffffffull) + 0x3fe6a09e667f3bcdull);
  const double f = mantissa - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double w = z * z;
  const double odd = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double even =
      z * (6.666666666666735130e-01 +
           w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  const double half_square = 0.5 * f * f;
  const double e = static_cast<double>(exponent);
  return e * 6.93147180369123816490e-01 -
         ((half_square - (s * (half_square + odd + even) + e * 1.90821492927058770002e-10)) - f);
}

// sin and cos of 2 pi u. The quadrant comes from the integer, so the argument reduction is exact.
// Polynomials of FreeBSD's k_sin.c and k_cos.c (Sun Microsystems, 1993) on [-pi/4, pi/4].
DPCGAN_HOST_DEVICE void sincos_turn(Uniform53 u, double& sine, double& cosine) {
  const int32_t eighth = 1 << 24;           // an eighth of a turn, in units of 2^-27 turns
  const int32_t rotated = u.high + eighth;  // < 2^28
  const int32_t quadrant = (rotated >> 25) & 3;
  const int32_t rest = (rotated & ((1 << 25) - 1)) - eighth;  // in [-2^24, 2^24)
  const double x =
      (static_cast<double>(rest) + static_cast<double>(u.low) * 0x1p-26) * (6.283185307179586476925 * 0x1p-27);
  const double z = x * x;
  const double s = x + x * z *
                           (-1.66666666666666324348e-01 +
                            z * (8.33333333332248946124e-03 +
                                 z * (-1.98412698298579493134e-04 +
                                      z * (2.75573137070700676789e-06 +
                                           z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
  const double c = 1.0 - 0.5 * z +
                   z * z *
                       (4.16666666666666019037e-02 +
                        z * (-1.38888888888741095749e-03 +
                             z * (2.48015872894767294178e-05 +
                                  z * (-2.75573143513906633035e-07 +
                                       z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)))));
  const bool swapped = (quadrant & 1) != 0;
  const double a = swapped ? c : s;
  const double b = swapped ? s : c;
  sine = (quadrant & 2) != 0 ? -a : a;
  cosine = ((quadrant + 1) & 2) != 0 ? -b : b;
}

// Two independent standard normals (Box and Muller, 1958). Largest magnitude sqrt(2 * 53 * ln 2) = 8.57.
DPCGAN_HOST_DEVICE void box_muller(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3, double& first, double& second) {
  const double radius = std::sqrt(-2.0 * fast_log(uniform_positive(uniform53(w0, w1))));
  double sine, cosine;
  sincos_turn(uniform53(w2, w3), sine, cosine);
  first = radius * cosine;
  second = radius * sine;
}

// Spacing of the released values: public, since std = noise_multiplier * max_grad_norm is.
inline double noise_grid(double std_dev) { return std::ldexp(1.0, std::ilogb(std_dev) - kGridBits); }

DPCGAN_HOST_DEVICE double round_to_grid(double value, double grid, double inverse_grid) {
  return std::rint(value * inverse_grid) * grid;
}

}  // namespace dpcgan
