// What the fused ops are given: checks, and the parameters as the kernels read them.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <cstring>

#include "fused_program.h"
#include "parallel.h"
#include "simd.h"

namespace dpcgan::cpu {

inline void check_lanes(const char* op, int64_t lanes) {
  const int64_t most = 4 << static_cast<int>(detected_simd_level());
  TORCH_CHECK(lanes <= most, op, ": expected at most ", most, " lanes on this CPU, got ", lanes);
}

struct Shape {
  int64_t rows, channels, length;
};

inline Shape shape_of(const char* op, const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 3 && x.scalar_type() == at::kFloat, op, ": expected float32 x of shape (B, C, L), got ",
              x.sizes(), " of ", x.scalar_type());
  return {x.size(0), x.size(1), x.size(2)};
}

// Copies the parameters into one vector, in the order of the layers.
inline void copy_parameters(const char* op, const FusedProgram& program, at::TensorList parameters, float* flat) {
  size_t next = 0;
  const auto copy = [&](int64_t at, int64_t numel) {
    if (numel == 0) return;
    TORCH_CHECK(next < parameters.size(), op, ": expected more parameters, got ", parameters.size());
    const at::Tensor& p = parameters[next++];
    TORCH_CHECK(p.scalar_type() == at::kFloat && p.is_contiguous() && p.numel() == numel, op, ": expected parameter ",
                next - 1, " to be contiguous float32 with ", numel, " elements, got shape ", p.sizes());
    std::memcpy(flat + at, p.const_data_ptr<float>(), numel * sizeof(float));
  };
  for (const FusedLayer& layer : program.layers) {
    if (!layer.has_parameters()) continue;
    copy(layer.weight, layer.weight_numel());
    copy(layer.bias, layer.bias_numel());
  }
  TORCH_CHECK(next == parameters.size(), op, ": expected ", next, " parameters, got ", parameters.size());
}

// Blocks of kBlockOutputs outputs, zeros where there are none. strided: outputs are the channels of g, else those of x.
inline void pack_weights(const ConvGeometry& conv, const float* weight, bool strided, float* packed) {
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

// Sums of the two taps of each residue of the stride, in blocks as `packed` has them.
inline void pack_sums(const ConvGeometry& conv, const float* packed, float* sums) {
  const int64_t blocks = conv.groups * ceil_div<int64_t>(conv.x_group_channels(), kBlockOutputs);
  const int64_t half = conv.stride * kBlockOutputs;
  for (int64_t i = 0; i < blocks * conv.g_group_channels(); ++i, packed += 2 * half)
    for (int64_t j = 0; j < half; ++j) *sums++ = packed[j] + packed[half + j];
}

// Of every layer; those that backward reads only if it will run.
inline void pack_all(const FusedProgram& program, const float* flat, float* packed) {
  const int64_t count = static_cast<int64_t>(program.layers.size());
  at::parallel_for(0, 2 * count, grain_size(program.packed_floats / count), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const FusedLayer& layer = program.layers[i / 2];
      const bool forward = i % 2 == 0;
      if (!layer.is_conv() || !(forward || program.keep)) continue;
      const bool strided = (layer.kind == LayerKind::kConv) == forward;
      pack_weights(layer.conv, flat + layer.weight, strided,
                   packed + (forward ? layer.packed_forward : layer.packed_backward));
      if (layer.packed_sums >= 0) pack_sums(layer.conv, packed + layer.packed_forward, packed + layer.packed_sums);
    }
  });
}

}  // namespace dpcgan::cpu
