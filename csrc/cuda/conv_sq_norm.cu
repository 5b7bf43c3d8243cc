// Squared norms of the per-unit weight gradients of the conv family, without storing a gradient.
//
// `direct` forms the gradient of a unit tile by tile, squares and drops it (conv_contract.cuh). `gram` writes the norm
// as sum_{t,t'} (g^T g)[t,t'] A[t,t'] with A from the polyphase view of x: a block takes one lag t' - t of one unit.
//
// A Gram norm far below its Cauchy-Schwarz bound (common/cancellation.h) is not trusted. Whether that is so is known on
// the device only, so the direct kernel is always launched behind it, and its blocks leave at once where there is
// nothing to repeat. It also takes the bias, which the Gram product does not contain.
#include "conv_contract.cuh"

namespace dpcgan::cuda {
namespace {

constexpr int kGramThreads = 128;
constexpr int64_t kGramPositions = 128;  // positions of a lag that are held in shared memory at a time
constexpr int64_t kMaxFolds = 65;        // a kernel of more strides is taken tap by tap

struct GramShared {
  double full[kGramPositions + kMaxFolds - 1];  // products of two columns over all phases
  double last[kGramPositions + kMaxFolds - 1];  // and over the phases of the last fold
  double scratch[kGramThreads];
};

template <class T>
struct GramProblem {
  ConvGeometry conv;
  PolyphaseGeometry poly;
  ConvOperands<T> data;
  RowOwners units;
  int64_t lags;  // 1 for the bound alone, which needs lag 0 and no products of different rows
  bool bound_only;
  unsigned column_lanes;  // threads of a block side by side along the columns; the others share channels
};

// A pair of rows at one lag, and one channel group.
struct GramPair {
  int64_t first_row, second_row;
  int64_t group;
  int64_t lag;
};

// Sum over the threads that share a column; valid in the first of them, which has line lane 0.
__device__ double line_sum(double value, unsigned column_lanes, double* scratch) {
  __syncthreads();  // the values of an earlier call have been read
  scratch[threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.x >= column_lanes) return 0;
  double sum = 0;
  for (unsigned lane = threadIdx.x; lane < kGramThreads; lane += column_lanes) sum += scratch[lane];
  return sum;
}

template <class T>
__device__ double column_value(const GramProblem<T>& problem, const T* line, int64_t column, int64_t phase) {
  const int64_t position = polyphase_position(problem.conv, column, phase);
  return problem.conv.inside(position) ? static_cast<double>(line[position * problem.data.x_strides.position]) : 0.0;
}

// Fills shared.full and shared.last for the columns [first, first + columns) of the pair's first row. The threads of
// line lane 0 may read them after the next call of line_sum, whose barriers they share.
template <class T>
__device__ void multiply_columns(const GramProblem<T>& problem, const GramPair& pair, int64_t first, int64_t columns,
                                 GramShared& shared) {
  const OperandStrides& strides = problem.data.x_strides;
  const int64_t channels = problem.conv.x_group_channels();
  const T* x = problem.data.x + pair.group * channels * strides.channel;
  const unsigned line_lane = threadIdx.x / problem.column_lanes, line_lanes = kGramThreads / problem.column_lanes;
  for (int64_t base = 0; base < columns; base += problem.column_lanes) {
    const int64_t column = base + threadIdx.x % problem.column_lanes;
    double last = 0, rest = 0;
    for (int64_t c = line_lane; column < columns && c < channels; c += line_lanes) {
      const T* a = x + pair.first_row * strides.row + c * strides.channel;
      const T* b = x + pair.second_row * strides.row + c * strides.channel;
      for (int64_t phase = 0; phase < problem.poly.phases; ++phase) {
        const double product = column_value(problem, a, first + column, phase) *
                               column_value(problem, b, first + column + pair.lag, phase);
        (phase < problem.poly.last_phases ? last : rest) += product;
      }
    }
    last = line_sum(last, problem.column_lanes, shared.scratch);
    rest = line_sum(rest, problem.column_lanes, shared.scratch);
    if (line_lane == 0 && column < columns) {
      shared.last[column] = last;
      shared.full[column] = last + rest;
    }
  }
}

// (g^T g)[t, t + lag]; valid in line lane 0.
template <class T>
__device__ double multiply_outputs(const GramProblem<T>& problem, const GramPair& pair, int64_t t, bool exists,
                                   GramShared& shared) {
  const OperandStrides& strides = problem.data.g_strides;
  const int64_t outputs = problem.conv.g_group_channels();
  const T* g = problem.data.g + pair.group * outputs * strides.channel;
  double sum = 0;
  for (int64_t o = threadIdx.x / problem.column_lanes; exists && o < outputs; o += kGramThreads / problem.column_lanes)
    sum += static_cast<double>(g[pair.first_row * strides.row + o * strides.channel + t * strides.position]) *
           g[pair.second_row * strides.row + o * strides.channel + (t + pair.lag) * strides.position];
  return line_sum(sum, problem.column_lanes, shared.scratch);
}

// Adds the thread's share of what a pair of rows contributes to the norm, and a row with itself to the bound.
template <class T>
__device__ void add_pair(const GramProblem<T>& problem, const GramPair& pair, GramShared& shared,
                         NormAndBound& result) {
  const int64_t pairs = problem.conv.g_length - pair.lag, folds = problem.poly.folds;
  for (int64_t first = 0; first < pairs; first += kGramPositions) {
    const int64_t positions = smaller(kGramPositions, pairs - first);
    multiply_columns(problem, pair, first, positions + folds - 1, shared);
    for (int64_t base = 0; base < positions; base += problem.column_lanes) {
      const int64_t t = base + threadIdx.x % problem.column_lanes;
      const double outputs = multiply_outputs(problem, pair, first + t, t < positions, shared);
      if (threadIdx.x >= problem.column_lanes || t >= positions) continue;
      double inputs = shared.last[t + folds - 1];
      for (int64_t m = 0; m + 1 < folds; ++m) inputs += shared.full[t + m];
      result.sq_norm += inputs * outputs;
      if (pair.first_row == pair.second_row && pair.lag == 0) result.bound += sqrt(inputs * outputs);
    }
  }
}

// partial: (units, groups, lags), sums over one lag  measured: (units, groups), bounds
template <class T>
__global__ void __launch_bounds__(kGramThreads)
    conv_gram_kernel(const GramProblem<T> problem, double* partial, NormAndBound* measured) {
  __shared__ GramShared shared;
  const int64_t items = problem.units.owners * problem.conv.groups * problem.lags;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t lag = item % problem.lags, unit_group = item / problem.lags;
    const RowSpan rows = problem.units.span(unit_group / problem.conv.groups);
    NormAndBound result;
    // Ordered pairs of rows at lags >= 0 stand for the lags < 0 of the swapped pair too, hence the factor of 2 below.
    for (int64_t i = 0; i < rows.count; ++i)
      for (int64_t j = problem.bound_only ? i : 0; j < (problem.bound_only ? i + 1 : rows.count); ++j) {
        const GramPair pair{rows.row(i), rows.row(j), unit_group % problem.conv.groups, lag};
        if (pair.first_row == kNoRow || pair.second_row == kNoRow) {
          result.sq_norm = kNan;
        } else {
          add_pair(problem, pair, shared, result);
        }
      }
    const double sum = block_sum<kGramThreads>(result.sq_norm);
    const double bound = block_sum<kGramThreads>(result.bound);
    if (threadIdx.x != 0) continue;
    partial[item] = lag == 0 ? sum : 2 * sum;
    if (lag == 0) measured[unit_group].bound = bound;
  }
}

// A warp adds the lags of one unit and channel group.
__global__ void __launch_bounds__(kThreads)
    conv_gram_sum_kernel(const double* partial, int64_t unit_groups, int64_t lags, NormAndBound* measured) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarpSize);
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarpSize; i < unit_groups;
       i += warps) {
    double sum = 0;
    for (int64_t lag = lane; lag < lags; lag += kWarpSize) sum += partial[i * lags + lag];
    sum = warp_sum(sum);
    if (lane == 0) measured[i].sq_norm = sum;
  }
}

