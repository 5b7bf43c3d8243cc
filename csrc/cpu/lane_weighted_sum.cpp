#include "lane_weighted_sum.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <atomic>
#include <vector>

#include "lane_correlate.h"
#include "parallel.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kKeptChunk = 128;     // kept gradients of one task
constexpr int kRows = 8, kColumns = 3;  // of a tile of the weight: broadcast scalars by vectors
// A row that must be shrunk this far is dropped: single precision could not hold the factor, or what it scales.
constexpr double kLeastFactor = 0x1p-100;
constexpr int kBandRows = 64;  // of the tiles of one task

// A product of the batch: W[row, column] = sum over rows n and positions t of a scalar and a vector side. Both are
// copied into the order in which the product reads them; the vector side, whose channels lie side by side, is scaled by
// the clip factors.
struct WeightProduct {
  const FusedLayer* layer;
  bool x_is_vector;  // else g is
  int64_t conv_group;
  int64_t channels;       // of the vector side
  int64_t padded;         // to whole vectors
  int64_t length;         // positions of the vector side, margins included
  int64_t offset;         // of its copy
  int64_t scalar_offset;  // of the copy of the scalar side
  int64_t row_count;      // scalars: outputs, or taps of inputs
  int64_t column_count;   // vectors: blocks of channels, times taps where x is the vector side

  const ConvGeometry& conv() const { return layer->conv; }
  const LaneTensor& x() const { return layer->kind == LayerKind::kConv ? layer->in : layer->grad; }
  const LaneTensor& g() const { return layer->kind == LayerKind::kConv ? layer->grad : layer->in; }
  const LaneTensor& vector_side() const { return x_is_vector ? x() : g(); }
  int64_t first_channel() const { return conv_group * channels; }
  int64_t blocks(int64_t lanes) const { return padded / lanes; }
  // The copy of a group of rows: [block of channels][row][position][channel of the block].
  int64_t row_floats(int64_t lanes) const { return length * lanes; }
  int64_t group_floats(int64_t lanes) const { return padded * row_floats(lanes); }

  // The copy of the scalar side: [block of kRows][group][row of the batch][position][kRows].
  int64_t scalar_group_floats(int64_t lanes) const { return conv().g_length * lanes * kRows; }
  int64_t scalar_floats(int64_t lanes, int64_t groups) const {
    return ceil_div<int64_t>(row_count, kRows) * groups * scalar_group_floats(lanes);
  }
  // Offset of a scalar row's vector at a position, in a group's block of the workspace.
  int64_t scalar_at(int64_t row, int64_t t, int64_t lanes) const {
    if (x_is_vector) return g().at(conv_group * conv().g_group_channels() + row, t) * lanes;
    const int64_t channel = conv_group * conv().x_group_channels() + row / conv().kernel_size;
    return x().at(channel, conv().x_position(t, row % conv().kernel_size)) * lanes;
  }
  // Offset of a column's vector at position 0 for row 0, in a group's copy.
  int64_t vector_at(int64_t column, int64_t lanes) const {
    const int64_t block = column % blocks(lanes) * lanes * row_floats(lanes);
    if (!x_is_vector) return block;
    const int64_t tap = column / blocks(lanes);
    return (x().left + conv().dilation * tap - conv().padding) * lanes + block;
  }
  int64_t vector_step(int64_t lanes) const { return (x_is_vector ? conv().stride : 1) * lanes; }
  // Adds the sums of a row and a column, one a lane, to the weight.
  void add_to_weight(int64_t row, int64_t column, int64_t lanes, const double* sums, double* weight) const {
    const int64_t kernel = conv().kernel_size, inputs = conv().x_group_channels();
    const int64_t channel = column % blocks(lanes) * lanes;
    const int64_t o = x_is_vector ? row : channel, c = x_is_vector ? channel : row / kernel;
    const int64_t j = x_is_vector ? column / blocks(lanes) : row % kernel;
    double* to = weight + ((conv_group * conv().g_group_channels() + o) * inputs + c) * kernel + j;
    const int64_t step = x_is_vector ? kernel : inputs * kernel;
    for (int64_t i = 0; i < std::min(lanes, channels - channel); ++i) to[i * step] += sums[i];
  }
};

