#include "checks.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <cmath>

namespace dpcgan {
namespace {

void check_dtype(const char* op, const char* argument, const at::Tensor& tensor, Operands taken = Operands::kFloats) {
  const bool half = taken == Operands::kFloatsAndBFloat16;
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble ||
                  (half && tensor.scalar_type() == at::kBFloat16),
              op, ": expected ", argument, " of dtype ", half ? "bfloat16, " : "", "float32 or float64, got ",
              tensor.scalar_type());
}

void check_positive(const char* op, const char* argument, int64_t value) {
  TORCH_CHECK(value > 0, op, ": expected ", argument, " > 0, got ", value);
}

void check_index_vector(const char* op, const char* argument, const at::Tensor& tensor, int64_t size,
                        const at::Device& device) {
  TORCH_CHECK(tensor.dim() == 1 && tensor.scalar_type() == at::kLong && tensor.is_contiguous(), op, ": expected ",
              argument, " to be a contiguous int64 vector, got shape ", tensor.sizes(), " of dtype ",
              tensor.scalar_type());
  TORCH_CHECK(size < 0 || tensor.numel() == size, op, ": expected ", argument, " of shape (", size, ",), got ",
              tensor.sizes());
  TORCH_CHECK(tensor.device() == device, op, ": expected ", argument, " on ", device, ", got ", tensor.device());
}

}  // namespace

ConvGeometry check_conv(const char* op, const at::Tensor& x, const at::Tensor& g, int64_t kernel_size, int64_t stride,
                        int64_t padding, int64_t dilation, int64_t groups, int64_t bias_role, Operands taken) {
  TORCH_CHECK(x.dim() == 3, op, ": expected x of shape (B, C, L), got ", x.sizes());
  TORCH_CHECK(g.dim() == 3, op, ": expected g of shape (B, O, T), got ", g.sizes());
  TORCH_CHECK(x.size(0) == g.size(0), op, ": expected x and g with one batch size, got ", x.size(0), " and ",
              g.size(0));
  check_dtype(op, "x", x, taken);
  TORCH_CHECK(x.scalar_type() == g.scalar_type(), op, ": expected x and g of one dtype, got ", x.scalar_type(), " and ",
              g.scalar_type());
  TORCH_CHECK(x.device() == g.device(), op, ": expected x and g on one device, got ", x.device(), " and ", g.device());
  check_positive(op, "kernel_size", kernel_size);
  check_positive(op, "stride", stride);
  check_positive(op, "dilation", dilation);
  check_positive(op, "groups", groups);
  TORCH_CHECK(padding >= 0, op, ": expected padding >= 0, got ", padding);
  TORCH_CHECK(x.size(1) % groups == 0 && g.size(1) % groups == 0, op, ": expected groups=", groups,
              " to divide the channels of x and g, got ", x.size(1), " and ", g.size(1));
  TORCH_CHECK(bias_role >= 0 && bias_role <= 2, op, ": expected bias_role in {0 none, 1 grad, 2 input}, got ",
              bias_role);
  return ConvGeometry{x.size(0),
                      x.size(1),
                      x.size(2),
                      g.size(1),
                      g.size(2),
                      kernel_size,
                      stride,
                      padding,
                      dilation,
                      groups,
                      static_cast<BiasRole>(bias_role)};
}

OperandStrides operand_strides(const at::Tensor& operand) {
  return {operand.stride(0), operand.stride(1), operand.stride(2)};
}

bool check_norm_mode(const char* op, std::string_view mode) {
  TORCH_CHECK(mode == "direct" || mode == "gram", op, ": expected mode direct or gram, got ", mode);
  return mode == "gram";
}

int64_t check_units(const char* op, const std::optional<at::Tensor>& row_order,
                    const std::optional<at::Tensor>& unit_offsets, int64_t rows, const at::Device& device) {
  TORCH_CHECK(row_order.has_value() == unit_offsets.has_value(), op,
              ": expected row_order and unit_offsets both or neither, got only one of them");
  if (!row_order.has_value()) return rows;
  check_index_vector(op, "row_order", *row_order, rows, device);
  check_index_vector(op, "unit_offsets", *unit_offsets, -1, device);
  TORCH_CHECK(unit_offsets->numel() >= 1, op, ": expected unit_offsets of shape (U + 1,), got an empty tensor");
  const int64_t units = unit_offsets->numel() - 1;
  if (device.is_cpu()) {
    const int64_t* order = row_order->const_data_ptr<int64_t>();
    const int64_t* offsets = unit_offsets->const_data_ptr<int64_t>();
    TORCH_CHECK(offsets[0] == 0 && offsets[units] == rows, op, ": expected unit_offsets to run from 0 to ", rows,
                ", got ", offsets[0], " to ", offsets[units]);
    for (int64_t u = 0; u < units; ++u)
      TORCH_CHECK(offsets[u] <= offsets[u + 1], op, ": expected unit_offsets not to fall, got a fall at ", u + 1);
    for (int64_t i = 0; i < rows; ++i)
      TORCH_CHECK(order[i] >= 0 && order[i] < rows, op, ": expected row_order in [0, ", rows, "), got ", order[i]);
  }
  return units;
}

