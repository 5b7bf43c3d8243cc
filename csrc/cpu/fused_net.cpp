// A sequential net's forward, per-sample gradient norms, and clip-weighted gradient, "lanes = samples": a vector holds
// one element of as many rows as it has lanes, so that no row's arithmetic meets another's before the final sum.
//
// fused_forward keeps values in a workspace; fused_sq_norm runs backward through it and measures each row;
// fused_weighted_grad adds the rows up with their clip factors. A row's gradient is formed in single precision, and
// rows are summed in double: what a row adds does not depend on which others there are.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "fused_program.h"
#include "lane_layers.h"
#include "lane_weight_grad.h"
#include "lane_weighted_sum.h"
#include "parallel.h"

namespace dpcgan::cpu {
namespace {

void check_lanes(const char* op, int64_t lanes) {
  const int64_t most = 4 << static_cast<int>(detected_simd_level());
  TORCH_CHECK(lanes <= most, op, ": expected at most ", most, " lanes on this CPU, got ", lanes);
}

struct Shape {
  int64_t rows, channels, length;
};

FusedProgram checked_program(const char* op, c10::IntArrayRef layers, c10::ArrayRef<double> numbers, int64_t lanes,
                             const Shape& shape, const at::Tensor& workspace) {
  check_lanes(op, lanes);
  FusedProgram program = parse_program(op, layers, numbers, lanes, shape.rows, shape.channels, shape.length);
  TORCH_CHECK(workspace.dim() == 1 && workspace.scalar_type() == at::kFloat && workspace.is_contiguous() &&
                  workspace.numel() >= program.workspace_floats(),
              op, ": expected a contiguous float32 workspace of at least ", program.workspace_floats(),
              " elements, got shape ", workspace.sizes());
  return program;
}

// Copies the parameters into one vector, in the order of the layers.
void copy_parameters(const FusedProgram& program, at::TensorList parameters, float* flat) {
  size_t next = 0;
  const auto copy = [&](int64_t at, int64_t numel) {
    if (numel == 0) return;
    TORCH_CHECK(next < parameters.size(), "fused_forward: expected more parameters, got ", parameters.size());
    const at::Tensor& p = parameters[next++];
    TORCH_CHECK(p.scalar_type() == at::kFloat && p.is_contiguous() && p.numel() == numel,
                "fused_forward: expected parameter ", next - 1, " to be contiguous float32 with ", numel,
                " elements, got shape ", p.sizes());
    std::memcpy(flat + at, p.const_data_ptr<float>(), numel * sizeof(float));
  };
  for (const FusedLayer& layer : program.layers) {
    if (!layer.has_parameters()) continue;
    copy(layer.weight, layer.weight_numel());
    copy(layer.bias, layer.bias_numel());
  }
  TORCH_CHECK(next == parameters.size(), "fused_forward: expected ", next, " parameters, got ", parameters.size());
}

// Blocks of kBlockOutputs outputs, zeros where there are none. strided: outputs are the channels of g, else those of x.
void pack_weights(const ConvGeometry& conv, const float* weight, bool strided, float* packed) {
  const int64_t g_channels = conv.g_group_channels(), x_channels = conv.x_group_channels(), kernel = conv.kernel_size;
  const int64_t outputs = strided ? g_channels : x_channels, inputs = strided ? x_channels : g_channels;
  for (int64_t group = 0; group < conv.groups; ++group, weight += g_channels * x_channels * kernel)
    for (int64_t first = 0; first < outputs; first += kBlockOutputs)
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t j = 0; j < kernel; ++j)
          for (int64_t r = 0; r < kBlockOutputs; ++r) {
            const int64_t output = first + r, o = strided ? output : i, c = strided ? i : output;
            *packed++ = output < outputs ? weight[(o * x_channels + c) * kernel + j] : 0.0f;
          }
}

void pack_all(const FusedProgram& program, const float* flat, float* packed) {
  const int64_t count = static_cast<int64_t>(program.layers.size());
  at::parallel_for(0, 2 * count, grain_size(program.packed_floats / count), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const FusedLayer& layer = program.layers[i / 2];
      if (!layer.is_conv()) continue;
      const bool forward = i % 2 == 0, strided = (layer.kind == LayerKind::kConv) == forward;
      pack_weights(layer.conv, flat + layer.weight, strided,
                   packed + (forward ? layer.packed_forward : layer.packed_backward));
    }
  });
}

