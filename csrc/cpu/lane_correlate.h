// Convolutions over one group of rows, a row in each lane of a vector.
//
// Both directions of a convolution are sums over channels and taps of broadcast weights times vectors:
//   strided:  out[o][t]   = sum_{c,j} W[o][c][j] in[c][stride t + dilation j - padding]   (Conv1d's forward)
//   adjoint:  out[c][pos] = sum_{o,j} W[o][c][j] in[o][(pos + padding - dilation j) / stride], where that is whole
// The adjoint is Conv1d's gradient of its input and ConvTranspose1d's forward; its positions are taken one residue of
// the stride at a time, so that the taps of a residue are an arithmetic progression.
#pragma once

#include <algorithm>
#include <cstring>

#include "fused_program.h"
#include "simd.h"

namespace dpcgan::cpu {

// A tensor of one group, and the block that it lies in.
struct LaneSource {
  const LaneTensor& tensor;
  const float* block;

  template <int kLanes>
  DPCGAN_INLINE const float* at(int64_t channel, int64_t position) const {
    return block + tensor.at(channel, position) * kLanes;
  }
};

template <int kBytes>
DPCGAN_INLINE typename VectorOf<float, kBytes>::type load_lanes(const float* from) {
  typename VectorOf<float, kBytes>::type lanes;
  std::memcpy(&lanes, from, kBytes);
  return lanes;
}

template <int kBytes>
DPCGAN_INLINE void store_lanes(float* to, typename VectorOf<float, kBytes>::type lanes) {
  std::memcpy(to, &lanes, kBytes);
}

template <int kBytes>
DPCGAN_INLINE typename VectorOf<double, kBytes>::type load_doubles(const double* from) {
  typename VectorOf<double, kBytes>::type value;
  std::memcpy(&value, from, kBytes);
  return value;
}

// Half as many floats as a vector holds, as doubles. In assembly on x86: the compiler takes the register apart instead
// of using the load that widens, which makes sums of short rows three times as slow.
template <int kBytes>
DPCGAN_INLINE typename VectorOf<double, kBytes>::type load_wide(const float* from) {
  typename VectorOf<double, kBytes>::type wide;
#if defined(__x86_64__)
  if constexpr (kBytes == 64) {
    asm("vcvtps2pd %1, %0" : "=v"(wide) : "m"(*reinterpret_cast<const float (*)[8]>(from)));
    return wide;
  }
#endif
  typename VectorOf<float, kBytes / 2>::type half;
  std::memcpy(&half, from, kBytes / 2);
  return __builtin_convertvector(half, typename VectorOf<double, kBytes>::type);
}

// The same of a register.
template <int kBytes>
DPCGAN_INLINE typename VectorOf<double, kBytes>::type widen(typename VectorOf<float, kBytes / 2>::type half) {
#if defined(__x86_64__)
  if constexpr (kBytes == 64) {
    typename VectorOf<double, kBytes>::type wide;
    asm("vcvtps2pd %1, %0" : "=v"(wide) : "v"(half));
    return wide;
  }
#endif
  return __builtin_convertvector(half, typename VectorOf<double, kBytes>::type);
}

// Up to kBlockOutputs channels of output at equally spaced positions. Offsets and strides are in floats.
struct CorrelateBlock {
  const float* in;    // what tap 0 reads for position 0 in channel 0
  int64_t in_stride;  // from a channel to the next
  int64_t in_channels;
  int64_t in_step;   // from an output position to the next
  int64_t tap_step;  // from a tap to the next
  int64_t taps;
  const float* weights;   // [channel][kernel][kBlockOutputs], from tap 0 on
  int64_t weight_stride;  // from a channel to the next
  int64_t weight_step;    // from a tap to the next
  const float* bias;      // one a channel of the block, or nothing
  float* out;
  int64_t out_stride;
  int64_t out_step;
  int64_t outputs;  // channels that are stored
};

template <int kBytes, int kOutputs, int kPositions>
DPCGAN_INLINE void correlate_tile(const CorrelateBlock block, int64_t first_output, int64_t first_position) {
  using Vector = typename VectorOf<float, kBytes>::type;
  Vector sum[kOutputs][kPositions];
#pragma GCC unroll 8
  for (int r = 0; r < kOutputs; ++r) {
    const int64_t channel = first_output + r;
    const float start = block.bias != nullptr && channel < block.outputs ? block.bias[channel] : 0.0f;
#pragma GCC unroll 8
    for (int q = 0; q < kPositions; ++q) sum[r][q] = Vector{} + start;
  }
  const float* in = block.in + first_position * block.in_step;
  const float* weights = block.weights + first_output;
  for (int64_t c = 0; c < block.in_channels; ++c, in += block.in_stride, weights += block.weight_stride) {
    const float* x = in;
    const float* w = weights;
    for (int64_t tap = 0; tap < block.taps; ++tap, x += block.tap_step, w += block.weight_step) {
      Vector value[kPositions];
#pragma GCC unroll 8
      for (int q = 0; q < kPositions; ++q) value[q] = load_lanes<kBytes>(x + q * block.in_step);
#pragma GCC unroll 8
      for (int r = 0; r < kOutputs; ++r)
#pragma GCC unroll 8
        for (int q = 0; q < kPositions; ++q) sum[r][q] += w[r] * value[q];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kOutputs; ++r) {
    if (first_output + r >= block.outputs) break;
    float* out = block.out + (first_output + r) * block.out_stride + first_position * block.out_step;
#pragma GCC unroll 8
    for (int q = 0; q < kPositions; ++q) store_lanes<kBytes>(out + q * block.out_step, sum[r][q]);
  }
}

template <int kBytes, int kOutputs, int kPositions>
DPCGAN_INLINE int64_t correlate_tiles(const CorrelateBlock& block, int64_t first_output, int64_t t, int64_t positions) {
  if (t + kPositions > positions) return t;
  run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
    for (; t + kPositions <= positions; t += kPositions)
      correlate_tile<kBytes, kOutputs, kPositions>(block, first_output, t);
  });
  return t;
}