void check_row_factor(const char* op, const at::Tensor& factor, int64_t rows, const at::Device& device) {
  TORCH_CHECK(
      factor.dim() == 1 && factor.numel() == rows && factor.scalar_type() == at::kDouble && factor.is_contiguous(), op,
      ": expected factor to be a contiguous float64 vector of shape (", rows, ",), got shape ", factor.sizes(),
      " of dtype ", factor.scalar_type());
  TORCH_CHECK(factor.device() == device, op, ": expected factor on ", device, ", got ", factor.device());
}

const int64_t* check_clip_limits(const char* op, double max_grad_norm, const std::optional<at::Tensor>& valid,
                                 const at::Device& device) {
  TORCH_CHECK(max_grad_norm > 0, op, ": expected max_grad_norm > 0, got ", max_grad_norm);
  if (!valid.has_value()) return nullptr;
  TORCH_CHECK(valid->numel() == 1 && valid->scalar_type() == at::kLong && valid->device() == device, op,
              ": expected valid to be one int64 on ", device, ", got shape ", valid->sizes(), " of dtype ",
              valid->scalar_type(), " on ", valid->device());
  return valid->const_data_ptr<int64_t>();
}

void check_clip_factor(const char* op, const at::Tensor& sq_norm, double max_grad_norm,
                       const std::optional<at::Tensor>& valid) {
  TORCH_CHECK(sq_norm.dim() == 1 && sq_norm.scalar_type() == at::kDouble && sq_norm.is_contiguous(), op,
              ": expected sq_norm to be a contiguous float64 vector, got shape ", sq_norm.sizes(), " of dtype ",
              sq_norm.scalar_type());
  check_clip_limits(op, max_grad_norm, valid, sq_norm.device());
}

int64_t check_per_sample_grads(const char* op, at::TensorList grads) {
  TORCH_CHECK(!grads.empty(), op, ": expected at least one per-sample gradient, got an empty list");
  const at::Tensor& first = grads[0];
  for (size_t i = 0; i < grads.size(); ++i) {
    const at::Tensor& grad = grads[i];
    TORCH_CHECK(grad.dim() >= 1, op, ": expected grads[", i, "] of shape (B, ...), got a scalar");
    check_dtype(op, "grads", grad);
    TORCH_CHECK(grad.scalar_type() == first.scalar_type(), op, ": expected grads[", i, "] of dtype ",
                first.scalar_type(), ", got ", grad.scalar_type());
    TORCH_CHECK(grad.device() == first.device(), op, ": expected grads[", i, "] on ", first.device(), ", got ",
                grad.device());
    TORCH_CHECK(grad.size(0) == first.size(0), op, ": expected grads[", i, "] with leading dimension ", first.size(0),
                ", got ", grad.sizes());
  }
  return first.size(0);
}

ChaChaKey check_key(const char* op, const at::Tensor& key) {
  TORCH_CHECK(key.device().is_cpu() && key.scalar_type() == at::kInt && key.dim() == 1 &&
                  key.numel() == kChaChaKeyWords && key.is_contiguous(),
              op, ": expected key to be a contiguous int32 vector of shape (", kChaChaKeyWords,
              ",) on the CPU, got shape ", key.sizes(), " of dtype ", key.scalar_type(), " on ", key.device());
  ChaChaKey words;
  const int32_t* data = key.const_data_ptr<int32_t>();
  for (int w = 0; w < kChaChaKeyWords; ++w) words.word[w] = static_cast<uint32_t>(data[w]);
  return words;
}

ChaChaKey check_noise_arguments(const char* op, at::TensorList tensors, double std_dev, const at::Tensor& key,
                                int64_t counter) {
  TORCH_CHECK(std::isfinite(std_dev) && std_dev > 0, op, ": expected a finite std > 0, got ", std_dev);
  TORCH_CHECK(counter >= 0, op, ": expected counter >= 0, got ", counter);
  const ChaChaKey words = check_key(op, key);
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_dtype(op, "tensors", tensors[i]);
    TORCH_CHECK(tensors[i].is_contiguous(), op, ": expected tensors[", i, "] to be contiguous, got strides ",
                tensors[i].strides());
    TORCH_CHECK(tensors[i].device() == tensors[0].device(), op, ": expected tensors[", i, "] on ", tensors[0].device(),
                ", got ", tensors[i].device());
    TORCH_CHECK(!tensors[i].requires_grad(), op, ": expected tensors[", i,
                "] without requires_grad, since noise has no derivative");
  }
  return words;
}

