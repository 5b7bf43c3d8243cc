// Squared norms of every unit's gradient over all layers of a step, and the clip factors, in one launch.
//
// What a unit's norm takes is dealt out in pieces: `formed` and `direct` form a tile of the gradient, square and drop
// it (conv_contract.cuh), `gram` takes a channel group whole and never forms its gradient (conv_gram.cuh), `rows`
// squares per-sample gradients that lie in memory. A unit's pieces are shared by as many blocks as are worth it, one
// where there are many units; the block that is the last of its unit adds up what the others found, in a fixed order,
// whichever block that is, so that the result is bitwise reproducible.
//
// `direct` is the gradient itself, in double, `formed` the one that float arithmetic gives and that step_sum.cu adds
// up. A Gram norm far below its Cauchy-Schwarz bound (common/cancellation.h) is not trusted; its block forms that
// gradient.
#include "../common/clip.h"
#include "conv_contract.cuh"
#include "conv_gram.cuh"

namespace dpcgan::cuda {
namespace {

static_assert(kTileThreads == kGramThreads, "one launch holds both forms");

struct TaskEntry {
  NormTask task;
  int64_t first_piece;
  int64_t pieces;  // of all channel groups: first those of the weights, group by group, then those of the bias
  int64_t weight_pieces;
  unsigned column_lanes;
  bool large_tile;

