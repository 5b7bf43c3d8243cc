// The clipped sum of a step over all layers: each is cut into slices of rows, whose sums are added up in their order by
// a second launch. A layer whose norm was taken of the formed gradient (sq_norm.cu) is formed again, bit by bit the
// same; others are summed in double.
#include "conv_contract.cuh"

namespace dpcgan::cuda {
namespace {

constexpr int64_t kItems = 4096;  // some for each block that a large GPU runs at a time

struct SumEntry {
  SumTask sum;
  int64_t first_item;
  int64_t first_block;  // of the launch that adds the slices
  int64_t parts;        // items of one slice: tiles of all channel groups, or blocks of columns
  int64_t slices;
  int64_t rows_per_slice;
  double* partial;  // (slices, weights + biases)
  bool large_tile;

  DPCGAN_HOST_DEVICE bool rows_in_memory() const { return sum.task.form == NormForm::kRows; }
  DPCGAN_HOST_DEVICE int64_t weights() const {
    return rows_in_memory() ? sum.task.numel : sum.task.conv.weight_numel();
  }
  DPCGAN_HOST_DEVICE int64_t biases() const { return rows_in_memory() ? 0 : sum.task.conv.bias_numel(); }
  DPCGAN_HOST_DEVICE int64_t numel() const { return weights() + biases(); }
};

struct SumTable {
  SumEntry entry[kTableTasks];
  int tasks;
  int64_t items;
  int64_t blocks;  // that add the slices
};
static_assert(sizeof(SumTable) <= kMaxArgumentBytes);

union SumShared {
  ContractShared<LargeTile, double> large;
  ContractShared<SmallTile, double> small;
  ContractShared<LargeTile, float> large_float;
  ContractShared<SmallTile, float> small_float;
};

template <class T>
__device__ void sum_columns(const SumEntry& entry, const RowSpan& rows, const double* factor, int64_t part,
                            double* out) {
  const T* grad = static_cast<const T*>(entry.sum.task.data.x);
  const int64_t numel = entry.sum.task.numel, i = part * kTileThreads + threadIdx.x;
  if (i >= numel) return;
  constexpr int kTogether = 8;  // rows whose loads are under way at a time
  double sum = 0;
  for (int64_t first = 0; first < rows.count; first += kTogether) {
    double scale[kTogether];
    T value[kTogether];
#pragma unroll
    for (int r = 0; r < kTogether; ++r) scale[r] = first + r < rows.count ? factor[rows.begin + first + r] : 0.0;
#pragma unroll
    for (int r = 0; r < kTogether; ++r)  // 0 times NaN is NaN
      value[r] = scale[r] != 0 ? grad[(rows.begin + first + r) * numel + i] : T(0);
#pragma unroll
    for (int r = 0; r < kTogether; ++r) sum += scale[r] * static_cast<double>(value[r]);
  }
  out[i] = sum;
}

template <class T, class Tile, class Acc>
__device__ __noinline__ void sum_tile(const SumEntry& entry, const RowSpan& rows, const double* factor, int64_t part,
                                      double* out, ContractShared<Tile, Acc>& shared) {
  const ConvGeometry& conv = entry.sum.task.conv;
  const ContractProblem<T> problem{conv, typed<T>(entry.sum.task.data), {}, factor, 1};
  const TileCounts<Tile> tiles(conv);
  const int64_t group = part / tiles.total, tile = part % tiles.total;
  if (tile < tiles.weight) {
    weight_tile<T, Tile, Acc, Epilogue::kStore>(problem, rows, group, tile, tiles.tap_tiles, out, shared);
  } else {
    bias_tile<T, Tile, Acc, Epilogue::kStore>(problem, rows, group, tile - tiles.weight, out + entry.weights(), shared);
  }
}

template <class T>
__device__ __noinline__ void sum_part(const SumEntry& entry, const RowSpan& rows, const double* factor, int64_t part,
                                      double* out, SumShared& shared) {
  if (entry.rows_in_memory()) return sum_columns<T>(entry, rows, factor, part, out);
  using Formed = FormedOf<T>;  // as in sq_norm.cu, to the last bit
  if constexpr (!std::is_same_v<Formed, double>) {
    if (entry.sum.task.form == NormForm::kFormed) {
      if (entry.large_tile) return sum_tile<T, LargeTile, Formed>(entry, rows, factor, part, out, shared.large_float);
      return sum_tile<T, SmallTile, Formed>(entry, rows, factor, part, out, shared.small_float);
    }
  }
  if (entry.large_tile) {
    sum_tile<T, LargeTile, double>(entry, rows, factor, part, out, shared.large);
  } else {
    sum_tile<T, SmallTile, double>(entry, rows, factor, part, out, shared.small);
  }
}

__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    step_sum_kernel(const __grid_constant__ SumTable table, const double* factor, int64_t batch_rows) {
  __shared__ SumShared shared;
  int t = 0;
  for (int64_t item = blockIdx.x; item < table.items; item += gridDim.x) {
    while (t + 1 < table.tasks && item >= table.entry[t + 1].first_item) ++t;
    const SumEntry& entry = table.entry[t];
    const int64_t slice = (item - entry.first_item) / entry.parts, part = (item - entry.first_item) % entry.parts;
    const int64_t begin = slice * entry.rows_per_slice;
    const RowSpan rows{nullptr, begin, smaller(entry.rows_per_slice, batch_rows - begin), batch_rows};
    __syncthreads();  // the forms share their memory
    with_element(entry.sum.task.type, [&](auto element) {
      sum_part<decltype(element)>(entry, rows, factor, part, entry.partial + slice * entry.numel(), shared);
    });
  }
}

__global__ void __launch_bounds__(kTileThreads) add_slices_kernel(const __grid_constant__ SumTable table) {
  int t = 0;
  for (int64_t block = blockIdx.x; block < table.blocks; block += gridDim.x) {
    while (t + 1 < table.tasks && block >= table.entry[t + 1].first_block) ++t;
    const SumEntry& entry = table.entry[t];
    const int64_t i = (block - entry.first_block) * kTileThreads + threadIdx.x;
    if (i >= entry.numel()) continue;
    double sum = 0;
    for (int64_t slice = 0; slice < entry.slices; ++slice) sum += entry.partial[slice * entry.numel() + i];
    (i < entry.weights() ? entry.sum.weight[i] : entry.sum.bias[i - entry.weights()]) += sum;
  }
}

int64_t tiles_of(const NormTask& task, bool large) {
  if (task.form == NormForm::kRows) return ceil_div<int64_t>(task.numel, kTileThreads);
  const int64_t tiles = large ? TileCounts<LargeTile>(task.conv).total : TileCounts<SmallTile>(task.conv).total;
  return task.conv.groups * tiles;
}

// Positions of one row, which are what an item's time grows with; a stored row counts as one.
int64_t positions_of(const NormTask& task) { return task.form == NormForm::kRows ? 1 : larger(1, task.conv.g_length); }

// Cuts every task so that all items take about the same time, kItems of them in all where there are enough rows.
SumTable plan_launch(const SumTask* tasks, int64_t count, int64_t rows, double* workspace) {
  SumTable table = {};
  int64_t work = 0;
  for (int64_t i = 0; i < count; ++i)
    work += rows * positions_of(tasks[i].task) * tiles_of(tasks[i].task, prefers_large_tile(tasks[i].task));
  const int64_t wanted = larger(kMinSlicePositions, ceil_div(work, kItems));  // positions of one item
  for (int64_t i = 0; i < count; ++i) {
    SumEntry entry{tasks[i], table.items, table.blocks, 0, 1, rows, workspace, prefers_large_tile(tasks[i].task)};
    if (entry.numel() == 0) continue;
    entry.parts = tiles_of(tasks[i].task, entry.large_tile);
    entry.rows_per_slice = larger(1, wanted / positions_of(tasks[i].task));
    entry.slices = larger(1, ceil_div(rows, entry.rows_per_slice));
    table.items += entry.slices * entry.parts;
    table.blocks += ceil_div<int64_t>(entry.numel(), kTileThreads);
    workspace += entry.slices * entry.numel();
    table.entry[table.tasks++] = entry;
  }
  return table;
}

}  // namespace

int64_t step_sum_workspace(const SumTask* tasks, int64_t count, int64_t rows) {
  int64_t most = 0;
  for (int64_t begin = 0; begin < count; begin += kTableTasks) {
    const SumTable table = plan_launch(tasks + begin, smaller(kTableTasks, count - begin), rows, nullptr);
    int64_t numel = 0;
    for (int t = 0; t < table.tasks; ++t) numel += table.entry[t].slices * table.entry[t].numel();
    most = larger(most, numel);
  }
  return most;
}

void launch_step_sum(const SumTask* tasks, int64_t count, int64_t rows, const double* factor, double* workspace,
                     cudaStream_t stream) {
  for (int64_t begin = 0; begin < count; begin += kTableTasks) {
    const SumTable table = plan_launch(tasks + begin, smaller(kTableTasks, count - begin), rows, workspace);
    launch(step_sum_kernel, table.items, kTileThreads, stream, table, factor, rows);
    launch(add_slices_kernel, table.blocks, kTileThreads, stream, table);
  }
}

}  // namespace dpcgan::cuda