// A warp adds what belongs to one unit: Gram norms where they are trusted, squares, and what rounding may hide.
// measured: (units, groups)  squares: (units, groups, parts)
__global__ void __launch_bounds__(kThreads)
    conv_sq_norm_sum_kernel(const NormAndBound* measured, const double* squares, int64_t units, int64_t groups,
                            int64_t parts, bool gram, double* out) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarpSize);
  for (int64_t unit = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarpSize; unit < units;
       unit += warps) {
    double sum = 0;
    for (int64_t i = lane; i < groups * parts; i += kWarpSize) sum += squares[unit * groups * parts + i];
    for (int64_t group = lane; group < groups; group += kWarpSize) {
      const NormAndBound& part = measured[unit * groups + group];
      if (gram && !part.cancels(kGramCancellation)) sum += part.sq_norm;
      sum += part.rounding_sq_norm();
    }
    sum = warp_sum(sum);
    if (lane == 0) out[unit] = sum;
  }
}

// How the scratch memory is laid out and the work is cut.
struct SqNormPlan {
  int64_t unit_groups;
  int64_t lags;
  int64_t parts;

  SqNormPlan(const ConvGeometry& conv, int64_t units, bool gram) {
    unit_groups = units * conv.groups;
    lags = gram ? larger(1, conv.g_length) : 1;
    int64_t tiles = 0;
    with_tile(conv, [&](auto tile) { tiles = TileCounts<decltype(tile)>(conv).total; });
    // One block a unit and group suffices where there are many of them; one tile a block is the most there is.
    parts = larger(1, smaller(tiles, kTargetBlocks / larger(1, unit_groups)));
  }

