// The contraction under the conv ops on the GPU: G = sum over rows and positions of g x^T, tile by tile.
//
// It forms the gradient of an `owner` of rows: a sample (per-sample gradient), a unit (norm), or a slice of the batch
// whose rows are weighted (clipped sum). What happens to a finished tile is the epilogue: the kernel below stores it,
// that of sq_norm.cu squares and drops it. A block stages some positions' taps and outputs at a time in shared memory,
// so that values are fetched and converted once and not by each thread that multiplies them.
//
// A row's own gradient is summed over its positions in `Acc`, one position after the other, whatever the tile and the
// stage; rows add in double, each scaled by its factor after it is whole. So with Acc = float the gradient that a norm
// is taken of and the one that is added up are the same to the last bit, although neither is stored, and the rounding
// of a row is no concern of the clipping. With Acc = double it is the gradient itself, for norms that are taken in
// another way.
//
// The bias gradient is a plain sum over positions of g or x; its tiles follow the weight tiles.
#pragma once

#include "../common/conv_geometry.h"
#include "rows.cuh"

namespace dpcgan::cuda {

enum class Epilogue { kStore, kSquare };

constexpr int kStageBytes = 12 * 1024;    // of taps and outputs in shared memory
constexpr int kBiasChannels = kWarpSize;  // channels of a bias tile
constexpr int64_t kFewPositions = 8;      // rows of fewer are read output by output

// Tile of kOutputs x kTaps weights; a thread holds kThreadOutputs x kThreadTaps of them, side by side, so that it reads
// each side by one instruction.
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
  static_assert(kThreads % kTaps == 0, "staging deals out whole lines");
  static_assert(kThreads % kBiasChannels == 0, "a bias tile takes whole warps");
};

// Both of kTileThreads threads, so that one launch may hold both.
constexpr int kTileThreads = 128;
constexpr int kTileBlocks = 6;  // of a multiprocessor: what registers are held to, at the price of a few spills
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

inline bool prefers_large_tile(const NormTask& task) {
  return task.form != NormForm::kRows && prefers_large_tile(task.conv);
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
  double scale;  // of the row
  int64_t left;  // positions of the row from this one on
  bool read;     // otherwise taps and outputs count as 0
};

// What a thread multiplies at one position, of one side.
template <class Acc, int kCount>
struct alignas(kCount * sizeof(Acc) < 16 ? kCount * sizeof(Acc) : 16) Pack {
  Acc value[kCount];
};

template <class Tile, class Acc>
struct ContractShared {
  static constexpr int kPositions = kStageBytes / (static_cast<int>(sizeof(Acc)) * (Tile::kTaps + Tile::kOutputs));
  // Columns are written without too many conflicts, and packs stay aligned.
  static constexpr int kOutputPitch = Tile::kOutputs + 16 / static_cast<int>(sizeof(Acc));

  PositionSource source[2][kPositions];  // by turns: one is read while the next is written
  alignas(16) Acc taps[kPositions][Tile::kTaps];
  alignas(16) Acc outputs[kPositions][kOutputPitch];
  double bias[Tile::kBiasLanes][kBiasChannels];
};

// Rounded once on the device, in both kernels that must agree.
__device__ __forceinline__ float multiply_add(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}

__device__ __forceinline__ double multiply_add(double a, double b, double c) {
#ifdef __CUDA_ARCH__
  return __fma_rn(a, b, c);
#else
  return a * b + c;
#endif
}

template <class T>
__device__ double row_scale(const ContractProblem<T>& problem, int64_t row) {
  if (row == kNoRow) return kNan;
  return problem.factor == nullptr ? 1.0 : problem.factor[row];
}

// index: of [0, rows of the span x positions)
template <class T>
__device__ PositionSource position_source(const ContractProblem<T>& problem, const RowSpan& rows, int64_t index) {
  const int64_t length = problem.conv.g_length;
  const int64_t row = rows.row(index / length), t = index % length;
  const double scale = row_scale(problem, row);
  return {row * problem.data.x_strides.row,
          problem.conv.x_position(t, 0),
          row * problem.data.g_strides.row + t * problem.data.g_strides.position,
          scale,
          length - t,
          row != kNoRow && scale != 0};
}

