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

template <class T>
ConvOperands<T> conv_operands(const at::Tensor& x, const at::Tensor& g) {
  return {x.const_data_ptr<T>(), operand_strides(x), g.const_data_ptr<T>(), operand_strides(g)};
}

inline UnitIndex unit_index(const std::optional<at::Tensor>& row_order, const std::optional<at::Tensor>& unit_offsets,
                            int64_t units) {
  return {row_order ? row_order->const_data_ptr<int64_t>() : nullptr,
          unit_offsets ? unit_offsets->const_data_ptr<int64_t>() : nullptr, units};
}

}  // namespace dpcgan::cuda