std::vector<WeightProduct> weight_products(const FusedProgram& program, int64_t& copy_floats) {
  std::vector<WeightProduct> products;
  const int64_t lanes = program.lanes;
  copy_floats = 0;
  for (const FusedLayer& layer : program.layers) {
    if (!layer.is_conv() || layer.mode != NormMode::kGram) continue;
    const ConvGeometry& conv = layer.conv;
    const int64_t inputs = conv.x_group_channels(), outputs = conv.g_group_channels();
    const auto padded = [lanes](int64_t channels) { return ceil_div(channels, lanes) * lanes; };
    // The side that fills its vectors better; with equal waste the one with fewer numbers to copy.
    const int64_t x_cost = padded(inputs) * outputs, g_cost = padded(outputs) * inputs;
    const int64_t x_size = padded(inputs) * conv.x_length, g_size = padded(outputs) * conv.g_length;
    const bool x_is_vector = x_cost != g_cost ? x_cost < g_cost : x_size <= g_size;
    for (int64_t group = 0; group < conv.groups; ++group) {
      WeightProduct product{&layer, x_is_vector, group};
      product.channels = x_is_vector ? inputs : outputs;
      product.padded = padded(product.channels);
      product.length = x_is_vector ? product.x().stride : conv.g_length;
      product.offset = copy_floats;
      product.row_count = x_is_vector ? outputs : conv.taps();
      product.column_count = product.blocks(lanes) * (x_is_vector ? conv.kernel_size : 1);
      copy_floats += program.groups() * product.group_floats(lanes);
      product.scalar_offset = copy_floats;
      copy_floats += product.scalar_floats(lanes, program.groups());
      products.push_back(product);
    }
  }
  return products;
}

// Copies one group's rows of the vector side, each scaled by its clip factor; rows of factor 0 become zeros.
template <int kBytes>
DPCGAN_INLINE void copy_vector_side(const WeightProduct& product, const float* rows, const float* factor, float* copy) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const LaneTensor& side = product.vector_side();
  const int64_t first = product.x_is_vector ? -side.left : 0;
  const Vector scale = load_lanes<kBytes>(factor);
  for (int64_t l = 0; l < product.length; ++l)
    for (int64_t c = 0; c < product.padded; ++c) {
      float* to = copy + c / kLanes * kLanes * product.row_floats(kLanes) + l * kLanes + c % kLanes;
      float lanes[kLanes] = {};
      if (c < product.channels) {
        const Vector value = load_lanes<kBytes>(rows + side.at(product.first_channel() + c, first + l) * kLanes);
        store_lanes<kBytes>(lanes, scale != 0.0f ? scale * value : Vector{});  // 0 times NaN is NaN
      }
#pragma GCC unroll 16
      for (int64_t n = 0; n < kLanes; ++n) to[n * product.row_floats(kLanes)] = lanes[n];
    }
}

template <int kBytes>
DPCGAN_INLINE void copy_scalar_side(const WeightProduct& product, int64_t group, int64_t groups, const float* rows,
                                    const float* factor, float* copy) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const Vector scale = load_lanes<kBytes>(factor);
  for (int64_t first = 0; first < product.row_count; first += kRows) {
    float* to = copy + (first / kRows * groups + group) * product.scalar_group_floats(kLanes);
    const int64_t positions = product.conv().g_length;
    for (int64_t t = 0; t < positions; ++t)
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t row = std::min(first + r, product.row_count - 1);
        const Vector value = load_lanes<kBytes>(rows + product.scalar_at(row, t, kLanes));
        float lanes[kLanes];
        store_lanes<kBytes>(lanes, scale != 0.0f ? value : Vector{});
#pragma GCC unroll 16
        for (int64_t n = 0; n < kLanes; ++n) to[(n * positions + t) * kRows + r] = lanes[n];
      }
  }
}

