#include "lane_products.h"

#include <ATen/Parallel.h>

#include "parallel.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kDoublePositions = 6;  // up to so many, products in double cost less than converting each row's sum

int64_t whole(int64_t count, int64_t unit) { return ceil_div(count, unit) * unit; }

WeightProduct make_product(const FusedProgram& program, const FusedLayer& layer, int64_t conv_group) {
  const ConvGeometry& conv = layer.conv;
  const bool forward = layer.kind == LayerKind::kConv;
  const LaneTensor& x = forward ? layer.in : layer.grad;
  const int64_t inputs = conv.x_group_channels(), outputs = conv.g_group_channels();
  WeightProduct product{};
  product.layer = &layer;
  product.conv_group = conv_group;
  product.in_double = conv.g_length <= kDoublePositions;
  product.unit = product.in_double ? program.lanes / 2 : program.lanes;
  // The side that fills its vectors better; with equal waste the one with fewer numbers to copy.
  const int64_t x_cost = whole(inputs, product.unit) * outputs, g_cost = whole(outputs, product.unit) * inputs;
  const int64_t x_size = whole(inputs, product.unit) * x.stride, g_size = whole(outputs, product.unit) * conv.g_length;
  product.x_is_vector = x_cost != g_cost ? x_cost < g_cost : x_size <= g_size;
  product.channels = product.x_is_vector ? inputs : outputs;
  product.padded = whole(product.channels, product.unit);
  product.vector_length = product.x_is_vector ? x.stride : conv.g_length;
  product.scalar_channels = product.x_is_vector ? outputs : inputs;
  product.scalar_length = whole(product.x_is_vector ? conv.g_length : x.stride, program.lanes);
  product.row_count = product.x_is_vector ? outputs : conv.taps();
  product.column_count = product.padded / product.unit * (product.x_is_vector ? conv.kernel_size : 1);
  product.tile_rows = program.lanes == 16 && product.row_count > 4 ? 8 : 4;
  return product;
}

LaneSource source_of(const FusedLayer& layer, bool x, const float* values, const float* scratch) {
  if (x == (layer.kind == LayerKind::kConv)) return {layer.in, values};
  return {layer.grad, scratch};
}

// Stores a vector's lanes as Real; those of doubles are two vectors `step` apart, of which the second may be beyond
// `count` lanes.
template <int kBytes, class Real>
DPCGAN_INLINE void store_reals(Real* to, int64_t step, const typename VectorOf<float, kBytes>::type& lanes,
                               int64_t count) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  if constexpr (sizeof(Real) == 4) {
    store_lanes<kBytes>(to, lanes);
  } else {
    float single[kLanes];
    store_lanes<kBytes>(single, lanes);
    for (int h = 0; h < 2 && h * kLanes / 2 < count; ++h) {
      const auto wide = load_wide<kBytes>(single + h * kLanes / 2);
      std::memcpy(to + h * step, &wide, kBytes);
    }
  }
}

// Rows of factor 0 become zeros, whatever they hold: 0 times NaN is NaN.
template <int kBytes, class Real>
DPCGAN_INLINE void copy_vector_side(const WeightProduct& product, const LaneSource& side, const float* factor,
                                    Real* to) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t first_position = product.x_is_vector ? -side.tensor.left : 0;
  const int64_t first_channel = product.conv_group * product.channels;
  const Vector scale = load_lanes<kBytes>(factor);
  for (int64_t c = 0; c < product.padded; c += kLanes)
    for (int64_t l = 0; l < product.vector_length; ++l) {
      Vector square[kLanes] = {};
      for (int64_t i = 0; i < std::min<int64_t>(kLanes, product.channels - c); ++i) {
        const Vector value = load_lanes<kBytes>(side.at<kLanes>(first_channel + c + i, first_position + l));
        square[i] = scale != 0.0f ? scale * value : Vector{};
      }
      transpose_lanes<kLanes>(square);
      const int64_t vector_step = kLanes * product.vector_length * product.unit;
      Real* at = to + c / product.unit * vector_step + l * product.unit;
#pragma GCC unroll 16
      for (int n = 0; n < kLanes; ++n)
        store_reals<kBytes>(at + n * product.vector_length * product.unit, vector_step, square[n], product.padded - c);
    }
}

