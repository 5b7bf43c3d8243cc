// Squared norms of every unit's gradient over all layers of a step, and the clip factors, in one launch.
//
// `direct` forms the gradient of a unit tile by tile, squares and drops it (conv_contract.cuh). `gram` never forms it
// (conv_gram.cuh). `rows` squares per-sample gradients that lie in memory. A block takes one part of one unit's share
// of one layer and channel group, and leaves what it found in scratch memory; the block that is the last of its unit
// adds up everything in a fixed order, whichever block that is, so that the result is bitwise reproducible.
//
// A Gram norm far below its Cauchy-Schwarz bound (common/cancellation.h) is not trusted; the last block forms that
// gradient by the direct way again.
#include "../common/clip.h"
#include "conv_contract.cuh"
#include "conv_gram.cuh"

namespace dpcgan::cuda {
namespace {

constexpr int kTableTasks = 20;  // of one launch: the table travels as a kernel argument, of which there are 4 KB
static_assert(kTileThreads == kGramThreads, "one launch holds both forms");

struct TaskEntry {
  NormTask task;
  int64_t first_item;
  int64_t parts;  // of one unit and channel group
  unsigned column_lanes;
  bool large_tile;

  DPCGAN_HOST_DEVICE int64_t groups() const { return task.form == NormForm::kRows ? 1 : task.conv.groups; }
};

struct TaskTable {
  TaskEntry entry[kTableTasks];
  int tasks;
  int64_t items;           // of all units
  int64_t items_per_unit;  // of all tasks
};
static_assert(sizeof(TaskTable) <= 4096 - 128, "with the other arguments it must fit into 4 KB");

// What one block leaves: the bias is apart, since only the weights may be found to cancel.
struct PartialNorm {
  double weights;
  double bias;
  double bound;     // of the weights
  double sq_sizes;  // of the bias, or of rows in memory: squares of the sums of absolute values
};

union NormShared {
  ContractShared<LargeTile> large;
  ContractShared<SmallTile> small;
  GramShared gram;
};

template <class T>
__device__ ConvOperands<T> typed(const ConvOperands<void>& data) {
  return {static_cast<const T*>(data.x), data.x_strides, static_cast<const T*>(data.g), data.g_strides};
}

template <class T>
__device__ PartialNorm rows_squares(const TaskEntry& entry, const RowSpan& rows, int64_t part) {
  const T* grad = static_cast<const T*>(entry.task.data.x);
  PartialNorm result{0, 0, 0, 0};
  for (int64_t i = part * kTileThreads + threadIdx.x; i < entry.task.numel; i += entry.parts * kTileThreads) {
    double sum = 0, sizes = 0;
    for (int64_t r = 0; r < rows.count; ++r) {
      const int64_t row = rows.row(r);
      const double value = row == kNoRow ? kNan : static_cast<double>(grad[row * entry.task.numel + i]);
      sum += value;
      sizes += fabs(value);
    }
    result.weights += sum * sum;
    result.sq_sizes += sizes * sizes;
  }
  return result;
}

// The thread's share of the squares of every `parts`th tile, of the weights, or of the bias with bias_sizes. Not
// inlined, here and below: together the forms and types would take so many registers that two blocks fill a
// multiprocessor.
template <class T, class Tile>
__device__ __noinline__ double tile_squares(const TaskEntry& entry, const RowOwners& units, const RowSpan& rows,
                                            int64_t group, int64_t part, int64_t parts, double* bias_sizes,
                                            ContractShared<Tile>& shared) {
  const ContractProblem<T> problem{entry.task.conv, typed<T>(entry.task.data), units, nullptr, parts};
  const TileCounts<Tile> tiles(entry.task.conv);
  double squares = 0;
  if (bias_sizes != nullptr) {
    for (int64_t tile = tiles.weight + part; tile < tiles.total; tile += parts)
      squares += bias_tile<T, Tile, Epilogue::kSquare, double>(problem, rows, group, tile - tiles.weight, nullptr,
                                                               shared, bias_sizes);
  } else {
    for (int64_t tile = part; tile < tiles.weight; tile += parts)
      squares +=
          weight_tile<T, Tile, Epilogue::kSquare, double>(problem, rows, group, tile, tiles.tap_tiles, nullptr, shared);
  }
  return squares;
}

template <class T>
__device__ double contract_squares(const TaskEntry& entry, const RowOwners& units, const RowSpan& rows, int64_t group,
                                   int64_t part, int64_t parts, double* bias_sizes, NormShared& shared) {
  return entry.large_tile ? tile_squares<T>(entry, units, rows, group, part, parts, bias_sizes, shared.large)
                          : tile_squares<T>(entry, units, rows, group, part, parts, bias_sizes, shared.small);
}

// The thread's share of one item.
template <class T>
__device__ __noinline__ PartialNorm measure(const TaskEntry& entry, const RowOwners& units, const RowSpan& rows,
                                            int64_t group, int64_t part, NormShared& shared) {
  if (entry.task.form == NormForm::kRows) return rows_squares<T>(entry, rows, part);
  PartialNorm result{0, 0, 0, 0};
  const ConvGeometry& conv = entry.task.conv;
  const bool gram = entry.task.form == NormForm::kGram;
  const GramProblem<T> problem{conv, PolyphaseGeometry(conv, kMaxFolds), typed<T>(entry.task.data), entry.column_lanes};
  const int64_t lags = gram ? conv.g_length : smaller(1, conv.g_length);  // the bound needs lag 0 alone
  for (int64_t lag = part; lag < lags; lag += entry.parts) {
    const NormAndBound one = gram_lag(problem, rows, group, lag, !gram, shared.gram);
    if (gram) result.weights += one.sq_norm;
    result.bound += one.bound;
  }
  __syncthreads();  // the forms share their memory
  if (!gram) result.weights = contract_squares<T>(entry, units, rows, group, part, entry.parts, nullptr, shared);
  result.bias = contract_squares<T>(entry, units, rows, group, part, entry.parts, &result.sq_sizes, shared);
  __syncthreads();
  return result;
}

// Sums over the parts of one unit's share of one task and group, in their order. partial: of the whole launch
__device__ PartialNorm gather(const TaskEntry& entry, const PartialNorm* partial, int64_t unit, int64_t group) {
  const PartialNorm* first = partial + entry.first_item + (unit * entry.groups() + group) * entry.parts;
  PartialNorm sum{0, 0, 0, 0};
  for (int64_t part = 0; part < entry.parts; ++part) {
    sum.weights += first[part].weights;
    sum.bias += first[part].bias;
    sum.bound += first[part].bound;
    sum.sq_sizes += first[part].sq_sizes;
  }
  return sum;
}

__device__ bool untrusted(const TaskEntry& entry, const PartialNorm& sum, int64_t rows) {
  return entry.task.form == NormForm::kGram &&
         NormAndBound{sum.weights, sum.bound}.cancels(gram_cancellation(entry.task.conv.gram_depth(rows)));
}

// Calls body with a value of the type that the task's operands have.
template <class Body>
__device__ void with_element(const TaskEntry& entry, const Body& body) {
  switch (entry.task.type) {
    case ElementType::kFloat:
      return body(float{});
    case ElementType::kDouble:
      return body(double{});
    case ElementType::kBFloat16:
      return body(BFloat16{});
  }
}

__device__ double direct_again(const TaskEntry& entry, const RowOwners& units, const RowSpan& rows, int64_t group,
                               NormShared& shared) {
  double squares = 0;
  with_element(entry, [&](auto element) {
    squares = contract_squares<decltype(element)>(entry, units, rows, group, 0, 1, nullptr, shared);
  });
  return squares;
}

// The squared norm of one unit over all tasks, in every thread. All threads must call it.
__device__ __noinline__ double unit_sq_norm(const TaskTable& table, const PartialNorm* partial, const RowOwners& units,
                                            int64_t unit, NormShared& shared) {
  const RowSpan rows = units.span(unit);
  double sum = 0, sq_sizes = 0;
  int64_t turn = threadIdx.x;  // the pairs of task and group are dealt to the threads
  bool again = false;
  for (int t = 0; t < table.tasks; ++t) {
    const TaskEntry& entry = table.entry[t];
    for (; turn < entry.groups(); turn += kTileThreads) {
      const PartialNorm part = gather(entry, partial, unit, turn);
      const bool redo = untrusted(entry, part, rows.count);
      again = again || redo;
      sum += (redo ? 0.0 : part.weights) + part.bias;
      sq_sizes += part.bound * part.bound + part.sq_sizes;
    }
    turn -= entry.groups();
  }
  if (__syncthreads_or(again)) {
    for (int t = 0; t < table.tasks; ++t)
      for (int64_t group = 0; group < table.entry[t].groups(); ++group)
        if (untrusted(table.entry[t], gather(table.entry[t], partial, unit, group), rows.count))
          sum += direct_again(table.entry[t], units, rows, group, shared);
  }
  sum = block_sum<kTileThreads>(sum);
  return at_least_share(sum, block_sum<kTileThreads>(sq_sizes));
}

struct NormResult {
  double max_grad_norm;
  const int64_t* valid;
  int* arrived;
  double* sq_norm;
  double* factor;
  bool first_launch;  // otherwise the norms of earlier launches are there already
};

// partial: (items,)
__global__ void __launch_bounds__(kTileThreads)
    sq_norm_kernel(const __grid_constant__ TaskTable table, const __grid_constant__ RowOwners units,
                   const __grid_constant__ NormResult result, PartialNorm* partial) {
  __shared__ NormShared shared;
  __shared__ int last;
  int t = 0;
  for (int64_t item = blockIdx.x; item < table.items; item += gridDim.x) {
    while (t + 1 < table.tasks && item >= table.entry[t + 1].first_item) ++t;
    const TaskEntry& entry = table.entry[t];
    const int64_t owner = (item - entry.first_item) / entry.parts, part = (item - entry.first_item) % entry.parts;
    const int64_t unit = owner / entry.groups(), group = owner % entry.groups();
    if (result.valid != nullptr && unit >= *result.valid) {
      if (t == 0 && group == 0 && part == 0 && threadIdx.x == 0) result.sq_norm[unit] = result.factor[unit] = 0;
      continue;
    }
    const RowSpan rows = units.span(unit);
    PartialNorm found;
    with_element(entry,
                 [&](auto element) { found = measure<decltype(element)>(entry, units, rows, group, part, shared); });
    found.weights = block_sum<kTileThreads>(found.weights);
    found.bias = block_sum<kTileThreads>(found.bias);
    found.bound = block_sum<kTileThreads>(found.bound);
    found.sq_sizes = block_sum<kTileThreads>(found.sq_sizes);
    if (threadIdx.x == 0) {
      partial[item] = found;
      __threadfence();  // what the block found is seen by whoever sees it arrive
      last = atomicAdd(&result.arrived[unit], 1) == table.items_per_unit - 1;
    }
    __syncthreads();
    if (last == 0) continue;
    __threadfence();
    double sum = unit_sq_norm(table, partial, units, unit, shared);
    if (threadIdx.x != 0) continue;
    if (!result.first_launch) sum += result.sq_norm[unit];
    result.sq_norm[unit] = sum;
    result.factor[unit] = clip_factor(sum, result.max_grad_norm);
    result.arrived[unit] = 0;
  }
}

// Parts that one unit's share of one channel group is worth: one where there are many units, and no more than there is
// to do.
TaskEntry plan(const NormTask& task, int64_t units, int64_t first_item) {
  TaskEntry entry{task, first_item, 1, 1, false};
  int64_t most = ceil_div<int64_t>(task.numel, kTileThreads);
  if (task.form != NormForm::kRows) {
    entry.column_lanes = gram_column_lanes(task.conv.g_length);
    entry.large_tile = prefers_large_tile(task.conv);
    const int64_t tiles =
        entry.large_tile ? TileCounts<LargeTile>(task.conv).total : TileCounts<SmallTile>(task.conv).total;
    most = task.form == NormForm::kGram ? task.conv.g_length : tiles;
  }
  entry.parts = larger(1, smaller(most, kTargetBlocks / larger(1, units * entry.groups())));
  return entry;
}

}  // namespace

int64_t sq_norm_workspace(const NormTask* tasks, int64_t count, int64_t units) {
  int64_t items = 0;
  for (int64_t i = 0; i < count; ++i) {
    const TaskEntry entry = plan(tasks[i], units, 0);
    items += units * entry.groups() * entry.parts;
  }
  return items * static_cast<int64_t>(sizeof(PartialNorm) / sizeof(double));
}

void launch_sq_norm(const NormTask* tasks, int64_t count, int64_t rows, const UnitIndex& index, double max_grad_norm,
                    const int64_t* valid, int* arrived, double* workspace, double* sq_norm, double* factor,
                    cudaStream_t stream) {
  const RowOwners units = unit_rows(rows, index);
  PartialNorm* partial = reinterpret_cast<PartialNorm*>(workspace);
  for (int64_t begin = 0; begin < count; begin += kTableTasks) {
    TaskTable table = {};
    table.tasks = static_cast<int>(smaller(kTableTasks, count - begin));
    for (int t = 0; t < table.tasks; ++t) {
      table.entry[t] = plan(tasks[begin + t], index.units, table.items);
      const int64_t per_unit = table.entry[t].groups() * table.entry[t].parts;
      table.items += index.units * per_unit;
      table.items_per_unit += per_unit;
    }
    const NormResult result{max_grad_norm, valid, arrived, sq_norm, factor, begin == 0};
    launch(sq_norm_kernel, table.items, kTileThreads, stream, table, units, result, partial);
    partial += table.items;
  }
}

}  // namespace dpcgan::cuda
