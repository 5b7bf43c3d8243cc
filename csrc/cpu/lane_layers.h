// GroupNorm and activations over one group of rows, a row in each lane of a vector.
#pragma once

#include <cmath>

#include "lane_correlate.h"

namespace dpcgan::cpu {

template <int kBytes>
DPCGAN_INLINE typename VectorOf<float, kBytes>::type map_lanes(typename VectorOf<float, kBytes>::type x,
                                                               auto function) {
  for (int i = 0; i < VectorOf<float, kBytes>::kLanes; ++i) x[i] = function(x[i]);
  return x;
}

// Calls change(channel, offset, position) for each position of a tensor; offset is in floats from the group's block.
template <int kBytes>
DPCGAN_INLINE void each_position(const LaneTensor& tensor, auto change) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  for (int64_t c = 0; c < tensor.channels; ++c)
    for (int64_t l = 0; l < tensor.length; ++l) change(c, tensor.at(c, l) * kLanes, l);
}

// Calls loop(change) with the activation as a function of a vector; without a layer it changes nothing.
template <int kBytes>
DPCGAN_INLINE void with_activation(const FusedLayer* layer, auto loop) {
  using Vector = typename VectorOf<float, kBytes>::type;
  if (layer == nullptr) return loop([](Vector x) DPCGAN_INLINE_BODY { return x; });
  const float slope = static_cast<float>(layer->number);
  switch (layer->activation) {
    case Activation::kLeakyRelu:
      return loop([slope](Vector x) DPCGAN_INLINE_BODY { return x > 0.0f ? x : x * slope; });
    case Activation::kTanh:
      return loop([](Vector x)
                      DPCGAN_INLINE_BODY { return map_lanes<kBytes>(x, [](float v) { return std::tanh(v); }); });
    case Activation::kSigmoid:
      return loop([](Vector x) DPCGAN_INLINE_BODY {
        return map_lanes<kBytes>(x, [](float v) { return 1.0f / (1.0f + std::exp(-v)); });
      });
    case Activation::kSilu:
      return loop([](Vector x) DPCGAN_INLINE_BODY {
        return map_lanes<kBytes>(x, [](float v) { return v / (1.0f + std::exp(-v)); });
      });
  }
}

// Writes change(vector) of each position of channel `channel` of a tensor to the same place of another.
template <int kBytes>
DPCGAN_INLINE void map_channel(const LaneTensor& in, const LaneTensor& out, int64_t channel, float* rows, auto change) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const float* from = rows + in.at(channel, 0) * kLanes;
  float* to = rows + out.at(channel, 0) * kLanes;
  const int64_t length = in.length;
  for (int64_t l = 0; l < length; ++l)
    store_lanes<kBytes>(to + l * kLanes, change(load_lanes<kBytes>(from + l * kLanes)));
}

template <int kBytes>
DPCGAN_INLINE void activation_forward(const FusedLayer& layer, float* rows) {
  with_activation<kBytes>(&layer, [&](auto change) DPCGAN_INLINE_BODY {
    for (int64_t c = 0; c < layer.in.channels; ++c) map_channel<kBytes>(layer.in, layer.out, c, rows, change);
  });
}

// Turns layer.grad, in scratch memory, from the gradient of the output into that of the input.
template <int kBytes>
DPCGAN_INLINE void activation_backward(const FusedLayer& layer, const float* values, float* scratch) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const float slope = static_cast<float>(layer.number);
  const LaneTensor& known = layer.activation == Activation::kSilu ? layer.in : layer.out;
  each_position<kBytes>(known, [&](int64_t c, int64_t at, int64_t l) DPCGAN_INLINE_BODY {
    const Vector y = load_lanes<kBytes>(values + at);
    float* grad = scratch + layer.grad.at(c, l) * kLanes;
    Vector g = load_lanes<kBytes>(grad);
    switch (layer.activation) {
      case Activation::kLeakyRelu:  // the output has the input's sign, since the slope is not negative
        g = y > 0.0f ? g : g * slope;
        break;
      case Activation::kTanh:
        g *= 1.0f - y * y;
        break;
      case Activation::kSigmoid:
        g *= y * (1.0f - y);
        break;
      case Activation::kSilu:
        g *= map_lanes<kBytes>(y, [](float v) {
          const float s = 1.0f / (1.0f + std::exp(-v));
          return s * (1.0f + v * (1.0f - s));
        });
        break;
    }
    store_lanes<kBytes>(grad, g);
  });
}