template <int kBytes, class Real>
DPCGAN_INLINE void copy_scalar_side(const WeightProduct& product, const LaneSource& side, const float* factor,
                                    Real* to) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int kLanes = VectorOf<float, kBytes>::kLanes;
  const int64_t first_position = product.x_is_vector ? 0 : -side.tensor.left;
  const int64_t length = product.x_is_vector ? side.tensor.length : side.tensor.stride;
  const int64_t first_channel = product.conv_group * product.scalar_channels;
  const Vector scale = load_lanes<kBytes>(factor);
  for (int64_t c = 0; c < product.scalar_channels; ++c)
    for (int64_t l = 0; l < product.scalar_length; l += kLanes) {
      Vector square[kLanes] = {};
      for (int64_t i = 0; i < std::min<int64_t>(kLanes, length - l); ++i) {
        const Vector value = load_lanes<kBytes>(side.at<kLanes>(first_channel + c, first_position + l + i));
        square[i] = scale != 0.0f ? value : Vector{};
      }
      transpose_lanes<kLanes>(square);
      Real* at = to + c * kLanes * product.scalar_length + l;
#pragma GCC unroll 16
      for (int n = 0; n < kLanes; ++n)
        store_reals<kBytes>(at + n * product.scalar_length, kLanes / 2, square[n], kLanes);
    }
}

// Adds kept per-sample gradients, all lanes of each, in double.
template <int kBytes>
DPCGAN_INLINE void add_kept(const float* kept, int64_t count, const float* factor, double* sums) {
  using Vector = typename VectorOf<float, kBytes>::type;
  using Wide = typename VectorOf<double, kBytes>::type;
  constexpr int kLanes = VectorOf<float, kBytes>::kLanes, kWide = kLanes / 2;
  const Vector scale = load_lanes<kBytes>(factor);
  for (int64_t i = 0; i < count; i += kWide) {
    Wide square[kWide] = {};
    for (int64_t q = 0; q < std::min<int64_t>(kWide, count - i); ++q) {
      const Vector grad = load_lanes<kBytes>(kept + (i + q) * kLanes);
      const Vector clipped = scale != 0.0f ? grad * scale : Vector{};
      float single[kLanes];
      store_lanes<kBytes>(single, clipped);
      square[q] = load_wide<kBytes>(single) + load_wide<kBytes>(single + kWide);
    }
    transpose_lanes<kWide>(square);
    Wide total{};
#pragma GCC unroll 8
    for (int q = 0; q < kWide; ++q) total += square[q];
    for (int64_t q = 0; q < std::min<int64_t>(kWide, count - i); ++q) sums[i + q] += total[q];
  }
}

// What a tile reads: for each of its rows and columns where row 0 of the batch begins, and the steps to the next row
// of the batch and the next position.
template <class Real, int kTileRows, int kTileColumns>
struct TileSource {
  const Real* scalars[kTileRows];
  const Real* vectors[kTileColumns];
  int64_t scalar_row_step, vector_row_step, scalar_step, vector_step;
};

template <int kBytes, int kTileRows, int kTileColumns>
DPCGAN_INLINE void add_tile(const TileSource<float, kTileRows, kTileColumns>& source, int64_t positions,
                            double* total) {
  using Vector = typename VectorOf<float, kBytes>::type;
  using Wide = typename VectorOf<double, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  for (int64_t n = 0; n < kLanes; ++n) {
    Vector sum[kTileRows][kTileColumns] = {};
    int64_t scalar_at = n * source.scalar_row_step, vector_at = n * source.vector_row_step;
    for (int64_t t = 0; t < positions; ++t, scalar_at += source.scalar_step, vector_at += source.vector_step) {
      Vector value[kTileColumns];
#pragma GCC unroll 8
      for (int q = 0; q < kTileColumns; ++q) value[q] = load_lanes<kBytes>(source.vectors[q] + vector_at);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
        for (int q = 0; q < kTileColumns; ++q) sum[r][q] += source.scalars[r][scalar_at] * value[q];
    }
    alignas(64) float row_sum[kTileRows * kTileColumns * kLanes];
    std::memcpy(row_sum, sum, sizeof(sum));
    for (int i = 0; i < 2 * kTileRows * kTileColumns; ++i) {
      Wide wide;
      std::memcpy(&wide, total + i * kLanes / 2, kBytes);
      wide += load_wide<kBytes>(row_sum + i * kLanes / 2);
      std::memcpy(total + i * kLanes / 2, &wide, kBytes);
    }
  }
}