namespace {

void check_update_list(const char* op, const char* argument, at::TensorList tensors, at::TensorList parameters,
                       at::ScalarType dtype) {
  TORCH_CHECK(tensors.size() == parameters.size(), op, ": expected ", parameters.size(), " ", argument,
              ", one a parameter, got ", tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    TORCH_CHECK(
        tensors[i].scalar_type() == dtype && tensors[i].is_contiguous() && tensors[i].numel() == parameters[i].numel(),
        op, ": expected ", argument, "[", i, "] to be contiguous ", dtype, " with ", parameters[i].numel(),
        " elements, got shape ", tensors[i].sizes(), " of ", tensors[i].scalar_type());
    TORCH_CHECK(tensors[i].device() == parameters[0].device(), op, ": expected ", argument, "[", i, "] on ",
                parameters[0].device(), ", got ", tensors[i].device());
  }
}

}  // namespace

Optimizer check_noisy_update(const char* op, at::TensorList parameters, at::TensorList first, at::TensorList second,
                             at::TensorList sums, at::TensorList public_sums, std::string_view optimizer,
                             c10::ArrayRef<double> clamps) {
  check_update_list(op, "parameters", parameters, parameters, at::kFloat);
  check_update_list(op, "sums", sums, parameters, at::kDouble);
  if (!first.empty()) check_update_list(op, "first moments", first, parameters, at::kFloat);
  if (!second.empty()) check_update_list(op, "second moments", second, parameters, at::kFloat);
  if (!public_sums.empty()) check_update_list(op, "public sums", public_sums, parameters, at::kDouble);
  TORCH_CHECK(clamps.empty() || clamps.size() == parameters.size(), op, ": expected ", parameters.size(),
              " clamps, one a parameter, got ", clamps.size());
  for (const double clamp : clamps) TORCH_CHECK(clamp > 0, op, ": expected clamps > 0, got ", clamp);
  if (optimizer == "sgd") return first.empty() ? Optimizer::kSgd : Optimizer::kMomentum;
  TORCH_CHECK(optimizer == "adam" || optimizer == "rmsprop", op, ": expected optimizer sgd, adam or rmsprop, got ",
              optimizer);
  TORCH_CHECK(parameters.empty() || optimizer == "rmsprop" || (!first.empty() && !second.empty()), op,
              ": expected both moments for adam, got ", first.size(), " and ", second.size());
  TORCH_CHECK(parameters.empty() || !second.empty(), op, ": expected second moments for rmsprop, got none");
  return optimizer == "adam" ? Optimizer::kAdam : Optimizer::kRmsprop;
}

UpdateControl check_update_numbers(const char* op, const ChaChaKey& key, int64_t counter, double divisor,
                                   double public_divisor, Optimizer optimizer, c10::ArrayRef<double> settings) {
  TORCH_CHECK(divisor > 0 && public_divisor > 0, op, ": expected positive divisors, got ", divisor, " and ",
              public_divisor);
  const size_t count = optimizer == Optimizer::kAdam ? 7 : optimizer == Optimizer::kRmsprop ? 4 : 3;
  TORCH_CHECK(settings.size() == count, op, ": expected ", count, " settings, got ", settings.size());
  UpdateControl control{key, static_cast<uint64_t>(counter), 1, divisor, public_divisor, {}};
  for (size_t i = 0; i < count; ++i) control.settings[i] = settings[i];
  return control;
}

UpdateControl* check_update_control(const char* op, const at::Tensor& control, at::TensorList parameters) {
  constexpr int64_t kWords = sizeof(UpdateControl) / sizeof(int64_t);
  TORCH_CHECK(
      control.dim() == 1 && control.numel() == kWords && control.scalar_type() == at::kLong && control.is_contiguous(),
      op, ": expected control to be a contiguous int64 vector of shape (", kWords, ",), got shape ", control.sizes(),
      " of dtype ", control.scalar_type());
  TORCH_CHECK(parameters.empty() || control.device() == parameters[0].device(), op, ": expected control on ",
              parameters[0].device(), ", got ", control.device());
  return reinterpret_cast<UpdateControl*>(control.mutable_data_ptr<int64_t>());
}

void check_norm_affine(const char* op, const at::Tensor& x, const at::Tensor& g, int64_t groups, double eps,
                       Operands taken) {
  TORCH_CHECK(x.dim() == 3, op, ": expected x of shape (B, C, S), got ", x.sizes());
  TORCH_CHECK(g.sizes() == x.sizes(), op, ": expected g of the shape of x, ", x.sizes(), ", got ", g.sizes());
  check_dtype(op, "x", x, taken);
  TORCH_CHECK(x.scalar_type() == g.scalar_type(), op, ": expected x and g of one dtype, got ", x.scalar_type(), " and ",
              g.scalar_type());
  TORCH_CHECK(x.device() == g.device(), op, ": expected x and g on one device, got ", x.device(), " and ", g.device());
  check_positive(op, "groups", groups);
  TORCH_CHECK(x.size(1) % groups == 0, op, ": expected groups=", groups, " to divide the channels, got ", x.size(1));
  TORCH_CHECK(eps > 0, op, ": expected eps > 0, got ", eps);
}

}  // namespace dpcgan
