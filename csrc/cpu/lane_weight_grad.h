// Per-sample weight gradients of a convolution over one group of rows, kept and measured: what is later summed is
// exactly what was measured, so cancellation in the sum over positions cannot make a norm too small.
#pragma once

#include "lane_correlate.h"

namespace dpcgan::cpu {

constexpr int64_t kStreamBytes =
    1 << 20;  // kept gradients of a layer and group that a second-level cache does not hold

template <int kBytes>
DPCGAN_INLINE void add_lanes(typename VectorOf<float, kBytes>::type lanes, double* sum) {
  float single[VectorOf<float, kBytes>::kLanes];
  std::memcpy(single, &lanes, kBytes);
  for (int i = 0; i < VectorOf<float, kBytes>::kLanes; ++i) sum[i] += single[i];
}

// Adds the squares of kept gradients; few enough are added in single precision to cost no accuracy.
template <int kBytes>
DPCGAN_INLINE void add_squares(const float* kept, int64_t vectors, double* sq_norm) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  constexpr int64_t kSingleTerms = 8;
  for (int64_t i = 0; i < vectors; i += kSingleTerms) {
    Vector sum{};
    for (int64_t j = i; j < std::min(i + kSingleTerms, vectors); ++j) {
      const Vector value = load_lanes<kBytes>(kept + j * kLanes);
      sum += value * value;
    }
    add_lanes<kBytes>(sum, sq_norm);
  }
}

// Stores past the caches, for gradients that are next read when they are summed. In assembly, since the intrinsic
// cannot be inlined into a function that is compiled for the baseline too.
template <int kBytes>
DPCGAN_INLINE void stream_lanes(float* to, typename VectorOf<float, kBytes>::type lanes) {
#if defined(__x86_64__)
  if constexpr (kBytes == 64) {
    asm volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<float (*)[16]>(to)) : "v"(lanes));
    return;
  }
#endif
  store_lanes<kBytes>(to, lanes);
}

// Has streamed stores done before those that follow; on their own they are not ordered.
DPCGAN_INLINE void end_stream() {
#if defined(__x86_64__)
  asm volatile("sfence" ::: "memory");
#endif
}

// Where the weight gradients of one convolution go.
struct KeptWeights {
  float* kept;
  int64_t output_stride;  // from an output channel to the next
  bool stream;
  double* sq_norm;  // one a lane, or nothing
};

// G[o + r, tap + q] for r < kOutputs, q < kTaps; `taps` of the latter exist. g, x: at position 0.
template <int kBytes, int kOutputs, int kTaps>
DPCGAN_INLINE void weight_grad_tile(const float* g, int64_t g_stride, const float* const (&x)[kTaps], int64_t x_step,
                                    int64_t positions, int64_t taps, const KeptWeights& out, int64_t offset) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  Vector sum[kOutputs][kTaps] = {};
  for (int64_t t = 0; t < positions; ++t) {
    Vector value[kTaps];
#pragma GCC unroll 8
    for (int q = 0; q < kTaps; ++q) value[q] = load_lanes<kBytes>(x[q] + t * x_step);
#pragma GCC unroll 8
    for (int r = 0; r < kOutputs; ++r) {
      const Vector grad = load_lanes<kBytes>(g + r * g_stride + t * kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < kTaps; ++q) sum[r][q] += grad * value[q];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kOutputs; ++r) {
    Vector squares{};
#pragma GCC unroll 8
    for (int q = 0; q < kTaps; ++q) {
      if (q >= taps) break;
      float* to = out.kept + offset + r * out.output_stride + q * kLanes;
      out.stream ? stream_lanes<kBytes>(to, sum[r][q]) : store_lanes<kBytes>(to, sum[r][q]);
      squares += sum[r][q] * sum[r][q];
    }
    if (out.sq_norm != nullptr) add_lanes<kBytes>(squares, out.sq_norm);
  }
}

// Keeps the weight gradient of each row, in the layout of the weight, and adds up its squares.
template <int kBytes>
DPCGAN_INLINE void keep_weight_grad(const ConvGeometry& conv, const LaneSource& x, const LaneSource& g, float* kept,
                                    double* sq_norm) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  constexpr int kOutputs = 4, kTaps = kBytes == 64 ? 5 : 2;
  const int64_t outputs = conv.g_group_channels(), inputs = conv.x_group_channels(), taps = conv.taps();
  const KeptWeights out{kept, taps * kLanes, conv.weight_numel() * kBytes > kStreamBytes, sq_norm};
  for (int64_t group = 0; group < conv.groups; ++group)
    for (int64_t tap = 0; tap < taps; tap += kTaps) {
      const int64_t count = std::min<int64_t>(kTaps, taps - tap);
      const float* line[kTaps];
      for (int q = 0; q < kTaps; ++q) {
        const int64_t cj = tap + std::min<int64_t>(q, count - 1);
        line[q] = x.at<kLanes>(group * inputs + cj / conv.kernel_size, conv.x_position(0, cj % conv.kernel_size));
      }
      const auto at_output = [&](int64_t o) { return g.at<kLanes>(group * outputs + o, 0); };
      const auto offset = [&](int64_t o) { return ((group * outputs + o) * taps + tap) * kLanes; };
      int64_t o = 0;
      run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
        for (; o + kOutputs <= outputs; o += kOutputs)
          weight_grad_tile<kBytes, kOutputs, kTaps>(at_output(o), g.tensor.stride * kLanes, line, conv.stride * kLanes,
                                                    conv.g_length, count, out, offset(o));
      });
      for (; o < outputs; ++o)
        weight_grad_tile<kBytes, 1, kTaps>(at_output(o), g.tensor.stride * kLanes, line, conv.stride * kLanes,
                                           conv.g_length, count, out, offset(o));
    }
  if (out.stream) end_stream();
}

// Per-sample bias gradient: the sum over positions, in four partial sums.
template <int kBytes>
DPCGAN_INLINE void keep_bias_grad(const LaneSource& grad, float* kept) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  for (int64_t c = 0; c < grad.tensor.channels; ++c) {
    Vector part[4] = {};
    for (int64_t l = 0; l < grad.tensor.length; ++l) part[l % 4] += load_lanes<kBytes>(grad.at<kLanes>(c, l));
    store_lanes<kBytes>(kept + c * kLanes, (part[0] + part[1]) + (part[2] + part[3]));
  }
}

}  // namespace dpcgan::cpu