template <int kBytes, int kTileRows, int kTileColumns>
DPCGAN_INLINE void add_tile(const TileSource<double, kTileRows, kTileColumns>& source, int64_t positions,
                            double* total) {
  using Vector = typename VectorOf<double, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<double, kBytes>::kLanes;
  const auto each_sum = [](auto body) DPCGAN_INLINE_BODY {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 8
      for (int q = 0; q < kTileColumns; ++q) body(r, q);
  };
  Vector sum[kTileRows][kTileColumns];
  each_sum([&](int r, int q)
               DPCGAN_INLINE_BODY { std::memcpy(&sum[r][q], total + (r * kTileColumns + q) * kLanes, kBytes); });
  for (int64_t n = 0; n < 2 * kLanes; ++n) {
    int64_t scalar_at = n * source.scalar_row_step, vector_at = n * source.vector_row_step;
    for (int64_t t = 0; t < positions; ++t, scalar_at += source.scalar_step, vector_at += source.vector_step) {
      Vector value[kTileColumns];
#pragma GCC unroll 8
      for (int q = 0; q < kTileColumns; ++q) std::memcpy(&value[q], source.vectors[q] + vector_at, kBytes);
      each_sum([&](int r, int q) DPCGAN_INLINE_BODY { sum[r][q] += source.scalars[r][scalar_at] * value[q]; });
    }
  }
  each_sum([&](int r, int q)
               DPCGAN_INLINE_BODY { std::memcpy(total + (r * kTileColumns + q) * kLanes, &sum[r][q], kBytes); });
}

// A group's copies of one product.
template <class Real>
struct Copies {
  const WeightProduct& product;
  const LaneTensor& x;
  int64_t rows;  // of the group, as many as lanes
  const Real* vectors;
  const Real* scalars;
  std::vector<const Real*> starts;  // of each row of the product in the scalar side

  Copies(const WeightProduct& of, int64_t lanes, const char* copied)
      : product(of),
        x(of.layer->kind == LayerKind::kConv ? of.layer->in : of.layer->grad),
        rows(lanes),
        vectors(reinterpret_cast<const Real*>(copied)),
        scalars(vectors + rows * of.vector_numel()),
        starts(of.row_count) {
    for (int64_t row = 0; row < of.row_count; ++row) starts[row] = scalar(row);
  }

  const Real* scalar(int64_t row) const {
    const int64_t channel_step = rows * product.scalar_length;
    if (product.x_is_vector) return scalars + row * channel_step;
    const ConvGeometry& conv = product.conv();
    return scalars + row / conv.kernel_size * channel_step + x.left + conv.x_position(0, row % conv.kernel_size);
  }
  const Real* vector(int64_t column) const {
    const int64_t blocks = product.padded / product.unit;
    const int64_t position = product.x_is_vector ? x.left + product.conv().x_position(0, column / blocks) : 0;
    return vectors + (column % blocks * rows * product.vector_length + position) * product.unit;
  }
};

template <int kBytes, int kTileRows, int kTileColumns, class Real>
DPCGAN_INLINE void add_column(const Copies<Real>& copies, int64_t first_column, double* sums) {
  const WeightProduct& product = copies.product;
  const int64_t stride = product.conv().stride;
  TileSource<Real, kTileRows, kTileColumns> source;
  source.scalar_row_step = product.scalar_length;
  source.vector_row_step = product.vector_length * product.unit;
  source.scalar_step = product.x_is_vector ? 1 : stride;
  source.vector_step = (product.x_is_vector ? stride : 1) * product.unit;
  for (int q = 0; q < kTileColumns; ++q) source.vectors[q] = copies.vector(first_column + q);
  for (int64_t row = 0; row < product.row_count; row += kTileRows) {
    for (int r = 0; r < kTileRows; ++r) source.scalars[r] = copies.starts[std::min(row + r, product.row_count - 1)];
    double* total = sums + product.tile_sums(row, first_column);
    run_apart<kBytes>([&](auto) DPCGAN_INLINE_BODY {
      add_tile<kBytes, kTileRows, kTileColumns>(source, product.conv().g_length, total);
    });
  }
}

template <int kBytes, int kTileRows, class Real>
DPCGAN_INLINE void add_columns(const Copies<Real>& copies, double* sums) {
  const WeightProduct& product = copies.product;
  for (int64_t column = 0; column < product.column_count;) {
    const int64_t width = product.tile_columns(column);
    if (width == 3) add_column<kBytes, kTileRows, 3>(copies, column, sums);
    if (width == 2) add_column<kBytes, kTileRows, 2>(copies, column, sums);
    if (width == 1) add_column<kBytes, kTileRows, 1>(copies, column, sums);
    column += width;
  }
}

template <int kBytes, class Real>
DPCGAN_INLINE void add_product(const WeightProduct& product, const float* values, const float* scratch,
                               const float* factor, char* copies, double* sums) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const FusedLayer& layer = *product.layer;
  Real* vectors = reinterpret_cast<Real*>(copies);
  copy_vector_side<kBytes>(product, source_of(layer, product.x_is_vector, values, scratch), factor, vectors);
  copy_scalar_side<kBytes>(product, source_of(layer, !product.x_is_vector, values, scratch), factor,
                           vectors + kLanes * product.vector_numel());
  const Copies<Real> source(product, kLanes, copies);
  if constexpr (kBytes == 64) {
    if (product.tile_rows == 8) return add_columns<kBytes, 8>(source, sums);
  }
  add_columns<kBytes, 4>(source, sums);
}

