// The clip factor, shared by the CPU and CUDA builds.
#pragma once

#include <cmath>

#include "host_device.h"

namespace dpcgan {

// Clipping to max_grad_norm (1 - 2^-20) leaves room for the rounding of the clipped sum, so that its sensitivity stays
// within what is accounted.
constexpr double kClipShrink = 1.0 - 0x1p-20;

// Factor that scales a gradient of squared norm `sq_norm` to at most max_grad_norm; 0 drops a non-finite gradient.
// sq_norm = 0 gives 1; max_grad_norm = inf gives 1 for every finite gradient.
DPCGAN_HOST_DEVICE double clip_factor(double sq_norm, double max_grad_norm) {
  if (!(sq_norm <= 1.7976931348623157e308)) return 0.0;  // also false for NaN
  const double limit = max_grad_norm * kClipShrink;
  const double norm = std::sqrt(sq_norm);
  return norm <= limit ? 1.0 : limit / norm;
}

}  // namespace dpcgan