  int64_t measured_doubles() const { return unit_groups * static_cast<int64_t>(sizeof(NormAndBound) / sizeof(double)); }
  int64_t doubles() const { return measured_doubles() + unit_groups * (lags + parts); }
};

unsigned column_lanes(int64_t positions) {
  unsigned lanes = 1;
  while (lanes < kGramThreads && lanes < positions) lanes *= 2;
  return lanes;
}

}  // namespace

int64_t conv_sq_norm_workspace(const ConvGeometry& conv, int64_t units, bool gram) {
  return SqNormPlan(conv, units, gram).doubles();
}

template <class T>
void launch_conv_sq_norm(const ConvGeometry& conv, const ConvOperands<T>& data, const UnitIndex& index, bool gram,
                         double* workspace, double* out, cudaStream_t stream) {
  const SqNormPlan plan(conv, index.units, gram);
  const RowOwners units = unit_rows(conv.rows, index);
  NormAndBound* measured = reinterpret_cast<NormAndBound*>(workspace);
  double* lag_sums = workspace + plan.measured_doubles();
  double* squares = lag_sums + plan.unit_groups * plan.lags;
  const int64_t warps_per_block = kThreads / kWarpSize;

  const GramProblem<T> gram_problem{conv,  PolyphaseGeometry(conv, kMaxFolds), data, units, plan.lags,
                                    !gram, column_lanes(conv.g_length)};
  launch(conv_gram_kernel<T>, plan.unit_groups * plan.lags, kGramThreads, stream, gram_problem, lag_sums, measured);
  if (gram)
    launch(conv_gram_sum_kernel, ceil_div(plan.unit_groups, warps_per_block), kThreads, stream, lag_sums,
           plan.unit_groups, plan.lags, measured);
  with_tile(conv, [&](auto tile) {
    using Tile = decltype(tile);
    const ContractProblem<T> problem{conv, data, units, nullptr, gram ? measured : nullptr, plan.parts};
    const ContractOutput<double> squares_out{squares, nullptr, 0, 0};
    launch(conv_contract_kernel<T, Tile, Epilogue::kSquare, double>, plan.unit_groups * plan.parts, Tile::kThreads,
           stream, problem, squares_out);
  });
  launch(conv_sq_norm_sum_kernel, ceil_div(index.units, warps_per_block), kThreads, stream, measured, squares,
         index.units, conv.groups, plan.parts, gram, out);
}

template void launch_conv_sq_norm<float>(const ConvGeometry&, const ConvOperands<float>&, const UnitIndex&, bool,
                                         double*, double*, cudaStream_t);
template void launch_conv_sq_norm<double>(const ConvGeometry&, const ConvOperands<double>&, const UnitIndex&, bool,
                                          double*, double*, cudaStream_t);

}  // namespace dpcgan::cuda
