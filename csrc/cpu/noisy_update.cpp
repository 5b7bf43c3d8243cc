// One pass over all parameters: clipped sum, Gaussian noise, division, and the optimizer's update.
//
// The noise is that of gaussian_noise_ for the same key and counter, bit for bit. The update is that of torch.optim,
// up to the order of float operations.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "../checks.h"
#include "normal_blocks.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kChunk = 2048;  // elements of one task, whole ChaCha20 blocks

enum class Optimizer { kSgd, kAdam, kRmsprop };

struct Rule {
  Optimizer optimizer;
  // SGD: lr, weight_decay, momentum. Adam: lr, weight_decay, beta1, beta2, eps, and the two bias corrections.
  // RMSprop: lr, weight_decay, alpha, eps.
  double lr, weight_decay, decay1, decay2, eps, correction1, correction2;
};

struct Step {
  double std_dev, divisor, public_divisor;
  ChaChaKey key;
  Rule rule;
};

struct Slice {
  float* parameter;
  float* first;   // momentum or first moment, or nothing
  float* second;  // second moment, or nothing
  const double* sum;
  const double* public_sum;  // or nothing
  int64_t size;
  uint64_t block;  // of the noise
};

DPCGAN_INLINE void apply(const Rule& rule, const Slice& slice, const float* grads) {
  const float lr = rule.lr, decay = rule.weight_decay, first = rule.decay1, second = rule.decay2, eps = rule.eps;
  const float scale = 1.0 / std::sqrt(rule.correction2), rate = rule.lr / rule.correction1;
  const float rest1 = 1.0 - rule.decay1, rest2 = 1.0 - rule.decay2;
  float* p = slice.parameter;
  float *m = slice.first, *v = slice.second;
  switch (rule.optimizer) {
    case Optimizer::kSgd:
      for (int64_t i = 0; i < slice.size; ++i) {
        float g = grads[i] + decay * p[i];
        if (m != nullptr) g = m[i] = first * m[i] + g;
        p[i] -= lr * g;
      }
      break;
    case Optimizer::kAdam:
      for (int64_t i = 0; i < slice.size; ++i) {
        const float g = grads[i] + decay * p[i];
        m[i] += (g - m[i]) * rest1;
        v[i] = second * v[i] + rest2 * g * g;
        p[i] -= rate * m[i] / (std::sqrt(v[i]) * scale + eps);
      }
      break;
    case Optimizer::kRmsprop:
      for (int64_t i = 0; i < slice.size; ++i) {
        const float g = grads[i] + decay * p[i];
        v[i] = first * v[i] + rest1 * g * g;
        p[i] -= lr * g / (std::sqrt(v[i]) + eps);
      }
      break;
  }
}

DPCGAN_INLINE void update_slice(const Step& step, const Slice& slice) {
  double sum[kChunk];
  float grads[kChunk];
  std::copy_n(slice.sum, slice.size, sum);
  if (step.std_dev > 0) add_normals(sum, slice.size, step.std_dev, step.key, slice.block);
  for (int64_t i = 0; i < slice.size; ++i) {
    double grad = sum[i] / step.divisor;
    if (slice.public_sum != nullptr) grad += slice.public_sum[i] / step.public_divisor;
    grads[i] = static_cast<float>(grad);
  }
  apply(step.rule, slice, grads);
}

Rule parse_rule(std::string_view optimizer, c10::ArrayRef<double> s) {
  const auto expect = [&](size_t count) {
    TORCH_CHECK(s.size() == count, "noisy_update_: expected ", count, " settings of ", optimizer, ", got ", s.size());
  };
  if (optimizer == "sgd") {
    expect(3);
    return {Optimizer::kSgd, s[0], s[1], s[2], 0, 0, 1, 1};
  }
  if (optimizer == "adam") {
    expect(7);
    return {Optimizer::kAdam, s[0], s[1], s[2], s[3], s[4], s[5], s[6]};
  }
  TORCH_CHECK(optimizer == "rmsprop", "noisy_update_: expected optimizer sgd, adam or rmsprop, got ", optimizer);
  expect(4);
  return {Optimizer::kRmsprop, s[0], s[1], s[2], 0, s[3], 1, 1};
}

void check_list(const char* argument, at::TensorList tensors, at::TensorList parameters, at::ScalarType dtype) {
  TORCH_CHECK(tensors.size() == parameters.size(), "noisy_update_: expected ", parameters.size(), " ", argument,
              ", one a parameter, got ", tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i)
    TORCH_CHECK(
        tensors[i].scalar_type() == dtype && tensors[i].is_contiguous() && tensors[i].numel() == parameters[i].numel(),
        "noisy_update_: expected ", argument, "[", i, "] to be contiguous ", dtype, " with ", parameters[i].numel(),
        " elements, got shape ", tensors[i].sizes(), " of ", tensors[i].scalar_type());
}

}  // namespace

void noisy_update_cpu(at::TensorList parameters, at::TensorList first, at::TensorList second, at::TensorList sums,
                      at::TensorList public_sums, double std_dev, const at::Tensor& key, int64_t counter,
                      double divisor, double public_divisor, std::string_view optimizer,
                      c10::ArrayRef<double> settings) {
  check_list("parameters", parameters, parameters, at::kFloat);
  check_list("sums", sums, parameters, at::kDouble);
  if (!first.empty()) check_list("first moments", first, parameters, at::kFloat);
  if (!second.empty()) check_list("second moments", second, parameters, at::kFloat);
  if (!public_sums.empty()) check_list("public sums", public_sums, parameters, at::kDouble);
  TORCH_CHECK(divisor > 0 && public_divisor > 0, "noisy_update_: expected positive divisors, got ", divisor, " and ",
              public_divisor);
  Step step{std_dev, divisor, public_divisor, {}, parse_rule(optimizer, settings)};
  TORCH_CHECK(step.rule.optimizer != Optimizer::kAdam || (!first.empty() && !second.empty()),
              "noisy_update_: expected both moments for adam, got ", first.size(), " and ", second.size());
  TORCH_CHECK(step.rule.optimizer != Optimizer::kRmsprop || !second.empty(),
              "noisy_update_: expected second moments for rmsprop, got none");
  if (std_dev > 0) step.key = check_noise_arguments("noisy_update_", sums, std_dev, key, counter);
  std::vector<Slice> slices;
  uint64_t block = static_cast<uint64_t>(counter);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto at = [](at::TensorList list, size_t index) {
      return list.empty() ? nullptr : list[index].mutable_data_ptr<float>();
    };
    const int64_t numel = parameters[i].numel();
    for (int64_t begin = 0; begin < numel; begin += kChunk) {
      float* m = at(first, i);
      float* v = at(second, i);
      const double* given = public_sums.empty() ? nullptr : public_sums[i].const_data_ptr<double>() + begin;
      slices.push_back({parameters[i].mutable_data_ptr<float>() + begin, m == nullptr ? m : m + begin,
                        v == nullptr ? v : v + begin, sums[i].const_data_ptr<double>() + begin, given,
                        std::min(kChunk, numel - begin), block + begin / kNormalsPerBlock});
    }
    block += ceil_div<int64_t>(numel, kNormalsPerBlock);
  }
  at::parallel_for(0, static_cast<int64_t>(slices.size()), 2, [&](int64_t begin, int64_t end) {
    simd_dispatch([&](auto) DPCGAN_INLINE_BODY {
      for (int64_t i = begin; i < end; ++i) update_slice(step, slices[i]);
    });
  });
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) { m.impl("noisy_update_", &dpcgan::cpu::noisy_update_cpu); }