  DPCGAN_HOST_DEVICE int64_t group_weight_pieces() const { return weight_pieces / task.conv.groups; }
  DPCGAN_HOST_DEVICE int64_t group_bias_pieces() const { return (pieces - weight_pieces) / task.conv.groups; }
};

constexpr int64_t kRowsPiece = 16 * kTileThreads;  // values of a stored gradient

struct TaskTable {
  TaskEntry entry[kTableTasks];
  int tasks;
  int64_t pieces;  // of all tasks
};
static_assert(sizeof(TaskTable) <= kMaxArgumentBytes);

// What a piece adds to its unit: in the thread's share.
struct Squares {
  double sum = 0;
  double sizes = 0;  // squares of the sums of absolute values, or above
};

union NormShared {
  ContractShared<LargeTile, double> large;
  ContractShared<SmallTile, double> small;
  ContractShared<LargeTile, float> large_float;
  ContractShared<SmallTile, float> small_float;
  GramShared gram;
};

template <class Tile, class Acc>
__device__ auto& shared_of(NormShared& shared) {
  constexpr bool kLarge = std::is_same_v<Tile, LargeTile>;
  if constexpr (std::is_same_v<Acc, float>) {
    if constexpr (kLarge)
      return shared.large_float;
    else
      return shared.small_float;
  } else {
    if constexpr (kLarge)
      return shared.large;
    else
      return shared.small;
  }
}

template <class T>
__device__ void rows_squares(const TaskEntry& entry, const RowSpan& rows, int64_t piece, Squares* found) {
  const T* grad = static_cast<const T*>(entry.task.data.x);
  const int64_t first = piece * kRowsPiece, end = smaller(first + kRowsPiece, entry.task.numel);
  const int64_t only = rows.count == 1 ? rows.row(0) : kNoRow;
  if (only != kNoRow) {  // sums of one term: their sizes are their squares
    const T* row = grad + only * entry.task.numel;
    double squares = 0;
#pragma unroll 8  // loads of several turns are under way at a time
    for (int64_t i = first + threadIdx.x; i < end; i += kTileThreads) {
      const double value = row[i];
      squares += value * value;
    }
    found->sum += squares;
    found->sizes += squares;
    return;
  }
  for (int64_t i = first + threadIdx.x; i < end; i += kTileThreads) {
    double sum = 0, sizes = 0;
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t row = rows.row(r);
      const double value = row == kNoRow ? kNan : static_cast<double>(grad[row * entry.task.numel + i]);
      sum += value;
      sizes += fabs(value);
    }
    found->sum += sum * sum;
    found->sizes += sizes * sizes;
  }
}

// Not inlined, here and below: together the forms and types would take so many registers that two blocks fill a
// multiprocessor.
template <class T, class Tile, class Acc>
__device__ __noinline__ double tile_squares(const TaskEntry& entry, const RowOwners& units, const RowSpan& rows,
                                            int64_t group, int64_t tile, double* bias_sizes, NormShared& memory) {
  const ContractProblem<T> problem{entry.task.conv, typed<T>(entry.task.data), units, nullptr, 1};
  ContractShared<Tile, Acc>& shared = shared_of<Tile, Acc>(memory);
  if (bias_sizes != nullptr)
    return bias_tile<T, Tile, Acc, Epilogue::kSquare, double>(problem, rows, group, tile, nullptr, shared, bias_sizes);
  const int64_t tap_tiles = TileCounts<Tile>(entry.task.conv).tap_tiles;
  return weight_tile<T, Tile, Acc, Epilogue::kSquare, double>(problem, rows, group, tile, tap_tiles, nullptr, shared);
}

// The thread's share of a tile of the weights, or of the bias where bias_sizes is given.
template <class T, class Acc>
__device__ double squares_of_tile(const TaskEntry& entry, const RowOwners& units, const RowSpan& rows, int64_t group,
                                  int64_t tile, double* bias_sizes, NormShared& shared) {
  return entry.large_tile ? tile_squares<T, LargeTile, Acc>(entry, units, rows, group, tile, bias_sizes, shared)
                          : tile_squares<T, SmallTile, Acc>(entry, units, rows, group, tile, bias_sizes, shared);
}

DPCGAN_HOST_DEVICE int64_t weight_tiles(const ConvGeometry& conv, bool large) {
  return large ? TileCounts<LargeTile>(conv).weight : TileCounts<SmallTile>(conv).weight;
}

// The Gram norm of one channel group with its bound, or the bound alone; in every thread.
template <class T>
__device__ __noinline__ NormAndBound gram_norm(const TaskEntry& entry, const RowSpan& rows, int64_t group,
                                               bool bound_only, NormShared& shared) {
  const ConvGeometry& conv = entry.task.conv;
  const GramProblem<T> problem{conv, PolyphaseGeometry(conv, kMaxFolds), typed<T>(entry.task.data), entry.column_lanes};
  NormAndBound sum;
  for (int64_t lag = 0; lag < (bound_only ? smaller(1, conv.g_length) : conv.g_length); ++lag) {
    const NormAndBound one = gram_lag(problem, rows, group, lag, bound_only, shared.gram);
    sum.sq_norm += one.sq_norm;
    sum.bound += one.bound;
  }
  return {block_sum<kTileThreads>(sum.sq_norm), block_sum<kTileThreads>(sum.bound)};
}

// One channel group whole, by its Gram norm, or by its gradient where that is not to be trusted.
template <class T>
__device__ void gram_squares(const TaskEntry& entry, const RowOwners& units, const RowSpan& rows, int64_t group,
                             NormShared& shared, Squares* found) {
  const ConvGeometry& conv = entry.task.conv;
  const NormAndBound norm = gram_norm<T>(entry, rows, group, false, shared);
  const bool again = norm.cancels(gram_cancellation(conv.gram_depth(rows.count)));
  if (threadIdx.x == 0) {
    found->sum += again ? 0.0 : norm.sq_norm;
    found->sizes += norm.bound * norm.bound;
  }
  for (int64_t tile = 0; again && tile < weight_tiles(conv, entry.large_tile); ++tile)
    found->sum += squares_of_tile<T, double>(entry, units, rows, group, tile, nullptr, shared);
}

template <class T>
__device__ void add_bound(const TaskEntry& entry, const RowSpan& rows, int64_t group, NormShared& shared,
                          Squares* found) {
  const NormAndBound norm = gram_norm<T>(entry, rows, group, true, shared);
  if (threadIdx.x == 0) found->sizes += norm.bound * norm.bound;
  __syncthreads();  // the forms share their memory
}

// A tile of the gradient itself; the bound of its channel group is taken with the first of them.
template <class T>
__device__ void direct_squares(const TaskEntry& entry, const RowOwners& units, const RowSpan& rows, int64_t group,
                               int64_t tile, NormShared& shared, Squares* found) {
  if (tile == 0) add_bound<T>(entry, rows, group, shared, found);
  found->sum += squares_of_tile<T, double>(entry, units, rows, group, tile, nullptr, shared);
}

// The thread's share of one piece. All threads must call it.
template <class T>
__device__ __noinline__ void measure(const TaskEntry& entry, const RowOwners& units, const RowSpan& rows, int64_t piece,
                                     NormShared& shared, Squares* found) {
  if (entry.task.form == NormForm::kRows) return rows_squares<T>(entry, rows, piece, found);
  __syncthreads();  // the forms share their memory
  if (piece >= entry.weight_pieces) {
    const int64_t index = piece - entry.weight_pieces, pieces = entry.group_bias_pieces();
    found->sum += squares_of_tile<T, double>(entry, units, rows, index / pieces, index % pieces, &found->sizes, shared);
    return;
  }
  const int64_t pieces = entry.group_weight_pieces(), group = piece / pieces, tile = piece % pieces;
  if (entry.task.form == NormForm::kGram) return gram_squares<T>(entry, units, rows, group, shared, found);
  if (entry.task.form == NormForm::kDirect) return direct_squares<T>(entry, units, rows, group, tile, shared, found);
  // One row's own rounding is in what is measured. Rows add in double, where their sizes count as those of all sums.
  if (rows.count > 1 && tile == 0) add_bound<T>(entry, rows, group, shared, found);
  found->sum += squares_of_tile<T, FormedOf<T>>(entry, units, rows, group, tile, nullptr, shared);
}

struct NormResult {
  double max_grad_norm;
  const int64_t* valid;
  int* arrived;
  double* sq_norm;
  double* factor;
  int64_t shares;     // blocks of one unit
  bool first_launch;  // otherwise the norms of earlier launches are there already
};

// partial: (units, shares), of which nothing is read where there is one share
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    sq_norm_kernel(const __grid_constant__ TaskTable table, const __grid_constant__ RowOwners units,
                   const __grid_constant__ NormResult result, Squares* partial) {
  __shared__ NormShared shared;
  __shared__ int last;
  for (int64_t item = blockIdx.x; item < units.owners * result.shares; item += gridDim.x) {
    const int64_t unit = item / result.shares, share = item % result.shares;
    if (result.valid != nullptr && unit >= *result.valid) {
      if (share == 0 && threadIdx.x == 0) result.sq_norm[unit] = result.factor[unit] = 0;
      continue;
    }
    const RowSpan rows = units.span(unit);
    Squares found;
    int t = 0;
    for (int64_t piece = share; piece < table.pieces; piece += result.shares) {
      while (piece >= table.entry[t].first_piece + table.entry[t].pieces) ++t;
      const TaskEntry& entry = table.entry[t];
      with_element(entry.task.type, [&](auto element) {
        measure<decltype(element)>(entry, units, rows, piece - entry.first_piece, shared, &found);
      });
    }
    found = {block_sum<kTileThreads>(found.sum), block_sum<kTileThreads>(found.sizes)};
    if (result.shares > 1) {
      if (threadIdx.x == 0) {
        partial[item] = found;
        __threadfence();  // what the block found is seen by whoever sees it arrive
        last = atomicAdd(&result.arrived[unit], 1) == result.shares - 1;
      }
      __syncthreads();
      if (last == 0) continue;
      __threadfence();
    }
    if (threadIdx.x != 0) continue;
    if (result.shares > 1) {
      found = {};
      for (int64_t i = 0; i < result.shares; ++i) {
        found.sum += partial[unit * result.shares + i].sum;
        found.sizes += partial[unit * result.shares + i].sizes;
      }
      result.arrived[unit] = 0;
    }
    double sum = at_least_share(found.sum, found.sizes);
    if (!result.first_launch) sum += result.sq_norm[unit];
    result.sq_norm[unit] = sum;
    result.factor[unit] = clip_factor(sum, result.max_grad_norm);
  }
}

TaskEntry plan(const NormTask& task, int64_t first_piece) {
  TaskEntry entry{task, first_piece, 0, 0, 1, false};
  if (task.form == NormForm::kRows) {
    entry.pieces = entry.weight_pieces = ceil_div<int64_t>(task.numel, kRowsPiece);
    return entry;
  }
  const ConvGeometry& conv = task.conv;
  entry.column_lanes = gram_column_lanes(conv.g_length);
  entry.large_tile = prefers_large_tile(conv);
  const int64_t tiles = weight_tiles(conv, entry.large_tile);
  const int64_t bias = ceil_div<int64_t>(conv.bias_numel() / conv.groups, kBiasChannels);
  entry.weight_pieces = conv.groups * (task.form == NormForm::kGram ? 1 : tiles);
  entry.pieces = entry.weight_pieces + conv.groups * bias;
  return entry;
}

TaskTable plan_launch(const NormTask* tasks, int64_t count) {
  TaskTable table = {};
  for (int64_t i = 0; i < count; ++i) {
    const TaskEntry entry = plan(tasks[i], table.pieces);
    if (entry.pieces == 0) continue;
    table.entry[table.tasks++] = entry;
    table.pieces += entry.pieces;
  }
  return table;
}

int64_t shares_of(const TaskTable& table, int64_t units) {
  return larger(1, smaller(table.pieces, kTargetBlocks / larger(1, units)));
}

}  // namespace

int64_t sq_norm_workspace(const NormTask* tasks, int64_t count, int64_t units) {
  int64_t shares = 1;
  for (int64_t begin = 0; begin < count; begin += kTableTasks)
    shares = larger(shares, shares_of(plan_launch(tasks + begin, smaller(kTableTasks, count - begin)), units));
  return units * shares * static_cast<int64_t>(sizeof(Squares) / sizeof(double));
}

void launch_sq_norm(const NormTask* tasks, int64_t count, int64_t rows, const UnitIndex& index, double max_grad_norm,
                    const int64_t* valid, int* arrived, double* workspace, double* sq_norm, double* factor,
                    cudaStream_t stream) {
  const RowOwners units = unit_rows(rows, index);
  for (int64_t begin = 0; begin < count; begin += kTableTasks) {
    const TaskTable table = plan_launch(tasks + begin, smaller(kTableTasks, count - begin));
    const int64_t shares = shares_of(table, index.units);
    const NormResult result{max_grad_norm, valid, arrived, sq_norm, factor, shares, begin == 0};
    launch(sq_norm_kernel, index.units * shares, kTileThreads, stream, table, units, result,
           reinterpret_cast<Squares*>(workspace));
  }
}

}  // namespace dpcgan::cuda