// Adds a group's rows to a tile: each row's sum over positions in single precision, the sum over rows in double, so
// that what a row adds does not depend on which others there are. scalars: [row][position][kRows]; vectors:
// [row][position].
template <int kBytes, int kTileRows, int kTileColumns>
DPCGAN_INLINE void add_group(const WeightProduct& product, const float* scalars,
                             const float* const (&vectors)[kTileColumns], double* total) {
  using Vector = typename VectorOf<float, kBytes>::type;
  using Half = typename VectorOf<float, kBytes / 2>::type;
  using Wide = typename VectorOf<double, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t positions = product.conv().g_length;
  const int64_t vector_step = product.vector_step(kLanes), row_step = product.row_floats(kLanes);
  for (int64_t n = 0; n < kLanes; ++n) {
    Vector sum[kTileRows][kTileColumns] = {};
    for (int64_t t = 0; t < positions; ++t, scalars += kRows) {
      Vector value[kTileColumns];
#pragma GCC unroll 8
      for (int q = 0; q < kTileColumns; ++q) value[q] = load_lanes<kBytes>(vectors[q] + n * row_step + t * vector_step);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
        for (int q = 0; q < kTileColumns; ++q) sum[r][q] += scalars[r] * value[q];
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
      for (int q = 0; q < kTileColumns; ++q) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          Half half;
          std::memcpy(&half, reinterpret_cast<const char*>(&sum[r][q]) + h * kBytes / 2, kBytes / 2);
          double* to = total + (r * kTileColumns + q) * kLanes + h * kLanes / 2;
          Wide wide;
          std::memcpy(&wide, to, kBytes);
          wide += __builtin_convertvector(half, Wide);
          std::memcpy(to, &wide, kBytes);
        }
      }
  }
}

struct Batch {
  const FusedProgram& program;
  const float* workspace;
  const float* copies;
  std::vector<float> factor;  // a float for each lane of each group, 0 beyond the batch

  const float* rows(int64_t group) const { return workspace + group * program.group_vectors * program.lanes; }
};

// The tiles of the weight at first_row, first_row + kTileRows, ... up to kBandRows rows, and first_column, over the
// whole batch. A group's vectors are read once from far away, and then again for each tile from near.
template <int kBytes, int kTileRows, int kTileColumns>
DPCGAN_INLINE void sum_band(const Batch& batch, const WeightProduct& product, int64_t first_row, int64_t first_column,
                            double* out) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes, kTile = kTileRows * kTileColumns * kLanes;
  const int64_t groups = batch.program.groups();
  const int64_t last_row = std::min<int64_t>(first_row + kBandRows, product.row_count);
  const int64_t group_scalars = product.scalar_group_floats(kLanes);
  double total[kBandRows / kTileRows * kTile] = {};
  for (int64_t group = 0; group < groups; ++group) {
    const float* vectors[kTileColumns];
    for (int q = 0; q < kTileColumns; ++q)
      vectors[q] = batch.copies + product.offset + group * product.group_floats(kLanes) +
                   product.vector_at(std::min(first_column + q, product.column_count - 1), kLanes);
    for (int64_t row = first_row; row < last_row; row += kTileRows) {
      const float* scalars =
          batch.copies + product.scalar_offset + (row / kRows * groups + group) * group_scalars + row % kRows;
      run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
        add_group<kBytes, kTileRows, kTileColumns>(product, scalars, vectors,
                                                   total + (row - first_row) / kTileRows * kTile);
      });
    }
  }
  for (int64_t row = first_row; row < last_row; ++row)
    for (int q = 0; q < kTileColumns && first_column + q < product.column_count; ++q) {
      const int64_t r = row - first_row;
      const double* sums =
          total + (r / kTileRows * kTileRows * kTileColumns + r % kTileRows * kTileColumns + q) * kLanes;
      product.add_to_weight(row, first_column + q, kLanes, sums, out + product.layer->weight);
    }
}