void zero_margins(const LaneTensor& tensor, int64_t lanes, float* rows) {
  const int64_t right = tensor.stride - tensor.left - tensor.length;
  for (int64_t c = 0; c < tensor.channels; ++c) {
    std::memset(rows + tensor.at(c, -tensor.left) * lanes, 0, tensor.left * lanes * sizeof(float));
    std::memset(rows + tensor.at(c, tensor.length) * lanes, 0, right * lanes * sizeof(float));
  }
}

// (B, C, L) rows of one group <-> lanes; lanes beyond the batch are zero.
void load_rows(const float* x, const LaneTensor& tensor, int64_t first, int64_t count, int64_t lanes, float* rows) {
  for (int64_t c = 0; c < tensor.channels; ++c)
    for (int64_t l = 0; l < tensor.length; ++l) {
      float* to = rows + tensor.at(c, l) * lanes;
      const float* from = x + (first * tensor.channels + c) * tensor.length + l;
      for (int64_t i = 0; i < lanes; ++i) to[i] = i < count ? from[i * tensor.channels * tensor.length] : 0.0f;
    }
}

void store_rows(const LaneTensor& tensor, int64_t first, int64_t count, int64_t lanes, const float* rows, float* out) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0; c < tensor.channels; ++c)
      for (int64_t l = 0; l < tensor.length; ++l)
        out[((first + i) * tensor.channels + c) * tensor.length + l] = rows[tensor.at(c, l) * lanes + i];
}

struct Buffers {
  float* workspace;
  const float* parameters;
  const float* packed;

  Buffers(const FusedProgram& program, float* base)
      : workspace(base), parameters(base + program.parameters_offset()), packed(base + program.packed_offset()) {}
};

template <int kBytes>
DPCGAN_INLINE void forward_group(const FusedProgram& program, const Buffers& buffers, float* rows) {
  for (const FusedLayer& layer : program.layers) {
    const float* bias = layer.has_bias ? buffers.parameters + layer.bias : nullptr;
    switch (layer.kind) {
      case LayerKind::kConv:
        correlate_strided<kBytes>(layer.conv, buffers.packed + layer.packed_forward, bias, layer.in, layer.out, rows);
        break;
      case LayerKind::kConvTranspose:
        correlate_adjoint<kBytes>(layer.conv, buffers.packed + layer.packed_forward, bias, layer.in, layer.out, rows);
        break;
      case LayerKind::kGroupNorm:
        group_norm_forward<kBytes>(layer, buffers.parameters + layer.weight, buffers.parameters + layer.bias, rows);
        break;
      case LayerKind::kActivation:
        activation_forward<kBytes>(layer, rows);
        break;
    }
  }
}

// Per-sample gradients of one convolution, kept or measured.
template <int kBytes>
DPCGAN_INLINE void conv_grads(const FusedLayer& layer, const FusedProgram& program, bool measure, float* rows,
                              LaneGramScratch& scratch, LaneNorms& norms) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const bool conv = layer.kind == LayerKind::kConv;
  const LaneTensor& x = conv ? layer.in : layer.grad;
  const LaneTensor& g = conv ? layer.grad : layer.in;
  float* kept = rows + program.kept_offset * kLanes;
  if (layer.has_bias) {
    keep_bias_grad<kBytes>(layer.grad, rows, kept + layer.kept_bias * kLanes);
    if (measure) add_squares<kBytes>(kept + layer.kept_bias * kLanes, layer.bias_numel(), norms.sq_norm);
  }
  if (layer.mode == NormMode::kMaterialise) {
    keep_weight_grad<kBytes>(layer.conv, x, g, rows, kept + layer.kept_weight * kLanes,
                             measure ? norms.sq_norm : nullptr);
  } else if (measure) {
    for (int64_t group = 0; group < layer.conv.groups; ++group)
      add_gram_norm<kBytes>(layer.conv, x, g, rows, group, scratch, norms);
  }
}