// Sum over the positions of channels [first, first + count) of value(channel, position); four partial sums.
template <int kBytes>
DPCGAN_INLINE typename VectorOf<float, kBytes>::type sum_positions(int64_t first, int64_t count, int64_t length,
                                                                   auto value) {
  using Vector = typename VectorOf<float, kBytes>::type;
  Vector part[4] = {};
  for (int64_t c = first; c < first + count; ++c) {
    int64_t l = 0;
    for (; l + 4 <= length; l += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) part[i] += value(c, l + i);
    for (; l < length; ++l) part[0] += value(c, l);
  }
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// weight, bias: the affine pair. then: an activation that overwrites the norm's output, done in the same pass, or none.
template <int kBytes>
DPCGAN_INLINE void group_norm_forward(const FusedLayer& layer, const float* weight, const float* bias,
                                      const FusedLayer* then, float* rows) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t channels = layer.in.channels / layer.norm_groups, length = layer.in.length;
  const float inverse_size = 1.0f / static_cast<float>(channels * length);
  const float eps = static_cast<float>(layer.number);
  const auto x = [&](int64_t c, int64_t l)
                     DPCGAN_INLINE_BODY { return load_lanes<kBytes>(rows + layer.in.at(c, l) * kLanes); };
  for (int64_t group = 0; group < layer.norm_groups; ++group) {
    const int64_t first = group * channels;
    const Vector mean = sum_positions<kBytes>(first, channels, length, x) * inverse_size;
    const Vector variance = sum_positions<kBytes>(first, channels, length,
                                                  [&](int64_t c, int64_t l) DPCGAN_INLINE_BODY {
                                                    const Vector d = x(c, l) - mean;
                                                    return d * d;
                                                  }) *
                            inverse_size;
    const Vector inverse = map_lanes<kBytes>(variance + eps, [](float v) { return 1.0f / std::sqrt(v); });
    float* statistics = rows + (layer.statistics + 2 * group) * kLanes;
    store_lanes<kBytes>(statistics, mean);
    store_lanes<kBytes>(statistics + kLanes, inverse);
    with_activation<kBytes>(then, [&](auto change) DPCGAN_INLINE_BODY {
      for (int64_t c = first; c < first + channels; ++c) {
        const Vector scale = inverse * weight[c], shift = bias[c] - mean * scale;
        map_channel<kBytes>(layer.in, layer.out, c, rows,
                            [&](Vector value) DPCGAN_INLINE_BODY { return change(value * scale + shift); });
      }
    });
  }
}

// Keeps the per-sample gradients of the affine pair, and turns layer.grad, in scratch memory, into the gradient of the
// input.
template <int kBytes>
DPCGAN_INLINE void group_norm_backward(const FusedLayer& layer, const float* weight, float* kept, const float* values,
                                       float* scratch) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t channels = layer.in.channels / layer.norm_groups, length = layer.in.length;
  const float inverse_size = 1.0f / static_cast<float>(channels * length);
  for (int64_t group = 0; group < layer.norm_groups; ++group) {
    const int64_t first = group * channels;
    const float* statistics = values + (layer.statistics + 2 * group) * kLanes;
    const Vector mean = load_lanes<kBytes>(statistics), inverse = load_lanes<kBytes>(statistics + kLanes);
    const auto x = [&](int64_t c, int64_t l)
                       DPCGAN_INLINE_BODY { return load_lanes<kBytes>(values + layer.in.at(c, l) * kLanes); };
    const auto grad = [&](int64_t c, int64_t l)
                          DPCGAN_INLINE_BODY { return load_lanes<kBytes>(scratch + layer.grad.at(c, l) * kLanes); };
    Vector bias_total{}, weight_total{};
    for (int64_t c = first; c < first + channels; ++c) {
      Vector bias_part[4] = {}, weight_part[4] = {};
      const auto add = [&](int64_t l, int part) DPCGAN_INLINE_BODY {
        const Vector g = grad(c, l);
        bias_part[part] += g;
        weight_part[part] += g * (x(c, l) - mean);
      };
      int64_t l = 0;
      for (; l + 4 <= length; l += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) add(l + i, i);
      for (; l < length; ++l) add(l, 0);
      const Vector bias_grad = (bias_part[0] + bias_part[1]) + (bias_part[2] + bias_part[3]);
      const Vector weight_grad = ((weight_part[0] + weight_part[1]) + (weight_part[2] + weight_part[3])) * inverse;
      store_lanes<kBytes>(kept + (layer.kept_weight + c) * kLanes, weight_grad);
      store_lanes<kBytes>(kept + (layer.kept_bias + c) * kLanes, bias_grad);
      bias_total += bias_grad * weight[c];
      weight_total += weight_grad * weight[c];
    }
    const Vector shift = bias_total * inverse * inverse_size, slope = weight_total * inverse * inverse * inverse_size;
    for (int64_t c = first; c < first + channels; ++c) {
      const Vector scale = inverse * weight[c];
      for (int64_t l = 0; l < length; ++l)
        store_lanes<kBytes>(scratch + layer.grad.at(c, l) * kLanes,
                            grad(c, l) * scale - shift - (x(c, l) - mean) * slope);
    }
  }
}

}  // namespace dpcgan::cpu
