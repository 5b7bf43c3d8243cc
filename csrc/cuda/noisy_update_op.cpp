// One launch over all parameters: clipped sum, Gaussian noise, division, and the optimizer's update.
#include <string_view>
#include <vector>

#include "op_common.h"

namespace dpcgan::cuda {
namespace {

void update(at::TensorList parameters, at::TensorList first, at::TensorList second, at::TensorList sums,
            at::TensorList public_sums, c10::ArrayRef<double> clamps, Optimizer optimizer, double std_dev,
            const UpdateControl& given, UpdateControl* memory) {
  if (parameters.empty()) return;
  const c10::cuda::CUDAGuard guard(parameters[0].device());
  const auto data = [](at::TensorList list, size_t index) {
    return list.empty() ? nullptr : list[index].mutable_data_ptr<float>();
  };
  std::vector<UpdateTensor> tensors;
  for (size_t i = 0; i < parameters.size(); ++i)
    tensors.push_back({data(parameters, i), data(first, i), data(second, i), sums[i].const_data_ptr<double>(),
                       public_sums.empty() ? nullptr : public_sums[i].const_data_ptr<double>(), parameters[i].numel(),
                       clamp_of(clamps, i)});
  launch_noisy_update(tensors.data(), static_cast<int64_t>(tensors.size()), optimizer, std_dev, given, memory,
                      c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

// The key is on the CPU and travels as a kernel argument.
void noisy_update_cuda(at::TensorList parameters, at::TensorList first, at::TensorList second, at::TensorList sums,
                       at::TensorList public_sums, double std_dev, const at::Tensor& key, int64_t counter,
                       double divisor, double public_divisor, std::string_view optimizer,
                       c10::ArrayRef<double> settings, c10::ArrayRef<double> clamps) {
  const char* op = "noisy_update_";
  const Optimizer rule = check_noisy_update(op, parameters, first, second, sums, public_sums, optimizer, clamps);
  const ChaChaKey words = std_dev > 0 ? check_noise_arguments(op, sums, std_dev, key, counter) : ChaChaKey{};
  const UpdateControl control = check_update_numbers(op, words, counter, divisor, public_divisor, rule, settings);
  update(parameters, first, second, sums, public_sums, clamps, rule, std_dev, control, nullptr);
}

// Here the key lies in device memory: a graph repeats its kernels' arguments, and the key's owner may be exchanged.
void noisy_update_armed_cuda(at::TensorList parameters, at::TensorList first, at::TensorList second,
                             at::TensorList sums, at::TensorList public_sums, double std_dev, const at::Tensor& control,
                             std::string_view optimizer, c10::ArrayRef<double> clamps) {
  const char* op = "noisy_update_armed_";
  const Optimizer rule = check_noisy_update(op, parameters, first, second, sums, public_sums, optimizer, clamps);
  update(parameters, first, second, sums, public_sums, clamps, rule, std_dev, {},
         check_update_control(op, control, parameters));
}

}  // namespace dpcgan::cuda

TORCH_LIBRARY_IMPL(dpcgan_fast, CUDA, m) {
  m.impl("noisy_update_", &dpcgan::cuda::noisy_update_cuda);
  m.impl("noisy_update_armed_", &dpcgan::cuda::noisy_update_armed_cuda);
}