// NaN in each lane where an output or a gradient of the first layer is not finite, else 0: all that an unmeasured row
// must tell.
template <int kBytes>
DPCGAN_INLINE void mark_not_finite(const FusedProgram& program, const float* rows, LaneNorms& norms) {
  using Vector = typename VectorOf<float, kBytes>::type;
  Vector sum{};
  for (const LaneTensor* tensor : {&program.layers.back().out, &program.layers.front().grad})
    each_position<kBytes>(*tensor, [&](int64_t, int64_t at, int64_t) DPCGAN_INLINE_BODY {
      const Vector value = load_lanes<kBytes>(rows + at);
      sum += value - value;
    });
  add_lanes<kBytes>(sum, norms.sq_norm);
}

template <int kBytes>
DPCGAN_INLINE void backward_group(const FusedProgram& program, const Buffers& buffers, bool measure, bool input_grad,
                                  float* rows, LaneGramScratch& scratch, LaneNorms& norms) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  float* kept = rows + program.kept_offset * kLanes;
  for (int64_t i = static_cast<int64_t>(program.layers.size()) - 1; i >= 0; --i) {
    const FusedLayer& layer = program.layers[i];
    switch (layer.kind) {
      case LayerKind::kConv:
        conv_grads<kBytes>(layer, program, measure, rows, scratch, norms);
        if (i > 0 || input_grad)
          correlate_adjoint<kBytes>(layer.conv, buffers.packed + layer.packed_backward, nullptr, layer.grad,
                                    layer.in_grad, rows);
        break;
      case LayerKind::kConvTranspose:
        conv_grads<kBytes>(layer, program, measure, rows, scratch, norms);
        if (i > 0 || input_grad)
          correlate_strided<kBytes>(layer.conv, buffers.packed + layer.packed_backward, nullptr, layer.grad,
                                    layer.in_grad, rows);
        break;
      case LayerKind::kGroupNorm:
        group_norm_backward<kBytes>(layer, buffers.parameters + layer.weight, kept, rows);
        if (measure)  // the pair lies side by side
          add_squares<kBytes>(kept + layer.kept_weight * kLanes, 2 * layer.in.channels, norms.sq_norm);
        break;
      case LayerKind::kActivation:
        activation_backward<kBytes>(layer, rows);
        break;
    }
  }
  if (!measure) mark_not_finite<kBytes>(program, rows, norms);
}

void zero_gradient_margins(const FusedProgram& program, float* rows) {
  zero_margins(program.layers.back().grad, program.lanes, rows);
  for (const FusedLayer& layer : program.layers)
    if (layer.is_conv()) zero_margins(layer.in_grad, program.lanes, rows);
}

void zero_value_margins(const FusedProgram& program, float* rows) {
  zero_margins(program.layers.front().in, program.lanes, rows);
  for (const FusedLayer& layer : program.layers) zero_margins(layer.out, program.lanes, rows);
}

Shape shape_of(const char* op, const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 3 && x.scalar_type() == at::kFloat, op, ": expected float32 x of shape (B, C, L), got ",
              x.sizes(), " of ", x.scalar_type());
  return {x.size(0), x.size(1), x.size(2)};
}

}  // namespace

