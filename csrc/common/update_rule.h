// The end of a private step, element by element: division of the noised sum, and the rules of torch.optim. Shared by
// the CPU and CUDA builds.
#pragma once

#include <cmath>
#include <type_traits>

#include "chacha20.h"

namespace dpcgan {

enum class Optimizer : int { kSgd, kMomentum, kAdam, kRmsprop };

constexpr int kMostUpdateSettings = 7;

// What changes from one step to the next. A CUDA graph reads it from the device's memory, since what a graph was
// captured with stays as it was. The layout is that of `CONTROL` in dpcgan_fast/ops/_reference.py.
struct UpdateControl {
  ChaChaKey key;
  uint64_t counter;  // block of the noise of the first element
  int64_t armed;     // 0: the update does nothing. An update from memory clears that memory, so that none is done twice
  double divisor;
  double public_divisor;
  double settings[kMostUpdateSettings];  // see UpdateRule
};
static_assert(sizeof(UpdateControl) == 15 * sizeof(int64_t), "the layout that Python packs");

struct UpdateRule {
  float rate;
  float weight_decay;
  float decay1;  // momentum, beta1 of Adam, alpha of RMSprop
  float rest1;   // 1 - decay1
  float decay2;
  float rest2;
  float eps;
  float scale;  // of the root of the second moment

  // settings: SGD lr, weight_decay, momentum; Adam lr, weight_decay, beta1, beta2, eps, and the two bias corrections;
  // RMSprop lr, weight_decay, alpha, eps
  DPCGAN_HOST_DEVICE UpdateRule(Optimizer optimizer, const double* settings) {
    const bool adam = optimizer == Optimizer::kAdam, rmsprop = optimizer == Optimizer::kRmsprop;
    rate = static_cast<float>(adam ? settings[0] / settings[5] : settings[0]);
    weight_decay = static_cast<float>(settings[1]);
    decay1 = static_cast<float>(settings[2]);
    rest1 = static_cast<float>(1.0 - settings[2]);
    decay2 = static_cast<float>(adam ? settings[3] : 0.0);
    rest2 = static_cast<float>(adam ? 1.0 - settings[3] : 0.0);
    eps = static_cast<float>(adam ? settings[4] : rmsprop ? settings[3] : 0.0);
    scale = static_cast<float>(adam ? 1.0 / std::sqrt(settings[6]) : 1.0);
  }
};

// public_sum: an element, or null
DPCGAN_HOST_DEVICE float private_gradient(double noisy_sum, double divisor, const double* public_sum,
                                          double public_divisor) {
  double grad = noisy_sum / divisor;
  if (public_sum != nullptr) grad += *public_sum / public_divisor;
  return static_cast<float>(grad);
}

// Moves element i of a parameter. A rule that has no first or second moment does not read it.
template <Optimizer kOptimizer>
DPCGAN_HOST_DEVICE void update_element(const UpdateRule& rule, float grad, int64_t i, float* parameter, float* first,
                                       float* second) {
  const float g = grad + rule.weight_decay * parameter[i];
  if constexpr (kOptimizer == Optimizer::kSgd) {
    parameter[i] -= rule.rate * g;
  } else if constexpr (kOptimizer == Optimizer::kMomentum) {
    first[i] = rule.decay1 * first[i] + g;
    parameter[i] -= rule.rate * first[i];
  } else if constexpr (kOptimizer == Optimizer::kAdam) {
    first[i] += (g - first[i]) * rule.rest1;
    second[i] = rule.decay2 * second[i] + rule.rest2 * g * g;
    parameter[i] -= rule.rate * first[i] / (std::sqrt(second[i]) * rule.scale + rule.eps);
  } else {
    second[i] = rule.decay1 * second[i] + rule.rest1 * g * g;
    parameter[i] -= rule.rate * g / (std::sqrt(second[i]) + rule.eps);
  }
}

// An element that is not finite stays so, as torch.clamp has it.
DPCGAN_HOST_DEVICE void clamp_element(int64_t i, float clamp, float* parameter) {
  if (parameter[i] > clamp) parameter[i] = clamp;
  if (parameter[i] < -clamp) parameter[i] = -clamp;
}

// Calls body with the rule as a compile-time constant.
template <class Body>
void with_optimizer(Optimizer optimizer, const Body& body) {
  switch (optimizer) {
    case Optimizer::kSgd:
      return body(std::integral_constant<Optimizer, Optimizer::kSgd>{});
    case Optimizer::kMomentum:
      return body(std::integral_constant<Optimizer, Optimizer::kMomentum>{});
    case Optimizer::kAdam:
      return body(std::integral_constant<Optimizer, Optimizer::kAdam>{});
    case Optimizer::kRmsprop:
      return body(std::integral_constant<Optimizer, Optimizer::kRmsprop>{});
  }
}

}  // namespace dpcgan
