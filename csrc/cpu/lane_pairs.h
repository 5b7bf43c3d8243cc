// Transposed convolutions whose outputs read two neighbouring inputs each, by three products for two outputs in place
// of four. Used for inference alone: it rounds differently from the direct form (tests/ops/test_fused.py bounds the
// error), and only there is nothing else to keep the differences for.
//   out[t]     = W0 in[p] + W1 in[p - 1] = (W0 + W1) in[p] - W1 (in[p] - in[p - 1])
//   out[t + 1] = W0 in[p + 1] + W1 in[p] = (W0 + W1) in[p] + W0 (in[p + 1] - in[p])
// Source: minimal filtering F(2, 2), Winograd, Arithmetic Complexity of Computations, 1980.
#pragma once

#include "lane_correlate.h"

namespace dpcgan::cpu {

// Outputs of one residue of the stride at equally spaced positions, for up to kBlockOutputs channels. Strides in
// floats.
struct PairBlock {
  const float* in;                       // of position p = first position of the run
  const float* differences;              // in[p] - in[p - 1]
  int64_t in_stride, difference_stride;  // from a channel to the next
  int64_t in_channels;
  const float* weights;               // W0 of channel 0
  int64_t weight_stride, second_tap;  // the latter from W0 to W1
  const float* sums;                  // W0 + W1
  int64_t sum_stride;
  const float* bias;  // one a channel of the block, or nothing
  float* out;
  int64_t out_stride, out_step;
  int64_t outputs;  // channels that are stored
};

// Outputs [first_output, first_output + kOutputs) at positions first_position and the next.
template <int kBytes, int kOutputs>
DPCGAN_INLINE void pair_tile(const PairBlock block, int64_t first_output, int64_t first_position) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  Vector both[kOutputs], before[kOutputs] = {}, after[kOutputs] = {};
#pragma GCC unroll 8
  for (int r = 0; r < kOutputs; ++r) {
    const int64_t channel = first_output + r;
    both[r] = Vector{} + (block.bias != nullptr && channel < block.outputs ? block.bias[channel] : 0.0f);
  }
  const float* in = block.in + first_position * kLanes;
  const float* differences = block.differences + first_position * kLanes;
  const float* weights = block.weights + first_output;
  const float* sums = block.sums + first_output;
  for (int64_t c = 0; c < block.in_channels; ++c) {
    const Vector x = load_lanes<kBytes>(in), d = load_lanes<kBytes>(differences),
                 next = load_lanes<kBytes>(differences + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kOutputs; ++r) {
      both[r] += sums[r] * x;
      before[r] += weights[block.second_tap + r] * d;
      after[r] += weights[r] * next;
    }
    in += block.in_stride;
    differences += block.difference_stride;
    weights += block.weight_stride;
    sums += block.sum_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kOutputs; ++r) {
    if (first_output + r >= block.outputs) break;
    float* out = block.out + (first_output + r) * block.out_stride + first_position * block.out_step;
    store_lanes<kBytes>(out, both[r] - before[r]);
    store_lanes<kBytes>(out + block.out_step, both[r] + after[r]);
  }
}

// positions: an even number. Tiles fill the registers: 24 sums of 32 with AVX-512, 12 of 16 otherwise.
template <int kBytes>
DPCGAN_INLINE void correlate_pairs(const PairBlock& block, int64_t positions) {
  constexpr int kOutputs = kBytes == 64 ? 8 : 4;
  run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
    for (int64_t r = 0; r < block.outputs; r += kOutputs)
      for (int64_t t = 0; t < positions; t += 2) pair_tile<kBytes, kOutputs>(block, r, t);
  });
}

// Of `count` vectors from each the one before it.
template <int kBytes>
DPCGAN_INLINE void input_differences(const float* from, int64_t count, float* to) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  for (int64_t i = 0; i < count; ++i)
    store_lanes<kBytes>(to + i * kLanes,
                        load_lanes<kBytes>(from + i * kLanes) - load_lanes<kBytes>(from + (i - 1) * kLanes));
}

