// What the *_op.cpp wrappers share. Each follows one ritual: check, guard the device, return where there is nothing to
// do, launch on the current stream, check the launch. None of them waits for the device.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>

#include "../checks.h"
#include "kernels.h"

namespace dpcgan::cuda {

inline at::Tensor empty_doubles(at::IntArrayRef sizes, const at::Tensor& like) {
  return at::empty(sizes, like.options().dtype(at::kDouble));
}

// Calls body with a value of the type that the kernels read the operand in.
template <class Body>
void with_operand_type(const at::Tensor& operand, const Body& body) {
  if (operand.scalar_type() == at::kBFloat16) return body(BFloat16{});
  if (operand.scalar_type() == at::kDouble) return body(double{});
  body(float{});
}

template <class T>
const T* operand_data(const at::Tensor& operand) {
  return static_cast<const T*>(operand.const_data_ptr());
}

template <class T>
ConvOperands<T> conv_operands(const at::Tensor& x, const at::Tensor& g) {
  return {operand_data<T>(x), operand_strides(x), operand_data<T>(g), operand_strides(g)};
}

// Of per-sample gradients of an operand: its own type, or float32 for bfloat16.
inline at::TensorOptions grad_options(const at::Tensor& operand) {
  return operand.options().dtype(operand.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

inline UnitIndex unit_index(const std::optional<at::Tensor>& row_order, const std::optional<at::Tensor>& unit_offsets,
                            int64_t units) {
  return {row_order ? row_order->const_data_ptr<int64_t>() : nullptr,
          unit_offsets ? unit_offsets->const_data_ptr<int64_t>() : nullptr, units};
}

}  // namespace dpcgan::cuda