template <int kBytes, int kOutputs, int kWide, int kNarrow>
DPCGAN_INLINE void correlate_rows(const CorrelateBlock& block, int64_t first_output, int64_t positions) {
  int64_t t = correlate_tiles<kBytes, kOutputs, kWide>(block, first_output, 0, positions);
  t = correlate_tiles<kBytes, kOutputs, kNarrow>(block, first_output, t, positions);
  correlate_tiles<kBytes, kOutputs, 1>(block, first_output, t, positions);
}

// Tiles fill the registers: 32 with AVX-512, 16 otherwise.
template <int kBytes>
DPCGAN_INLINE void correlate(const CorrelateBlock& block, int64_t positions) {
  constexpr bool kManyRegisters = kBytes == 64;
  if (block.outputs == 1) return correlate_rows<kBytes, 1, 8, 4>(block, 0, positions);
  if constexpr (kManyRegisters) {
    if (block.outputs > 4) return correlate_rows<kBytes, 8, 3, 2>(block, 0, positions);
  }
  for (int64_t r = 0; r < block.outputs; r += 4)
    correlate_rows<kBytes, 4, kManyRegisters ? 6 : 3, kManyRegisters ? 3 : 2>(block, r, positions);
}

// Positions of which the inputs, so many bytes each, fill half a first-level cache: whole tiles of 3 and of 8.
inline int64_t near_positions(int64_t bytes) {
  constexpr int64_t kNearBytes = 1 << 14, kTiles = 24;
  return std::max<int64_t>(1, kNearBytes / bytes / kTiles) * kTiles;
}

