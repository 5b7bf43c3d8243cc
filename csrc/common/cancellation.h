// When a squared norm may not be trusted, and what rounding can hide: shared by the CPU and CUDA norms.
//
// Rounding errors of a gradient, and of its Gram norm, are proportional to the Cauchy-Schwarz bound
// b = sum_t |g_t| |u_t|  (u_t: the taps at position t), not to the norm, which may be far smaller where the sum over
// positions cancels. A norm that comes out too small would let a record exceed max_grad_norm.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace dpcgan {

// Ratio of b^2 to the squared norm above which a float32 gradient is not trusted. It has a relative error of about
// 2^-24 sqrt(ratio), of which only the part along the gradient, smaller by the square root of the number of weights,
// changes its length.
constexpr double kFloatCancellation = 1e4;

// The same of a Gram norm in double, whose relative error is at most 2^-53 ratio for each addition that a product goes
// through: 2^-22 in all.
DPCGAN_HOST_DEVICE double gram_cancellation(int64_t depth) {
  constexpr double kMost = 1e8;
  const double ratio = 0x1p31 / static_cast<double>(depth > 0 ? depth : 1);
  return ratio < kMost ? ratio : kMost;
}

// The gradient of a layer is taken to be at least this share of the sizes that are added up to it. Scaled by its clip
// factor, no sum on the way to it is then above 2^16 max_grad_norm, so that an addition in double errs by 2^-37 of
// max_grad_norm, whatever the data; without, terms that cancel may be so large that the sum of other rows is lost in
// them.
constexpr double kLeastShare = 0x1p-16;

// A squared norm, NaN where it was; sq_sizes: squared norm of the sums of the terms' absolute values, or above.
DPCGAN_HOST_DEVICE double at_least_share(double sq_norm, double sq_sizes) {
  const double least = kLeastShare * kLeastShare * sq_sizes;
  return sq_norm < least ? least : sq_norm;
}

// Squared norm of one unit's gradient for one channel group, and its Cauchy-Schwarz bound.
struct NormAndBound {
  double sq_norm = 0;
  double bound = 0;

  // False for a NaN norm, which must stay as it is: the clip factor drops the unit.
  DPCGAN_HOST_DEVICE bool cancels(double ratio) const { return sq_norm * ratio < bound * bound; }
  // Of the gradient as it may come out where its sum over `positions` is in single precision, and is scaled so: each
  // rounding moves it by at most 2^-24 of the bound, and whoever makes the data may have all of them point one way.
  DPCGAN_HOST_DEVICE double single_sq_norm(int64_t positions) const {
    const double length = std::sqrt(sq_norm) + static_cast<double>(positions + 2) * 0x1p-24 * bound;
    return length * length;
  }
};

}  // namespace dpcgan
