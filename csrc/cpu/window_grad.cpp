// Weight gradients of convolutions in two and three dimensions, row by row, with their squared norms.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <vector>

#include "../checks.h"
#include "parallel.h"
#include "window_operands.h"

namespace dpcgan::cpu {
namespace {

// What is formed row by row.
template <class T>
struct Formed {
  T* weights;       // (B, outputs, taps)
  T* biases;        // (B, outputs): sums of g over positions; or nothing
  double* sq_norm;  // (B,), of both; added to
};

template <class T>
void form(const WindowGeometry& w, const at::Tensor& x, const at::Tensor& g, const Formed<T>& out) {
  const WindowOperands<T> of(w, x, g, vector_bytes());
  at::parallel_for(0, w.rows, grain_size(of.row_work()), [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView plain;  // a thread has its own dispatch state, with autograd
    const at::Tensor loaded = of.allocate();
    of.dispatch([&](auto width) DPCGAN_INLINE_BODY {
      for (int64_t n = begin; n < end; ++n) {
        of.prefetch(n + 1);
        T* weights = out.weights + n * w.outputs * w.taps();
        T* biases = out.biases == nullptr ? nullptr : out.biases + n * w.outputs;
        out.sq_norm[n] += form_row<decltype(width)::value>(of, n, loaded.mutable_data_ptr<T>(), weights, biases);
      }
    });
  });
}

std::vector<int64_t> channels_last_shape(const WindowGeometry& w, c10::IntArrayRef kernel_size) {
  std::vector<int64_t> shape{w.outputs};
  shape.insert(shape.end(), kernel_size.begin(), kernel_size.end());
  shape.push_back(w.group_channels());
  return shape;
}

// An output that the caller made.
void check_out(const char* name, const at::Tensor& out, c10::IntArrayRef shape, at::ScalarType type) {
  TORCH_CHECK(out.sizes() == shape && out.scalar_type() == type && out.is_contiguous(),
              "window_per_sample_grad_: expected a contiguous ", name, " of shape ", shape, " and type ", type,
              ", got ", out.sizes(), " ", out.scalar_type());
}

}  // namespace

void window_per_sample_grad_cpu(at::Tensor out, at::Tensor sq_norm, const std::optional<at::Tensor>& bias,
                                const at::Tensor& x, const at::Tensor& g, c10::IntArrayRef kernel_size,
                                c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                                int64_t groups) {
  constexpr const char* op = "window_per_sample_grad_";
  const WindowGeometry windows = check_windows(op, x, g, kernel_size, stride, padding, dilation, groups);
  std::vector<int64_t> shape = channels_last_shape(windows, kernel_size);
  shape.insert(shape.begin(), windows.rows);
  check_out("out", out, shape, x.scalar_type());
  check_out("sq_norm", sq_norm, {windows.rows}, at::kDouble);
  if (bias) check_out("bias", *bias, {windows.rows, windows.outputs}, x.scalar_type());
  if (count_of(windows.positions) == 0) {
    out.zero_();
    if (bias) bias->zero_();
    return;
  }
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), op, [&] {
    form<scalar_t>(windows, x, g,
                   {out.mutable_data_ptr<scalar_t>(), bias ? bias->mutable_data_ptr<scalar_t>() : nullptr,
                    sq_norm.mutable_data_ptr<double>()});
  });
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) { m.impl("window_per_sample_grad_", &dpcgan::cpu::window_per_sample_grad_cpu); }