// in: the values of a group; differences: scratch of inputs * (kPairRun + 2) vectors. packed, sums: of the layer
template <int kBytes>
DPCGAN_INLINE void transpose_by_pairs(const ConvGeometry& conv, const float* packed, const float* sums,
                                      const float* bias, const LaneTensor& in, const LaneTensor& out, float* rows,
                                      float* differences) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t outputs = conv.x_group_channels(), inputs = conv.g_group_channels();
  const int64_t weight_stride = conv.kernel_size * kBlockOutputs, sum_stride = conv.stride * kBlockOutputs;
  const int64_t difference_stride = (kPairRun + 2) * kLanes;
  // Position 0 of residue r reads in[first_of(r)] and the one before it; residues differ in it by one at most.
  const auto first_position = [&](int64_t residue) {
    return ((residue - conv.padding) % conv.stride + conv.stride) % conv.stride;
  };
  const auto first_input = [&](int64_t residue) {
    return (first_position(residue) + conv.padding - residue) / conv.stride;
  };
  int64_t least = first_input(0);
  for (int64_t residue = 1; residue < conv.stride; ++residue) least = std::min(least, first_input(residue));
  const int64_t most = ceil_div(conv.x_length, conv.stride);
  for (int64_t begin = 0; begin < most; begin += kPairRun)
    for (int64_t g = 0; g < conv.groups; ++g) {
      // As far as the margin goes, beyond which nothing is stored that reads them.
      const int64_t count = std::min<int64_t>(kPairRun + 2, in.stride - in.left - (begin + least));
      for (int64_t c = 0; c < inputs; ++c)
        input_differences<kBytes>(rows + in.at(g * inputs + c, begin + least) * kLanes, count,
                                  differences + c * difference_stride);
      for (int64_t residue = 0; residue < conv.stride; ++residue) {
        const int64_t positions = ceil_div(conv.x_length - first_position(residue), conv.stride) - begin;
        if (first_position(residue) >= conv.x_length || positions <= 0) continue;
        const int64_t shift = first_input(residue) - least;
        const float* of_group = packed + g * ceil_div(outputs, kBlockOutputs) * inputs * weight_stride;
        const float* of_sums = sums + g * ceil_div(outputs, kBlockOutputs) * inputs * sum_stride;
        for (int64_t o = 0; o < outputs; o += kBlockOutputs) {
          const int64_t channel = g * outputs + o;
          const int64_t block_of = o / kBlockOutputs * inputs;
          const int64_t stored = std::min<int64_t>(kBlockOutputs, outputs - o);
          const float* in_at = rows + in.at(g * inputs, begin + least + shift) * kLanes;
          const float* weights = of_group + block_of * weight_stride + residue * kBlockOutputs;
          const float* channel_bias = bias == nullptr ? nullptr : bias + channel;
          float* out_at = rows + out.at(channel, first_position(residue) + begin * conv.stride) * kLanes;
          const int64_t now = std::min(kPairRun, positions), whole = now / 2 * 2;
          const PairBlock pairs{in_at,
                                differences + shift * kLanes,
                                in.stride * kLanes,
                                difference_stride,
                                inputs,
                                weights,
                                weight_stride,
                                conv.stride * kBlockOutputs,
                                of_sums + block_of * sum_stride + residue * kBlockOutputs,
                                sum_stride,
                                channel_bias,
                                out_at,
                                out.stride * kLanes,
                                conv.stride * kLanes,
                                stored};
          correlate_pairs<kBytes>(pairs, whole);
          if (whole == now) continue;
          const CorrelateBlock rest{in_at + whole * kLanes,
                                    in.stride * kLanes,
                                    inputs,
                                    kLanes,
                                    -kLanes,
                                    2,
                                    weights,
                                    weight_stride,
                                    conv.stride * kBlockOutputs,
                                    channel_bias,
                                    out_at + whole * conv.stride * kLanes,
                                    out.stride * kLanes,
                                    conv.stride * kLanes,
                                    stored};
          correlate<kBytes>(rest, now - whole);
        }
      }
    }
}

}  // namespace dpcgan::cpu