// packed: [group][block of outputs][channel][tap][kBlockOutputs]; in and out lie in `rows`, a group's block.
template <int kBytes>
DPCGAN_INLINE void correlate_strided(const ConvGeometry& conv, const float* packed, const float* bias,
                                     const LaneTensor& in, const LaneTensor& out, float* rows) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t outputs = conv.g_group_channels(), inputs = conv.x_group_channels();
  const int64_t weight_stride = conv.kernel_size * kBlockOutputs;
  for (int64_t g = 0; g < conv.groups; ++g)
    for (int64_t o = 0; o < outputs; o += kBlockOutputs, packed += inputs * weight_stride) {
      const int64_t channel = g * outputs + o;
      const CorrelateBlock block{rows + (in.at(g * inputs, 0) - conv.padding) * kLanes,
                                 in.stride * kLanes,
                                 inputs,
                                 conv.stride * kLanes,
                                 conv.dilation * kLanes,
                                 conv.kernel_size,
                                 packed,
                                 weight_stride,
                                 kBlockOutputs,
                                 bias == nullptr ? nullptr : bias + channel,
                                 rows + out.at(channel, 0) * kLanes,
                                 out.stride * kLanes,
                                 kLanes,
                                 std::min<int64_t>(kBlockOutputs, outputs - o)};
      correlate<kBytes>(block, conv.g_length);
    }
}

// The taps j with dilation j = residue (mod stride): first, first + step, ...
struct ResidueTaps {
  int64_t first = 0, step = 1, count = 0;

  ResidueTaps(const ConvGeometry& conv, int64_t residue) {
    while (first < conv.kernel_size && conv.dilation * first % conv.stride != residue) ++first;
    while (conv.dilation * step % conv.stride != 0) ++step;
    if (first < conv.kernel_size) count = ceil_div(conv.kernel_size - first, step);
  }
};

template <int kBytes>
DPCGAN_INLINE void correlate_adjoint(const ConvGeometry& conv, const float* packed, const float* bias,
                                     const LaneTensor& in, const LaneTensor& out, float* rows) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t outputs = conv.x_group_channels(), inputs = conv.g_group_channels();
  const int64_t weight_stride = conv.kernel_size * kBlockOutputs;
  // So many positions at a time that what they read stays in the first-level cache for all outputs and residues.
  const int64_t run = near_positions(inputs * kBytes);
  const int64_t most = ceil_div(conv.x_length, conv.stride);
  for (int64_t begin = 0; begin < most; begin += run)
    for (int64_t residue = 0; residue < conv.stride; ++residue) {
      const int64_t first_position = ((residue - conv.padding) % conv.stride + conv.stride) % conv.stride;
      if (first_position >= conv.x_length) continue;
      const int64_t positions = ceil_div(conv.x_length - first_position, conv.stride);
      if (begin >= positions) continue;
      const ResidueTaps taps(conv, residue);
      const int64_t first_t = (first_position + conv.padding - conv.dilation * taps.first) / conv.stride;
      const float* weights = packed;
      for (int64_t g = 0; g < conv.groups; ++g)
        for (int64_t c = 0; c < outputs; c += kBlockOutputs, weights += inputs * weight_stride) {
          const int64_t channel = g * outputs + c;
          const CorrelateBlock block{rows + (in.at(g * inputs, begin) + (taps.count > 0 ? first_t : 0)) * kLanes,
                                     in.stride * kLanes,
                                     inputs,
                                     kLanes,
                                     -(conv.dilation * taps.step / conv.stride) * kLanes,
                                     taps.count,
                                     weights + taps.first * kBlockOutputs,
                                     weight_stride,
                                     taps.step * kBlockOutputs,
                                     bias == nullptr ? nullptr : bias + channel,
                                     rows + out.at(channel, first_position + begin * conv.stride) * kLanes,
                                     out.stride * kLanes,
                                     conv.stride * kLanes,
                                     std::min<int64_t>(kBlockOutputs, outputs - c)};
          correlate<kBytes>(block, std::min(run, positions - begin));
        }
    }
}

}  // namespace dpcgan::cpu