// Adds all workers' sums of the tiles [first, last) of rows of a product to the weight.
void add_product_sums(const SumPlan& plan, const WeightProduct& product, int64_t first, int64_t last,
                      const double* sums, double* weight) {
  const int64_t blocks = product.padded / product.unit, step = product.weight_step();
  for (int64_t row = first * product.tile_rows; row < last * product.tile_rows; row += product.tile_rows)
    for (int64_t column = 0; column < product.column_count;) {
      const int64_t width = product.tile_columns(column);
      const double* tile = sums + product.tile_sums(row, column);
      for (int64_t r = 0; r < std::min(product.tile_rows, product.row_count - row); ++r)
        for (int64_t q = 0; q < width; ++q) {
          double* to = weight + product.weight_at(row + r, column + q);
          const double* from = tile + (r * width + q) * product.unit;
          double total[kMaxLanes];
          std::copy_n(from, product.unit, total);
          for (int64_t worker = 1; worker < plan.workers; ++worker)
            for (int64_t i = 0; i < product.unit; ++i) total[i] += from[worker * plan.sum_count + i];
          const int64_t count = std::min(product.unit, product.channels - (column + q) % blocks * product.unit);
          for (int64_t i = 0; i < count; ++i) to[i * step] = total[i];
        }
      column += width;
    }
}

}  // namespace

int64_t WeightProduct::weight_at(int64_t row, int64_t column) const {
  const int64_t kernel = conv().kernel_size, blocks = padded / unit, channel = column % blocks * unit;
  const int64_t o = x_is_vector ? row : channel, c = x_is_vector ? channel : row / kernel;
  const int64_t j = x_is_vector ? column / blocks : row % kernel;
  return ((conv_group * conv().g_group_channels() + o) * conv().x_group_channels() + c) * kernel + j;
}

SumPlan::SumPlan(const FusedProgram& net, int64_t threads) : program(net) {
  for (const FusedLayer& layer : program.layers) {
    if (!layer.is_conv() || layer.mode != NormMode::kGram) continue;
    for (int64_t group = 0; group < layer.conv.groups; ++group) {
      WeightProduct product = make_product(program, layer, group);
      product.sums = sum_count;
      copied_bytes = std::max(copied_bytes, product.row_bytes() * program.lanes);
      sum_count += product.sum_count();
      products.push_back(product);
    }
  }
  kept_sums = sum_count;
  sum_count += whole(program.kept_vectors, 8);
  const bool little = program.rows * program.parameters < kTaskWork;
  workers = little ? 1 : std::min(threads, program.groups());
}

void add_rows(const SumPlan& plan, const float* values, const float* scratch, const float* factor, char* copies,
              double* sums) {
  const int64_t lanes = plan.program.lanes;
  lanes_dispatch(lanes, [&](auto width) DPCGAN_INLINE_BODY {
    constexpr int kBytes = decltype(width)::value;
    for (const WeightProduct& product : plan.products)
      product.in_double ? add_product<kBytes, double>(product, values, scratch, factor, copies, sums)
                        : add_product<kBytes, float>(product, values, scratch, factor, copies, sums);
    add_kept<kBytes>(scratch + plan.program.kept_offset * lanes, plan.program.kept_vectors, factor,
                     sums + plan.kept_sums);
  });
}

void join_worker_sums(const SumPlan& plan, const double* sums, double* out) {
  for (const WeightProduct& product : plan.products)
    at::parallel_for(0, product.padded_rows() / product.tile_rows,
                     grain_size(4 * product.column_count * product.unit * product.tile_rows),
                     [&](int64_t first, int64_t last) {
                       add_product_sums(plan, product, first, last, sums, out + product.layer->weight);
                     });
  const auto add_kept_sums = [&](int64_t kept, int64_t numel, double* to) {
    for (int64_t i = 0; kept >= 0 && i < numel; ++i)
      for (int64_t worker = 0; worker < plan.workers; ++worker)
        to[i] += sums[worker * plan.sum_count + plan.kept_sums + kept + i];
  };
  for (const FusedLayer& layer : plan.program.layers) {
    if (!layer.has_parameters()) continue;
    add_kept_sums(layer.kept_weight, layer.weight_numel(), out + layer.weight);
    add_kept_sums(layer.kept_bias, layer.bias_numel(), out + layer.bias);
  }
}

}  // namespace dpcgan::cpu
