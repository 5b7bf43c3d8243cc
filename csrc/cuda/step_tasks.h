// What a step's layers and materialised gradients are to the kernels that take all of them at once.
#pragma once

#include <vector>

#include "op_common.h"

namespace dpcgan::cuda {

inline ElementType element_type(const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kBFloat16) return ElementType::kBFloat16;
  return tensor.scalar_type() == at::kDouble ? ElementType::kDouble : ElementType::kFloat;
}

inline NormTask layer_task(const ConvGeometry& conv, const at::Tensor& x, const at::Tensor& g, NormForm form) {
  return {
      form, element_type(x), conv, {x.const_data_ptr(), operand_strides(x), g.const_data_ptr(), operand_strides(g)}, 0};
}

// grad: contiguous, and alive until the kernels are queued
inline NormTask rows_task(const at::Tensor& grad, int64_t rows) {
  return {NormForm::kRows,
          element_type(grad),
          {},
          {grad.const_data_ptr(), {}, nullptr, {}},
          rows == 0 ? 0 : grad.numel() / rows};
}

inline std::vector<at::Tensor> contiguous(at::TensorList grads) {
  std::vector<at::Tensor> kept;
  for (const at::Tensor& grad : grads) kept.push_back(grad.contiguous());
  return kept;
}

// geometry: 7 integers a layer, those of conv_sq_norm and 0 for direct, 1 for gram. In float32 and bfloat16 a direct
// norm is of the formed gradient.
struct StepTasks {
  std::vector<NormTask> tasks;  // layers, then gradients
  std::vector<at::Tensor> kept;
  at::Tensor like;
  int64_t rows;

  StepTasks(const char* op, at::TensorList x, at::TensorList g, c10::ArrayRef<int64_t> geometry, at::TensorList grads) {
    constexpr size_t kNumbers = 7;
    TORCH_CHECK(x.size() == g.size() && geometry.size() == kNumbers * x.size(), op, ": expected one g and ", kNumbers,
                " numbers a layer for ", x.size(), " layers, got ", g.size(), " and ", geometry.size());
    TORCH_CHECK(!x.empty() || !grads.empty(), op, ": expected at least one gradient, got none");
    like = x.empty() ? grads[0] : x[0];
    TORCH_CHECK(like.dim() > 0, op, ": expected gradients of shape (B, ...), got a scalar");
    rows = like.size(0);
    for (size_t i = 0; i < x.size(); ++i) {
      const int64_t* n = geometry.data() + kNumbers * i;
      const ConvGeometry conv =
          check_conv(op, x[i], g[i], n[0], n[1], n[2], n[3], n[4], n[5], Operands::kFloatsAndBFloat16);
      const NormForm direct = element_type(x[i]) == ElementType::kDouble ? NormForm::kDirect : NormForm::kFormed;
      tasks.push_back(layer_task(conv, x[i], g[i], n[6] != 0 ? NormForm::kGram : direct));
      TORCH_CHECK(conv.rows == rows && x[i].device() == like.device(), op, ": expected x[", i, "] with ", rows,
                  " rows on ", like.device(), ", got ", conv.rows, " on ", x[i].device());
    }
    kept = contiguous(grads);
    for (const at::Tensor& grad : kept) {
      check_per_sample_grads(op, {grad});
      TORCH_CHECK(grad.size(0) == rows && grad.device() == like.device(), op, ": expected grads with ", rows,
                  " rows on ", like.device(), ", got ", grad.size(0), " on ", grad.device());
      tasks.push_back(rows_task(grad, rows));
    }
  }
};

}  // namespace dpcgan::cuda