at::Tensor fused_forward_cpu(const at::Tensor& x, at::TensorList parameters, c10::IntArrayRef layers,
                             c10::ArrayRef<double> numbers, int64_t lanes, at::Tensor workspace) {
  const FusedProgram program =
      checked_program("fused_forward", layers, numbers, lanes, shape_of("fused_forward", x), workspace);
  float* base = workspace.mutable_data_ptr<float>();
  copy_parameters(program, parameters, base + program.parameters_offset());
  pack_all(program, base + program.parameters_offset(), base + program.packed_offset());
  const LaneTensor& last = program.layers.back().out;
  at::Tensor out = at::empty({program.rows, last.channels, last.length}, x.options());
  const at::Tensor contiguous = x.contiguous();
  const float* values = contiguous.const_data_ptr<float>();
  float* results = out.mutable_data_ptr<float>();
  const Buffers buffers(program, base);
  at::parallel_for(0, program.groups(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      float* rows = base + group * program.group_vectors * lanes;
      const int64_t first = group * lanes, count = std::min(lanes, program.rows - first);
      zero_value_margins(program, rows);
      load_rows(values, program.layers.front().in, first, count, lanes, rows);
      lanes_dispatch(
          lanes, [&](auto width) DPCGAN_INLINE_BODY { forward_group<decltype(width)::value>(program, buffers, rows); });
      store_rows(last, first, count, lanes, rows, results);
    }
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fused_sq_norm_cpu(const at::Tensor& grad_out, c10::IntArrayRef layers,
                                                                 c10::ArrayRef<double> numbers, int64_t lanes,
                                                                 int64_t channels, int64_t length, bool measure,
                                                                 bool input_grad, at::Tensor workspace) {
  const Shape out_shape = shape_of("fused_sq_norm", grad_out);
  const FusedProgram program =
      checked_program("fused_sq_norm", layers, numbers, lanes, {out_shape.rows, channels, length}, workspace);
  const LaneTensor& last = program.layers.back().out;
  TORCH_CHECK(out_shape.channels == last.channels && out_shape.length == last.length,
              "fused_sq_norm: expected grad_out of shape (B, ", last.channels, ", ", last.length, "), got ",
              grad_out.sizes());
  float* base = workspace.mutable_data_ptr<float>();
  at::Tensor sq_norm = at::zeros({program.rows}, grad_out.options().dtype(at::kDouble));
  at::Tensor cancelled = at::zeros({program.rows}, grad_out.options().dtype(at::kBool));
  double* norm_of = sq_norm.mutable_data_ptr<double>();
  bool* cancelled_of = cancelled.mutable_data_ptr<bool>();
  const at::Tensor contiguous = grad_out.contiguous();
  const float* grads = contiguous.const_data_ptr<float>();
  const FusedLayer& front = program.layers.front();
  const LaneTensor& in_grad = front.is_conv() ? front.in_grad : front.grad;
  at::Tensor grad_in = at::empty({input_grad ? program.rows : 0, channels, length}, grad_out.options());
  float* grads_in = grad_in.mutable_data_ptr<float>();
  const Buffers buffers(program, base);
  at::parallel_for(0, program.groups(), 1, [&](int64_t begin, int64_t end) {
    LaneGramScratch scratch;
    for (const FusedLayer& layer : program.layers)
      if (layer.is_conv() && layer.mode == NormMode::kGram && measure) reserve_gram(layer.conv, lanes, scratch);
    for (int64_t group = begin; group < end; ++group) {
      float* rows = base + group * program.group_vectors * lanes;
      const int64_t first = group * lanes, count = std::min(lanes, program.rows - first);
      LaneNorms norms;
      zero_gradient_margins(program, rows);
      load_rows(grads, program.layers.back().grad, first, count, lanes, rows);
      lanes_dispatch(lanes, [&](auto width) DPCGAN_INLINE_BODY {
        backward_group<decltype(width)::value>(program, buffers, measure, input_grad, rows, scratch, norms);
      });
      if (input_grad) store_rows(in_grad, first, count, lanes, rows, grads_in);
      std::copy_n(norms.sq_norm, count, norm_of + first);
      std::copy_n(norms.cancelled, count, cancelled_of + first);
    }
  });
  return {sq_norm, cancelled, grad_in};
}

at::Tensor fused_weighted_grad_cpu(const at::Tensor& factor, c10::IntArrayRef layers, c10::ArrayRef<double> numbers,
                                   int64_t lanes, int64_t channels, int64_t length, const at::Tensor& workspace) {
  const FusedProgram program =
      checked_program("fused_weighted_grad", layers, numbers, lanes, {factor.numel(), channels, length}, workspace);
  check_row_factor("fused_weighted_grad", factor, program.rows, workspace.device());
  at::Tensor out = at::zeros({program.parameters}, factor.options());
  add_weighted_grads(program, factor.const_data_ptr<double>(), workspace.const_data_ptr<float>(),
                     out.mutable_data_ptr<double>());
  return out;
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) {
  m.impl("fused_forward", &dpcgan::cpu::fused_forward_cpu);
  m.impl("fused_sq_norm", &dpcgan::cpu::fused_sq_norm_cpu);
  m.impl("fused_weighted_grad", &dpcgan::cpu::fused_weighted_grad_cpu);
}
