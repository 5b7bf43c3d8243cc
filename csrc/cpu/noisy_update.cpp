// One pass over all parameters: clipped sum, Gaussian noise, division, and the optimizer's update.
//
// The noise is that of gaussian_noise_ for the same key and counter, bit for bit. The update is that of torch.optim,
// up to the order of float operations.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "normal_blocks.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kChunk = 2048;  // elements of one task, whole ChaCha20 blocks

struct Slice {
  float* parameter;
  float* first;   // momentum or first moment, or nothing
  float* second;  // second moment, or nothing
  const double* sum;
  const double* public_sum;  // or nothing
  int64_t size;
  uint64_t block;  // of the noise
  float clamp;     // of the moved parameter, inf for none
};

template <int kBytes, Optimizer kOptimizer>
DPCGAN_INLINE void update_slice(const UpdateControl& control, double std_dev, const Slice& slice) {
  alignas(64) double sum[kChunk];
  alignas(64) float grads[kChunk];
  std::copy_n(slice.sum, slice.size, sum);
  if (std_dev > 0) add_normals<kBytes>(sum, slice.size, std_dev, control.key, slice.block);
  for (int64_t i = 0; i < slice.size; ++i)
    grads[i] = private_gradient(sum[i], control.divisor, slice.public_sum == nullptr ? nullptr : slice.public_sum + i,
                                control.public_divisor);
  const UpdateRule rule(kOptimizer, control.settings);
  for (int64_t i = 0; i < slice.size; ++i)
    update_element<kOptimizer>(rule, grads[i], i, slice.parameter, slice.first, slice.second);
  if (std::isfinite(slice.clamp))
    for (int64_t i = 0; i < slice.size; ++i) clamp_element(i, slice.clamp, slice.parameter);
}

std::vector<Slice> cut(at::TensorList parameters, at::TensorList first, at::TensorList second, at::TensorList sums,
                       at::TensorList public_sums, c10::ArrayRef<double> clamps, uint64_t block) {
  const auto data = [](at::TensorList list, size_t index, int64_t begin) -> float* {
    return list.empty() ? nullptr : list[index].mutable_data_ptr<float>() + begin;
  };
  std::vector<Slice> slices;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const int64_t numel = parameters[i].numel();
    for (int64_t begin = 0; begin < numel; begin += kChunk)
      slices.push_back({data(parameters, i, begin), data(first, i, begin), data(second, i, begin),
                        sums[i].const_data_ptr<double>() + begin,
                        public_sums.empty() ? nullptr : public_sums[i].const_data_ptr<double>() + begin,
                        std::min(kChunk, numel - begin), block + begin / kNormalsPerBlock, clamp_of(clamps, i)});
    block += ceil_div<int64_t>(numel, kNormalsPerBlock);
  }
  return slices;
}

void update(Optimizer optimizer, const UpdateControl& control, double std_dev, const std::vector<Slice>& slices) {
  with_optimizer(optimizer, [&](auto rule) {
    at::parallel_for(0, static_cast<int64_t>(slices.size()), 2, [&](int64_t begin, int64_t end) {
      simd_dispatch([&](auto width) DPCGAN_INLINE_BODY {
        for (int64_t i = begin; i < end; ++i)
          update_slice<decltype(width)::value, decltype(rule)::value>(control, std_dev, slices[i]);
      });
    });
  });
}

}  // namespace

void noisy_update_cpu(at::TensorList parameters, at::TensorList first, at::TensorList second, at::TensorList sums,
                      at::TensorList public_sums, double std_dev, const at::Tensor& key, int64_t counter,
                      double divisor, double public_divisor, std::string_view optimizer, c10::ArrayRef<double> settings,
                      c10::ArrayRef<double> clamps) {
  const char* op = "noisy_update_";
  const Optimizer rule = check_noisy_update(op, parameters, first, second, sums, public_sums, optimizer, clamps);
  const ChaChaKey words = std_dev > 0 ? check_noise_arguments(op, sums, std_dev, key, counter) : ChaChaKey{};
  const UpdateControl control = check_update_numbers(op, words, counter, divisor, public_divisor, rule, settings);
  update(rule, control, std_dev, cut(parameters, first, second, sums, public_sums, clamps, control.counter));
}

void noisy_update_armed_cpu(at::TensorList parameters, at::TensorList first, at::TensorList second, at::TensorList sums,
                            at::TensorList public_sums, double std_dev, const at::Tensor& control,
                            std::string_view optimizer, c10::ArrayRef<double> clamps) {
  const char* op = "noisy_update_armed_";
  const Optimizer rule = check_noisy_update(op, parameters, first, second, sums, public_sums, optimizer, clamps);
  UpdateControl* memory = check_update_control(op, control, parameters);
  if (memory->armed != 0)
    update(rule, *memory, std_dev, cut(parameters, first, second, sums, public_sums, clamps, memory->counter));
  *memory = UpdateControl{};
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) {
  m.impl("noisy_update_", &dpcgan::cpu::noisy_update_cpu);
  m.impl("noisy_update_armed_", &dpcgan::cpu::noisy_update_armed_cpu);
}
