// When a squared norm may not be trusted, and what rounding can hide: shared by the CPU and CUDA norms.
//
// Rounding errors of a gradient, and of its Gram norm, are proportional to the Cauchy-Schwarz bound
// b = sum_t |g_t| |u_t|  (u_t: the taps at position t), not to the norm, which may be far smaller where the sum over
// positions cancels. A norm that comes out too small would let a record exceed max_grad_norm.
#pragma once

#include <cmath>
#include <limits>

#include "host_device.h"

namespace dpcgan {

// Ratios of b^2 to the squared norm above which a float32 gradient, and a Gram norm in double, are not trusted. A
// float32 gradient has a relative error of about 2^-24 sqrt(ratio), of which only the part along the gradient, smaller
// by the square root of the number of weights, changes its length. A Gram norm has one of 2^-53 ratio.
constexpr double kFloatCancellation = 1e4;
constexpr double kGramCancellation = 1e8;
// Times b, added to the norm: what rounding in double can add to a gradient that is nothing but rounding.
constexpr double kRounding = 2.0 * std::numeric_limits<double>::epsilon();

// Squared norm of one unit's gradient for one channel group, and its Cauchy-Schwarz bound.
struct NormAndBound {
  double sq_norm = 0;
  double bound = 0;

  // False for a NaN norm, which must stay as it is: the clip factor drops the unit.
  DPCGAN_HOST_DEVICE bool cancels(double ratio) const { return sq_norm * ratio < bound * bound; }
  DPCGAN_HOST_DEVICE double rounding_sq_norm() const { return kRounding * bound * (kRounding * bound); }
  // Of the gradient as it may come out where its sum over `positions` is in single precision, and is scaled so: each
  // rounding moves it by at most 2^-24 of the bound, and whoever makes the data may have all of them point one way.
  DPCGAN_HOST_DEVICE double single_sq_norm(int64_t positions) const {
    const double length = std::sqrt(sq_norm) + static_cast<double>(positions + 2) * 0x1p-24 * bound;
    return length * length;
  }
};

}  // namespace dpcgan
