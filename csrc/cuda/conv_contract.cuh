// The contraction under the conv ops on the GPU: G = sum over rows and positions of g x^T, tile by tile.
//
// It forms the gradient of an `owner` of rows: a sample (per-sample gradient), a unit (norm), or a slice of the batch
// whose rows are weighted (clipped sum). What happens to a finished tile is the epilogue: the kernel below stores it,
// that of sq_norm.cu squares and drops it. A block stages kTilePositions taps and outputs at a time in shared memory,
// in double, so that values are converted and scaled once and not by each thread that multiplies them.
//
// The bias gradient is a plain sum over positions of g or x; its tiles follow the weight tiles.
#pragma once

#include "../common/conv_geometry.h"
#include "rows.cuh"

namespace dpcgan::cuda {

enum class Epilogue { kStore, kSquare };

constexpr int kTilePositions = 16;
constexpr int kBiasChannels = kWarpSize;  // channels of a bias tile

// Tile of kOutputs x kTaps weights; a thread holds kThreadOutputs x kThreadTaps of them, spread over the tile so that
// neighbouring threads read neighbouring shared memory.
template <int kOutputs_, int kTaps_, int kThreadOutputs_, int kThreadTaps_>
struct TileShape {
  static constexpr int kOutputs = kOutputs_;
  static constexpr int kTaps = kTaps_;
  static constexpr int kThreadOutputs = kThreadOutputs_;
  static constexpr int kThreadTaps = kThreadTaps_;
  static constexpr int kOutputLanes = kOutputs / kThreadOutputs;
  static constexpr int kTapLanes = kTaps / kThreadTaps;
  static constexpr int kThreads = kOutputLanes * kTapLanes;
  static constexpr int kBiasLanes = kThreads / kBiasChannels;
  static_assert(kThreads % kTaps == 0 && kThreads % kTilePositions == 0, "staging deals out whole lines");
  static_assert(kThreads % kBiasChannels == 0, "a bias tile takes whole warps");
};

// Both of kTileThreads threads, so that one launch may hold both.
constexpr int kTileThreads = 128;
using LargeTile = TileShape<32, 64, 4, 4>;
using SmallTile = TileShape<16, 32, 2, 2>;  // for narrow layers, which would leave most of a large tile empty
static_assert(LargeTile::kThreads == kTileThreads && SmallTile::kThreads == kTileThreads);

template <class Tile>
struct TileCounts {
  int64_t tap_tiles;
  int64_t weight;  // tiles of one channel group's weights
  int64_t total;   // and of its bias