// Stages the taps [first_tap, first_tap + kTaps); a thread has one tap of them.
template <class T, class Tile, class Acc>
__device__ void stage_taps(const ContractProblem<T>& problem, int64_t group, int64_t first_tap,
                           const PositionSource* source, int count, ContractShared<Tile, Acc>& shared) {
  constexpr int kLines = Tile::kThreads / Tile::kTaps;
  const ConvGeometry& conv = problem.conv;
  const int lane = threadIdx.x % Tile::kTaps;
  const int64_t tap = first_tap + lane;
  const bool exists = tap < conv.taps();
  const int64_t channel = group * conv.x_group_channels() + tap / conv.kernel_size;
  const int64_t shift = conv.dilation * (tap % conv.kernel_size);
  const T* x = problem.data.x + (exists ? channel * problem.data.x_strides.channel : 0);
  for (int p = threadIdx.x / Tile::kTaps; p < count; p += kLines) {
    const int64_t position = source[p].x_start + shift;
    const bool read = exists && source[p].read && conv.inside(position);
    shared.taps[p][lane] =
        read ? static_cast<Acc>(x[source[p].x_row + position * problem.data.x_strides.position]) : Acc(0);
  }
}

// Stages the outputs [first_output, first_output + kOutputs). Neighbouring threads read along the positions, or along
// the outputs where a row has few positions.
template <class T, class Tile, class Acc>
__device__ void stage_outputs(const ContractProblem<T>& problem, int64_t group, int64_t first_output,
                              const PositionSource* source, int count, ContractShared<Tile, Acc>& shared) {
  constexpr int kPositions = ContractShared<Tile, Acc>::kPositions;
  const int64_t outputs = problem.conv.g_group_channels();
  const bool few = problem.conv.g_length < kFewPositions;
  for (int i = threadIdx.x; i < kPositions * Tile::kOutputs; i += Tile::kThreads) {
    const int p = few ? i / Tile::kOutputs : i % kPositions, lane = few ? i % Tile::kOutputs : i / kPositions;
    if (p >= count) continue;
    const int64_t output = first_output + lane;
    const bool read = output < outputs && source[p].read;
    const int64_t channel = (group * outputs + output) * problem.data.g_strides.channel;
    shared.outputs[p][lane] = read ? static_cast<Acc>(problem.data.g[source[p].g_offset + channel]) : Acc(0);
  }
}

