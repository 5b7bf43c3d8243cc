// Argument checks shared by the CPU and CUDA implementations of an op: each op calls its check first, so that kernels
// may assume valid input. Messages say op, argument, expected and got; they never contain a tensor's values.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>
#include <string_view>

#include "common/chacha20.h"
#include "common/conv_geometry.h"
#include "common/update_rule.h"

namespace dpcgan {

// Whether an implementation takes operands in bfloat16, too.
enum class Operands { kFloats, kFloatsAndBFloat16 };

// x: (B, C, L), g: (B, O, T), any strides, one dtype, one device.
ConvGeometry check_conv(const char* op, const at::Tensor& x, const at::Tensor& g, int64_t kernel_size, int64_t stride,
                        int64_t padding, int64_t dilation, int64_t groups, int64_t bias_role,
                        Operands taken = Operands::kFloats);

OperandStrides operand_strides(const at::Tensor& operand);

// mode: "direct" or "gram"; true for gram.
bool check_norm_mode(const char* op, std::string_view mode);

// row_order: (B,) int64 and unit_offsets: (U + 1,) int64, both or neither. Unit u holds rows
// row_order[unit_offsets[u] : unit_offsets[u + 1]]. Returns U, which is B without grouping.
// The values are checked where they can be read without a device synchronisation, that is, on the CPU.
int64_t check_units(const char* op, const std::optional<at::Tensor>& row_order,
                    const std::optional<at::Tensor>& unit_offsets, int64_t rows, const at::Device& device);

// factor: (B,) float64 on the device of the rows.
void check_row_factor(const char* op, const at::Tensor& factor, int64_t rows, const at::Device& device);

// sq_norm: (U,) float64, contiguous; max_grad_norm > 0, inf allowed; valid: () int64 on the device, or nothing.
void check_clip_factor(const char* op, const at::Tensor& sq_norm, double max_grad_norm,
                       const std::optional<at::Tensor>& valid);

// max_grad_norm and valid as in check_clip_factor; returns the number on the device, or null.
const int64_t* check_clip_limits(const char* op, double max_grad_norm, const std::optional<at::Tensor>& valid,
                                 const at::Device& device);

// Per-sample gradients: the same leading dimension B in each, one dtype of float32 and float64, one device.
int64_t check_per_sample_grads(const char* op, at::TensorList grads);

// key: (8,) int32 on the CPU.
ChaChaKey check_key(const char* op, const at::Tensor& key);
ChaChaKey check_noise_arguments(const char* op, at::TensorList tensors, double std_dev, const at::Tensor& key,
                                int64_t counter);

// Parameters and moments: contiguous float32, sums: contiguous float64, all on one device; lists that may be empty hold
// one tensor a parameter or none. Returns the rule.
Optimizer check_noisy_update(const char* op, at::TensorList parameters, at::TensorList first, at::TensorList second,
                             at::TensorList sums, at::TensorList public_sums, std::string_view optimizer,
                             c10::ArrayRef<double> clamps);

// The clamp of a parameter; inf where there is none.
inline float clamp_of(c10::ArrayRef<double> clamps, size_t parameter) {
  return clamps.empty() ? std::numeric_limits<float>::infinity() : static_cast<float>(clamps[parameter]);
}

// Of the optimizer's settings, and positive divisors; returns them with the key and the counter, armed.
UpdateControl check_update_numbers(const char* op, const ChaChaKey& key, int64_t counter, double divisor,
                                   double public_divisor, Optimizer optimizer, c10::ArrayRef<double> settings);

// control: (15,) int64 on the device of the parameters, an UpdateControl in memory.
UpdateControl* check_update_control(const char* op, const at::Tensor& control, at::TensorList parameters);

// x, g: (B, C, S) of one shape; groups divides C; eps > 0.
void check_norm_affine(const char* op, const at::Tensor& x, const at::Tensor& g, int64_t groups, double eps,
                       Operands taken = Operands::kFloats);

}  // namespace dpcgan