// Adds kept per-sample gradients [first, first + count) of every group, in double.
template <int kBytes>
DPCGAN_INLINE void sum_kept(const Batch& batch, int64_t first, int64_t count, double* out) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  double total[kKeptChunk * kLanes] = {};
  for (int64_t group = 0; group < batch.program.groups(); ++group) {
    const float* kept = batch.rows(group) + (batch.program.kept_offset + first) * kLanes;
    const Vector factor = load_lanes<kBytes>(batch.factor.data() + group * kLanes);
    for (int64_t i = 0; i < count; ++i) {
      const Vector grad = load_lanes<kBytes>(kept + i * kLanes);
      const Vector clipped = factor != 0.0f ? grad * factor : Vector{};  // 0 times NaN is NaN
      float single[kLanes];
      std::memcpy(single, &clipped, kBytes);
      for (int64_t l = 0; l < kLanes; ++l) total[i * kLanes + l] += single[l];
    }
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t l = 0; l < kLanes; ++l) out[i] += total[i * kLanes + l];
}

// One task: a band of tiles of a product, or a chunk of kept gradients.
struct SumTask {
  const WeightProduct* product;  // nothing for kept gradients
  int64_t first, second;         // row and column, or kept index and count
  int64_t out;                   // of kept gradients: index of the first parameter
};

std::vector<SumTask> sum_tasks(const FusedProgram& program, const std::vector<WeightProduct>& products) {
  std::vector<SumTask> tasks;
  const auto keep = [&](int64_t kept, int64_t numel, int64_t out) {
    for (int64_t i = 0; kept >= 0 && i < numel; i += kKeptChunk)
      tasks.push_back({nullptr, kept + i, std::min(kKeptChunk, numel - i), out + i});
  };
  for (const WeightProduct& product : products)
    for (int64_t row = 0; row < product.row_count; row += kBandRows)
      for (int64_t column = 0; column < product.column_count; column += kColumns)
        tasks.push_back({&product, row, column, 0});
  for (const FusedLayer& layer : program.layers) {
    if (!layer.has_parameters()) continue;
    keep(layer.kept_weight, layer.weight_numel(), layer.weight);
    keep(layer.kept_bias, layer.bias_numel(), layer.bias);
  }
  return tasks;
}

template <int kBytes>
DPCGAN_INLINE void run_task(const Batch& batch, const SumTask& task, double* out) {
  if (task.product == nullptr) return sum_kept<kBytes>(batch, task.first, task.second, out + task.out);
  const bool few_rows = task.product->row_count - task.first <= kRows / 2;
  if constexpr (kBytes == 64) {
    if (!few_rows) return sum_band<kBytes, kRows, kColumns>(batch, *task.product, task.first, task.second, out);
  }
  sum_band<kBytes, kRows / 2, kColumns>(batch, *task.product, task.first, task.second, out);
}

}  // namespace

void add_weighted_grads(const FusedProgram& program, const double* factor, const float* workspace, double* out) {
  int64_t copy_floats = 0;
  const std::vector<WeightProduct> products = weight_products(program, copy_floats);
  const at::Tensor copies = at::empty({copy_floats}, at::kFloat);
  float* copy = copies.mutable_data_ptr<float>();
  const int64_t lanes = program.lanes;
  Batch batch{program, workspace, copy, std::vector<float>(program.groups() * lanes, 0.0f)};
  for (int64_t n = 0; n < program.rows; ++n)
    batch.factor[n] = factor[n] < kLeastFactor ? 0.0f : static_cast<float>(factor[n]);
  at::parallel_for(0, program.groups(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group)
      for (const WeightProduct& product : products)
        lanes_dispatch(lanes, [&](auto width) DPCGAN_INLINE_BODY {
          constexpr int kBytes = decltype(width)::value;
          const float* factors = batch.factor.data() + group * lanes;
          copy_vector_side<kBytes>(product, batch.rows(group), factors,
                                   copy + product.offset + group * product.group_floats(lanes));
          copy_scalar_side<kBytes>(product, group, program.groups(), batch.rows(group), factors,
                                   copy + product.scalar_offset);
        });
  });
  const std::vector<SumTask> tasks = sum_tasks(program, products);
  std::atomic<int64_t> next{0};
  const int64_t workers = program.rows * program.parameters < kTaskWork ? 1 : at::get_num_threads();
  at::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t i = next++; i < static_cast<int64_t>(tasks.size()); i = next++)
        lanes_dispatch(lanes,
                       [&](auto width) DPCGAN_INLINE_BODY { run_task<decltype(width)::value>(batch, tasks[i], out); });
  });
}

}  // namespace dpcgan::cpu