// Forms one tile of weights; returns the thread's share of its squares, or stores it and returns 0.
template <class T, class Tile, class Acc, Epilogue kEpilogue, class Out>
__device__ double weight_tile(const ContractProblem<T>& problem, const RowSpan& rows, int64_t group, int64_t tile,
                              int64_t tap_tiles, Out* weight, ContractShared<Tile, Acc>& shared) {
  constexpr int kOutputs = Tile::kThreadOutputs, kTaps = Tile::kThreadTaps;
  constexpr int kPositions = ContractShared<Tile, Acc>::kPositions;
  const ConvGeometry& conv = problem.conv;
  const int64_t first_output = tile / tap_tiles * Tile::kOutputs, first_tap = tile % tap_tiles * Tile::kTaps;
  const int output = threadIdx.x / Tile::kTapLanes * kOutputs, tap = threadIdx.x % Tile::kTapLanes * kTaps;
  const int64_t positions = rows.count * conv.g_length;
  Acc row[kOutputs][kTaps] = {};
  double sum[kOutputs][kTaps] = {};
  int turn = 0;
  __syncthreads();  // an earlier tile has been multiplied
  for (int64_t first = 0; first < positions; first += kPositions, turn = 1 - turn) {
    PositionSource* source = shared.source[turn];
    const int count = static_cast<int>(smaller(kPositions, positions - first));
    for (int p = threadIdx.x; p < count; p += Tile::kThreads) source[p] = position_source(problem, rows, first + p);
    __syncthreads();  // sources are known, and the positions before have been multiplied
    stage_taps(problem, group, first_tap, source, count, shared);
    stage_outputs(problem, group, first_output, source, count, shared);
    __syncthreads();
    for (int p = 0; p < count;) {
      const int64_t left = source[p].left;
      const double scale = source[p].scale;
      const int stop = static_cast<int>(smaller(count, p + left));
      const bool whole = p + left <= count;
#pragma unroll 4  // all of them would take too many registers
      for (; p < stop; ++p) {
        const auto g = *reinterpret_cast<const Pack<Acc, kOutputs>*>(&shared.outputs[p][output]);
        const auto x = *reinterpret_cast<const Pack<Acc, kTaps>*>(&shared.taps[p][tap]);
        for (int i = 0; i < kOutputs; ++i)
          for (int l = 0; l < kTaps; ++l) row[i][l] = multiply_add(g.value[i], x.value[l], row[i][l]);
      }
      if (!whole) continue;
      for (int i = 0; i < kOutputs; ++i)
        for (int l = 0; l < kTaps; ++l) {
          sum[i][l] += scale * static_cast<double>(row[i][l]);
          row[i][l] = 0;
        }
    }
  }
  double squares = 0;
  for (int i = 0; i < kOutputs; ++i)
    for (int l = 0; l < kTaps; ++l) {
      if constexpr (kEpilogue == Epilogue::kSquare) {
        squares += sum[i][l] * sum[i][l];  // 0 beyond the last output or tap
      } else {
        const int64_t o = first_output + output + i, c = first_tap + tap + l;
        if (o < conv.g_group_channels() && c < conv.taps())
          weight[(group * conv.g_group_channels() + o) * conv.taps() + c] = static_cast<Out>(sum[i][l]);
      }
    }
  return squares;
}

// Sum over the threads that share a channel of the bias, valid in the first of them. All threads must call it.
template <class Tile, class Acc>
__device__ double bias_lanes_sum(double value, ContractShared<Tile, Acc>& shared) {
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
template <class T, class Tile, class Acc, Epilogue kEpilogue, class Out>
__device__ double bias_tile(const ContractProblem<T>& problem, const RowSpan& rows, int64_t group, int64_t tile,
                            Out* bias, ContractShared<Tile, Acc>& shared, double* sq_sizes = nullptr) {
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
  const double total = bias_lanes_sum(sum, shared);
  if constexpr (kEpilogue == Epilogue::kSquare) sizes = bias_lanes_sum(sizes, shared);
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
  __shared__ ContractShared<Tile, double> shared;
  const TileCounts<Tile> tiles(problem.conv);
  const int64_t items = problem.owners.owners * problem.conv.groups * problem.parts;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t owner_group = item / problem.parts;
    const int64_t owner = owner_group / problem.conv.groups, group = owner_group % problem.conv.groups;
    const RowSpan rows = problem.owners.span(owner);
    for (int64_t tile = item % problem.parts; tile < tiles.total; tile += problem.parts) {
      if (tile >= tiles.weight) {
        bias_tile<T, Tile, double, Epilogue::kStore>(problem, rows, group, tile - tiles.weight,
                                                     out.bias + owner * out.bias_step, shared);
      } else {
        weight_tile<T, Tile, double, Epilogue::kStore>(problem, rows, group, tile, tiles.tap_tiles,
                                                       out.weight + owner * out.weight_step, shared);
      }
    }
  }
}

template <class T>
__device__ ConvOperands<T> typed(const ConvOperands<void>& data) {
  return {static_cast<const T*>(data.x), data.x_strides, static_cast<const T*>(data.g), data.g_strides};
}

// Calls body with a value of the type that operands have.
template <class Body>
__device__ void with_element(ElementType type, const Body& body) {
  switch (type) {
    case ElementType::kFloat:
      return body(float{});
    case ElementType::kDouble:
      return body(double{});
    case ElementType::kBFloat16:
      return body(BFloat16{});
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