  DPCGAN_HOST_DEVICE explicit TileCounts(const ConvGeometry& conv) {
    tap_tiles = ceil_div<int64_t>(conv.taps(), Tile::kTaps);
    weight = tap_tiles * ceil_div<int64_t>(conv.g_group_channels(), Tile::kOutputs);
    total = weight + ceil_div<int64_t>(conv.bias_numel() / conv.groups, kBiasChannels);
  }
};

inline bool prefers_large_tile(const ConvGeometry& conv) {
  const int64_t large = TileCounts<LargeTile>(conv).weight * LargeTile::kOutputs * LargeTile::kTaps;
  const int64_t small = TileCounts<SmallTile>(conv).weight * SmallTile::kOutputs * SmallTile::kTaps;
  return large < 2 * small;
}

template <class T>
struct ContractProblem {
  ConvGeometry conv;
  ConvOperands<T> data;
  RowOwners owners;
  const double* factor;  // (batch rows,), or null for 1; rows of factor 0 are not read
  int64_t parts;         // work items of one owner and channel group; tiles are dealt out to them in turn
};

// Owner i's gradients begin at weight + i weight_step and bias + i bias_step.
template <class Out>
struct ContractOutput {
  Out* weight;
  Out* bias;
  int64_t weight_step;
  int64_t bias_step;
};

// Where the taps and outputs of one position of an owner's rows lie.
struct PositionSource {
  int64_t x_row;
  int64_t x_start;  // x position of tap 0
  int64_t g_offset;
  double scale;  // of g; where `read` is false it stands for the outputs themselves: 0 leaves the position out
  bool read;
};

template <class Tile>
struct ContractShared {
  PositionSource source[kTilePositions];
  double taps[kTilePositions][Tile::kTaps];
  double outputs[kTilePositions][Tile::kOutputs + 1];  // one more than needed: columns are written without conflicts
  double bias[Tile::kBiasLanes][kBiasChannels];
};

template <class T>
__device__ double row_scale(const ContractProblem<T>& problem, int64_t row) {
  if (row == kNoRow) return kNan;
  return problem.factor == nullptr ? 1.0 : problem.factor[row];
}

// index: of [0, rows of the span x positions), and beyond, where nothing is read
template <class T>
__device__ PositionSource position_source(const ContractProblem<T>& problem, const RowSpan& rows, int64_t index) {
  const int64_t length = problem.conv.g_length;
  if (index >= rows.count * length) return {0, 0, 0, 0.0, false};
  const int64_t row = rows.row(index / length), t = index % length;
  const double scale = row_scale(problem, row);
  return {row * problem.data.x_strides.row, problem.conv.x_position(t, 0),
          row * problem.data.g_strides.row + t * problem.data.g_strides.position, scale, row != kNoRow && scale != 0};
}

// Stages the taps [first_tap, first_tap + kTaps); a thread has one tap of them.
template <class T, class Tile>
__device__ void stage_taps(const ContractProblem<T>& problem, int64_t group, int64_t first_tap,
                           ContractShared<Tile>& shared) {
  constexpr int kLines = Tile::kThreads / Tile::kTaps;
  const ConvGeometry& conv = problem.conv;
  const int lane = threadIdx.x % Tile::kTaps;
  const int64_t tap = first_tap + lane;
  const bool exists = tap < conv.taps();
  const int64_t channel = group * conv.x_group_channels() + tap / conv.kernel_size;
  const int64_t shift = conv.dilation * (tap % conv.kernel_size);
  const T* x = problem.data.x + (exists ? channel * problem.data.x_strides.channel : 0);
  for (int p = threadIdx.x / Tile::kTaps; p < kTilePositions; p += kLines) {
    const PositionSource& source = shared.source[p];
    const int64_t position = source.x_start + shift;
    const bool read = exists && source.read && conv.inside(position);
    shared.taps[p][lane] =
        read ? static_cast<double>(x[source.x_row + position * problem.data.x_strides.position]) : 0.0;
  }
}

// Stages the outputs [first_output, first_output + kOutputs); a thread has one position of them.
template <class T, class Tile>
__device__ void stage_outputs(const ContractProblem<T>& problem, int64_t group, int64_t first_output,
                              ContractShared<Tile>& shared) {
  constexpr int kLines = Tile::kThreads / kTilePositions;
  const int p = threadIdx.x % kTilePositions;
  const int64_t outputs = problem.conv.g_group_channels();
  const PositionSource& source = shared.source[p];
  for (int lane = threadIdx.x / kTilePositions; lane < Tile::kOutputs; lane += kLines) {
    const int64_t output = first_output + lane;
    double value = output < outputs ? source.scale : 0.0;
    if (output < outputs && source.read)
      value *= problem.data.g[source.g_offset + (group * outputs + output) * problem.data.g_strides.channel];
    shared.outputs[p][lane] = value;
  }
}

// Forms one tile of weights; returns the thread's share of its squares, or stores it and returns 0.
template <class T, class Tile, Epilogue kEpilogue, class Out>
__device__ double weight_tile(const ContractProblem<T>& problem, const RowSpan& rows, int64_t group, int64_t tile,
                              int64_t tap_tiles, Out* weight, ContractShared<Tile>& shared) {
  const ConvGeometry& conv = problem.conv;
  const int64_t first_output = tile / tap_tiles * Tile::kOutputs, first_tap = tile % tap_tiles * Tile::kTaps;
  const int output_lane = threadIdx.x / Tile::kTapLanes, tap_lane = threadIdx.x % Tile::kTapLanes;
  double sum[Tile::kThreadOutputs][Tile::kThreadTaps] = {};
  for (int64_t first = 0; first < rows.count * conv.g_length; first += kTilePositions) {
    if (threadIdx.x < kTilePositions) shared.source[threadIdx.x] = position_source(problem, rows, first + threadIdx.x);
    __syncthreads();  // sources are known, and the tiles of the previous positions have been multiplied
    stage_taps(problem, group, first_tap, shared);
    stage_outputs(problem, group, first_output, shared);
    __syncthreads();
#pragma unroll 4  // all of them would take too many registers
    for (int p = 0; p < kTilePositions; ++p)
      for (int i = 0; i < Tile::kThreadOutputs; ++i)
        for (int l = 0; l < Tile::kThreadTaps; ++l)
          sum[i][l] +=
              shared.outputs[p][output_lane + i * Tile::kOutputLanes] * shared.taps[p][tap_lane + l * Tile::kTapLanes];
  }
  double squares = 0;
  for (int i = 0; i < Tile::kThreadOutputs; ++i)
    for (int l = 0; l < Tile::kThreadTaps; ++l) {
      if constexpr (kEpilogue == Epilogue::kSquare) {
        squares += sum[i][l] * sum[i][l];  // 0 beyond the last output or tap
      } else {
        const int64_t output = first_output + output_lane + i * Tile::kOutputLanes;
        const int64_t tap = first_tap + tap_lane + l * Tile::kTapLanes;
        if (output < conv.g_group_channels() && tap < conv.taps())
          weight[(group * conv.g_group_channels() + output) * conv.taps() + tap] = static_cast<Out>(sum[i][l]);
      }
    }
  return squares;
}

// Sum over the threads that share a channel of the bias, valid in the first of them. All threads must call it.
template <class Tile>
__device__ double bias_lanes_sum(double value, ContractShared<Tile>& shared) {
  const int64_t lane = threadIdx.x % kBiasChannels;
  __syncthreads();  // the sums of an earlier call have been read
  shared.bias[threadIdx.x / kBiasChannels][lane] = value;
  __syncthreads();
  if (threadIdx.x >= kBiasChannels) return 0;
  double total = 0;
  for (int i = 0; i < Tile::kBiasLanes; ++i) total += shared.bias[i][lane];
  return total;
}

// The same for kBiasChannels channels of the bias: a warp reads one position of each, and warps share the positions.
// sq_sizes: with squares, those of the sums of absolute values are added to it
template <class T, class Tile, Epilogue kEpilogue, class Out>
__device__ double bias_tile(const ContractProblem<T>& problem, const RowSpan& rows, int64_t group, int64_t tile,
                            Out* bias, ContractShared<Tile>& shared, double* sq_sizes = nullptr) {
  const ConvGeometry& conv = problem.conv;
  const bool from_grad = conv.bias == BiasRole::kGrad;
  const OperandStrides strides = from_grad ? problem.data.g_strides : problem.data.x_strides;
  const int64_t length = from_grad ? conv.g_length : conv.x_length;
  const int64_t channels = conv.bias_numel() / conv.groups;
  const int64_t lane = threadIdx.x % kBiasChannels, first_position = threadIdx.x / kBiasChannels;
  const int64_t in_group = tile * kBiasChannels + lane;
  const int64_t channel = group * channels + in_group;
  double sum = 0, sizes = 0;
  for (int64_t r = 0; in_group < channels && r < rows.count; ++r) {
    const int64_t row = rows.row(r);
    const double scale = row_scale(problem, row);
    if (scale == 0) continue;  // 0 times NaN is NaN
    double row_sum = 0;
    if (row != kNoRow) {
      const T* line = (from_grad ? problem.data.g : problem.data.x) + row * strides.row + channel * strides.channel;
      for (int64_t t = first_position; t < length; t += Tile::kBiasLanes) {
        const double value = line[t * strides.position];
        row_sum += value;
        if constexpr (kEpilogue == Epilogue::kSquare) sizes += fabs(value);
      }
    }
    sum += scale * row_sum;
  }
  const double total = bias_lanes_sum<Tile>(sum, shared);
  if constexpr (kEpilogue == Epilogue::kSquare) sizes = bias_lanes_sum<Tile>(sizes, shared);
  if (threadIdx.x >= kBiasChannels || in_group >= channels) return 0;
  if constexpr (kEpilogue == Epilogue::kSquare) {
    *sq_sizes += sizes * sizes;
    return total * total;
  } else {
    bias[channel] = static_cast<Out>(total);
    return 0;
  }
}

template <class T, class Tile, class Out>
__global__ void __launch_bounds__(Tile::kThreads)
    conv_contract_kernel(const ContractProblem<T> problem, const ContractOutput<Out> out) {
  __shared__ ContractShared<Tile> shared;
  const TileCounts<Tile> tiles(problem.conv);
  const int64_t items = problem.owners.owners * problem.conv.groups * problem.parts;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t owner_group = item / problem.parts;
    const int64_t owner = owner_group / problem.conv.groups, group = owner_group % problem.conv.groups;
    const RowSpan rows = problem.owners.span(owner);
    for (int64_t tile = item % problem.parts; tile < tiles.total; tile += problem.parts) {
      if (tile >= tiles.weight) {
        bias_tile<T, Tile, Epilogue::kStore>(problem, rows, group, tile - tiles.weight,
                                             out.bias + owner * out.bias_step, shared);
      } else {
        weight_tile<T, Tile, Epilogue::kStore>(problem, rows, group, tile, tiles.tap_tiles,
                                               out.weight + owner * out.weight_step, shared);
      }
    }
  }
}

// Calls body(Tile{}) with the tile shape that suits the layer.
template <class Body>
void with_tile(const ConvGeometry& conv, const Body& body) {
  if (prefers_large_tile(conv)) {
    body(LargeTile{});
  } else {
    body(SmallTile{});
  }
}

}  // namespace dpcgan::cuda
