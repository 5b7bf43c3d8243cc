// One group of rows, forward and backward through a sequential net.
#pragma once

#include "lane_gram.h"
#include "lane_layers.h"
#include "lane_pairs.h"
#include "lane_rows.h"
#include "lane_weight_grad.h"

namespace dpcgan::cpu {

// The parts of the workspace that forward leaves for backward.
struct Workspace {
  const float* parameters;
  const float* packed;

  Workspace(const FusedProgram& program, const float* base)
      : parameters(base + program.parameters_offset()), packed(base + program.packed_offset()) {}
};

// What backward is asked for beside the gradients of the layers' outputs.
struct BackwardWants {
  bool norms;  // else only rows that are not finite are found
  bool kept;   // the per-sample gradients that the sum over rows reads
  bool input_grad;
};

// differences: scratch of program.difference_vectors, of a program that keeps nothing
template <int kBytes>
DPCGAN_INLINE void forward_group(const FusedProgram& program, const Workspace& workspace, float* values,
                                 float* differences = nullptr) {
  for (size_t i = 0; i < program.layers.size(); ++i) {
    const FusedLayer& layer = program.layers[i];
    const float* bias = layer.has_bias ? workspace.parameters + layer.bias : nullptr;
    switch (layer.kind) {
      case LayerKind::kConv:
        correlate_strided<kBytes>(layer.conv, workspace.packed + layer.packed_forward, bias, layer.in, layer.out,
                                  values);
        break;
      case LayerKind::kConvTranspose:
        if (layer.packed_sums >= 0)
          transpose_by_pairs<kBytes>(layer.conv, workspace.packed + layer.packed_forward,
                                     workspace.packed + layer.packed_sums, bias, layer.in, layer.out, values,
                                     differences);
        else
          correlate_adjoint<kBytes>(layer.conv, workspace.packed + layer.packed_forward, bias, layer.in, layer.out,
                                    values);
        break;
      case LayerKind::kGroupNorm: {
        const FusedLayer* next = i + 1 < program.layers.size() ? &program.layers[i + 1] : nullptr;
        const bool together = next != nullptr && next->kind == LayerKind::kActivation && next->in_place;
        group_norm_forward<kBytes>(layer, workspace.parameters + layer.weight, workspace.parameters + layer.bias,
                                   together ? next : nullptr, values);
        if (together) ++i;
        break;
      }
      case LayerKind::kActivation:
        activation_forward<kBytes>(layer, values);
        break;
    }
  }
}

// Per-sample gradients of one convolution, kept or measured.
template <int kBytes>
DPCGAN_INLINE void conv_grads(const FusedLayer& layer, const BackwardWants& wants, const float* values,
                              const float* scratch, float* kept, LaneGramScratch& gram, LaneNorms& norms) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  if (!wants.norms && !wants.kept) return;
  const bool conv = layer.kind == LayerKind::kConv;
  const LaneSource input{layer.in, values}, grad{layer.grad, scratch};
  const LaneSource& x = conv ? input : grad;
  const LaneSource& g = conv ? grad : input;
  if (layer.has_bias) {
    keep_bias_grad<kBytes>(grad, kept + layer.kept_bias * kLanes);
    if (wants.norms) add_squares<kBytes>(kept + layer.kept_bias * kLanes, layer.bias_numel(), norms.sq_norm);
  }
  if (layer.mode == NormMode::kMaterialise) {
    keep_weight_grad<kBytes>(layer.conv, x, g, kept + layer.kept_weight * kLanes,
                             wants.norms ? norms.sq_norm : nullptr);
  } else if (wants.norms) {
    for (int64_t group = 0; group < layer.conv.groups; ++group)
      add_gram_norm<kBytes>(layer.conv, x, g, group, gram, norms);
  }
}

// NaN in each lane where an output or a gradient of the first layer is not finite, else 0: all that an unmeasured row
// must tell.
template <int kBytes>
DPCGAN_INLINE void mark_not_finite(const FusedProgram& program, const float* values, const float* scratch,
                                   LaneNorms& norms) {
  using Vector = typename VectorOf<float, kBytes>::type;
  Vector sum{};
  const auto add = [&](const LaneTensor& tensor, const float* block) DPCGAN_INLINE_BODY {
    each_position<kBytes>(tensor, [&](int64_t, int64_t at, int64_t) DPCGAN_INLINE_BODY {
      const Vector value = load_lanes<kBytes>(block + at);
      sum += value - value;
    });
  };
  add(program.layers.back().out, values);
  add(program.layers.front().grad, scratch);
  add_lanes<kBytes>(sum, norms.sq_norm);
}

// values: what forward left. scratch: the group's block, with the gradient of the last layer's output.
template <int kBytes>
DPCGAN_INLINE void backward_group(const FusedProgram& program, const Workspace& workspace, const BackwardWants& wants,
                                  const float* values, float* scratch, LaneGramScratch& gram, LaneNorms& norms) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  float* kept = scratch + program.kept_offset * kLanes;
  for (int64_t i = static_cast<int64_t>(program.layers.size()) - 1; i >= 0; --i) {
    const FusedLayer& layer = program.layers[i];
    const float* packed = workspace.packed + layer.packed_backward;
    switch (layer.kind) {
      case LayerKind::kConv:
        conv_grads<kBytes>(layer, wants, values, scratch, kept, gram, norms);
        if (i > 0 || wants.input_grad)
          correlate_adjoint<kBytes>(layer.conv, packed, nullptr, layer.grad, layer.in_grad, scratch);
        break;
      case LayerKind::kConvTranspose:
        conv_grads<kBytes>(layer, wants, values, scratch, kept, gram, norms);
        if (i > 0 || wants.input_grad)
          correlate_strided<kBytes>(layer.conv, packed, nullptr, layer.grad, layer.in_grad, scratch);
        break;
      case LayerKind::kGroupNorm:
        group_norm_backward<kBytes>(layer, workspace.parameters + layer.weight, kept, values, scratch);
        if (wants.norms)  // the pair lies side by side
          add_squares<kBytes>(kept + layer.kept_weight * kLanes, 2 * layer.in.channels, norms.sq_norm);
        break;
      case LayerKind::kActivation:
        activation_backward<kBytes>(layer, values, scratch);
        break;
    }
  }
  if (!wants.norms) mark_not_finite<kBytes>(program, values, scratch, norms);
}

inline void zero_gradient_margins(const FusedProgram& program, float* scratch) {
  zero_margins(program.layers.back().grad, program.lanes, scratch);
  for (const FusedLayer& layer : program.layers)
    if (layer.is_conv()) zero_margins(layer.in_grad, program.lanes, scratch);
}

inline void zero_value_margins(const FusedProgram& program, float* values) {
  zero_margins(program.layers.front().in, program.lanes, values);
  for (const FusedLayer& layer : program.layers) zero_margins(layer.out, program.lanes, values);
}

}  // namespace dpcgan::cpu
