// Squared norms of the per-unit weight gradients of the conv family, without storing a gradient.
//
// `direct` forms the gradient of a unit tile by tile, squares and drops it. `gram` writes the norm as
// sum_{t,t'} (g^T g)[t,t'] A[t,t'] with A from the polyphase view of x, lag by lag, in double: products of floats are
// exact there.
//
// Both sum in double, as conv_weighted_grad does: norm and summed gradient belong together to about 1e-13, also where
// the sum over positions cancels, as it does when x is nearly constant in t and g is centred. A Gram norm loses digits
// there: one that is far below its Cauchy-Schwarz bound (common/cancellation.h) is formed directly.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>

#include "../checks.h"
#include "../common/cancellation.h"
#include "conv_contract.h"
#include "parallel.h"

namespace dpcgan::cpu {
namespace {

struct UnitRows {
  const int64_t* rows;
  int64_t count;
};

// sq_sizes: the squares of the sizes of its terms are added to it
template <class T>
double bias_sq_norm(const ConvGeometry& conv, const ConvOperands<T>& data, UnitRows unit, double& sq_sizes) {
  const BiasSource<T> source(conv, data);
  double total = 0;
  for (int64_t c = 0; c < conv.bias_numel(); ++c) {
    double sum = 0, sizes = 0;
    for (int64_t r = 0; r < unit.count; ++r) {
      const T* line = source.line(unit.rows[r], c);
      for (int64_t t = 0; t < source.length; ++t) {
        const double value = line[t * source.strides.position];
        sum += value;
        sizes += std::abs(value);
      }
    }
    total += sum * sum;
    sq_sizes += sizes * sizes;
  }
  return total;
}

DPCGAN_INLINE double sum_of_squares(const auto* values, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(values[i]) * values[i];
  return sum;
}

template <class T>
NormAndBound direct_sq_norm(const ConvGeometry& conv, const ConvOperands<T>& data, UnitRows unit, int64_t group,
                            PackedRows<double>& packed) {
  NormAndBound result;
  simd_dispatch([&](auto width) DPCGAN_INLINE_BODY {
    constexpr int kBytes = decltype(width)::value;
    pack_rows(conv, data, group, unit.rows, unit.count, nullptr, VectorOf<double, kBytes>::kLanes, packed);
    contract<double, kBytes>(conv, packed,
                             [&](int64_t, int64_t, int64_t outputs, int64_t taps, const double* tile,
                                 int64_t tile_stride) DPCGAN_INLINE_BODY {
                               for (int64_t i = 0; i < outputs; ++i)
                                 result.sq_norm += sum_of_squares(tile + i * tile_stride, taps);
                             });
    for (int64_t t = 0; t < packed.positions; ++t)
      result.bound += std::sqrt(sum_of_squares(packed.taps.data() + t * packed.tap_stride, packed.tap_stride) *
                                sum_of_squares(packed.outputs.data() + t * packed.output_stride, packed.output_stride));
  });
  return result;
}

// Double copies of one row: x as (phases, channels) lines of `columns`, g as (outputs) lines of T.
struct GramRow {
  std::vector<double> x;
  std::vector<double> g;
};

struct GramScratch {
  std::vector<GramRow> rows;
  std::vector<double> last;   // products over the phases of the last fold
  std::vector<double> full;   // products over all phases
  std::vector<double> grads;  // (g^T g) along the lag
};

template <class T>
void load_gram_row(const ConvGeometry& conv, const PolyphaseGeometry& poly, const ConvOperands<T>& data, int64_t row,
                   int64_t group, GramRow& out) {
  const int64_t channels = conv.x_group_channels();
  out.x.assign(poly.phases * channels * poly.columns, 0.0);
  out.g.resize(conv.g_group_channels() * conv.g_length);
  const T* x = data.x + row * data.x_strides.row + group * channels * data.x_strides.channel;
  const T* g = data.g + row * data.g_strides.row + group * conv.g_group_channels() * data.g_strides.channel;
  for (int64_t phase = 0; phase < poly.phases; ++phase)
    for (int64_t c = 0; c < channels; ++c) {
      double* line = out.x.data() + (phase * channels + c) * poly.columns;
      for (int64_t q = 0; q < poly.columns; ++q) {
        const int64_t position = polyphase_position(conv, q, phase);
        if (conv.inside(position)) line[q] = x[c * data.x_strides.channel + position * data.x_strides.position];
      }
    }
  for (int64_t o = 0; o < conv.g_group_channels(); ++o)
    for (int64_t t = 0; t < conv.g_length; ++t)
      out.g[o * conv.g_length + t] = g[o * data.g_strides.channel + t * data.g_strides.position];
}

// sum[i] += a[i] * b[i]
DPCGAN_INLINE void add_products(const double* a, const double* b, int64_t size, double* sum) {
  for (int64_t i = 0; i < size; ++i) sum[i] += a[i] * b[i];
}

// Adds what a pair of rows contributes to the norm, and a row with itself to the bound.
DPCGAN_INLINE void add_gram_pair(const ConvGeometry& conv, const PolyphaseGeometry& poly, const GramRow& a,
                                 const GramRow& b, bool same, GramScratch& scratch, NormAndBound& result) {
  const int64_t channels = conv.x_group_channels();
  const int64_t last_lines = poly.last_phases * channels;
  const int64_t lines = poly.phases * channels;
  double all_lags = 0;
  for (int64_t lag = same ? 0 : 1 - conv.g_length; lag < conv.g_length; ++lag) {
    const int64_t skip = std::max<int64_t>(0, -lag);  // first position of a whose partner lies inside b
    const int64_t pairs = conv.g_length - std::abs(lag);
    const int64_t columns = pairs + poly.folds - 1;
    scratch.last.assign(columns, 0.0);
    for (int64_t i = 0; i < last_lines; ++i)
      add_products(a.x.data() + i * poly.columns + skip, b.x.data() + i * poly.columns + skip + lag, columns,
                   scratch.last.data());
    scratch.full = scratch.last;
    for (int64_t i = last_lines; i < lines; ++i)
      add_products(a.x.data() + i * poly.columns + skip, b.x.data() + i * poly.columns + skip + lag, columns,
                   scratch.full.data());
    scratch.grads.assign(pairs, 0.0);
    for (int64_t o = 0; o < conv.g_group_channels(); ++o)
      add_products(a.g.data() + o * conv.g_length + skip, b.g.data() + o * conv.g_length + skip + lag, pairs,
                   scratch.grads.data());
    double sum = 0;
    for (int64_t t = 0; t < pairs; ++t) {
      double inputs = scratch.last[t + poly.folds - 1];
      for (int64_t m = 0; m + 1 < poly.folds; ++m) inputs += scratch.full[t + m];
      sum += inputs * scratch.grads[t];
      if (same && lag == 0) result.bound += std::sqrt(inputs * scratch.grads[t]);
    }
    all_lags += (same && lag == 0 ? 1.0 : 2.0) * sum;
  }
  result.sq_norm += all_lags;
}

template <class T>
NormAndBound gram_sq_norm(const ConvGeometry& conv, const PolyphaseGeometry& poly, const ConvOperands<T>& data,
                          UnitRows unit, int64_t group, GramScratch& scratch) {
  if (scratch.rows.size() < static_cast<size_t>(unit.count)) scratch.rows.resize(unit.count);
  NormAndBound result;
  for (int64_t i = 0; i < unit.count; ++i) load_gram_row(conv, poly, data, unit.rows[i], group, scratch.rows[i]);
  simd_dispatch([&](auto) DPCGAN_INLINE_BODY {
    for (int64_t i = 0; i < unit.count; ++i) {
      NormAndBound row;  // apart, so that rounding grows with the rows and not with their pairs
      for (int64_t j = i; j < unit.count; ++j)
        add_gram_pair(conv, poly, scratch.rows[i], scratch.rows[j], i == j, scratch, row);
      result.sq_norm += row.sq_norm;
      result.bound += row.bound;
    }
  });
  return result;
}

// Whether a row's gradient is the outer product of one column of g with one of x, as that of a Linear without
// positions.
bool is_outer_product(const ConvGeometry& conv) {
  return conv.kernel_size == 1 && conv.x_length == 1 && conv.g_length == 1 && conv.padding == 0;
}

template <class T>
DPCGAN_INLINE double strided_sum_of_squares(const T* values, int64_t size, int64_t stride) {
  double sum = 0;
  if (stride == 1) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(values[i]) * values[i];
  } else {
    for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(values[i * stride]) * values[i * stride];
  }
  return sum;
}

// |g|^2 |x|^2 summed over groups, with the bias: no term is negative, so that nothing cancels.
template <class T>
double outer_product_sq_norm(const ConvGeometry& conv, const ConvOperands<T>& data, int64_t row) {
  double sum = 0;
  simd_dispatch([&](auto) DPCGAN_INLINE_BODY {
    for (int64_t group = 0; group < conv.groups; ++group) {
      const auto part = [&](const T* values, const OperandStrides& strides, int64_t channels) DPCGAN_INLINE_BODY {
        const T* first = values + row * strides.row + group * channels * strides.channel;
        return strided_sum_of_squares(first, channels, strides.channel);
      };
      const double inputs = part(data.x, data.x_strides, conv.x_group_channels());
      const double grads = part(data.g, data.g_strides, conv.g_group_channels());
      const double bias = conv.bias == BiasRole::kNone ? 0.0 : conv.bias == BiasRole::kGrad ? grads : inputs;
      sum += inputs * grads + bias;
    }
  });
  return sum;
}

// What one thread needs to measure units, one after another.
template <class T>
struct UnitMeter {
  const ConvGeometry& conv;
  const PolyphaseGeometry& poly;
  const ConvOperands<T>& data;
  PackedRows<double> packed;
  GramScratch gram;

  double sq_norm(UnitRows unit, bool use_gram) {
    if (use_gram && unit.count == 1 && is_outer_product(conv)) return outer_product_sq_norm(conv, data, unit.rows[0]);
    double sq_sizes = 0;
    double sum = conv.bias == BiasRole::kNone ? 0.0 : bias_sq_norm(conv, data, unit, sq_sizes);
    for (int64_t group = 0; group < conv.groups; ++group) {
      NormAndBound part = use_gram ? gram_sq_norm(conv, poly, data, unit, group, gram)
                                   : direct_sq_norm(conv, data, unit, group, packed);
      if (use_gram && part.cancels(gram_cancellation(conv.gram_depth(unit.count))))
        part = direct_sq_norm(conv, data, unit, group, packed);
      sum += part.sq_norm;
      sq_sizes += part.bound * part.bound;
    }
    return at_least_share(sum, sq_sizes);
  }
};

template <class T>
void sq_norm(const ConvGeometry& conv, const ConvOperands<T>& data, bool gram, const int64_t* order,
             const int64_t* offsets, int64_t units, double* out) {
  const PolyphaseGeometry poly(conv);
  const int64_t rows_per_unit = units == 0 ? 0 : ceil_div(conv.rows, units);
  const int64_t gram_work = conv.g_length * conv.g_length * (conv.x_channels * poly.phases + conv.g_channels);
  const int64_t row_work = gram ? gram_work * rows_per_unit : conv.g_length * conv.weight_numel();
  at::parallel_for(0, units, grain_size(rows_per_unit * row_work), [&](int64_t begin, int64_t end) {
    UnitMeter<T> meter{conv, poly, data, {}, {}};
    for (int64_t u = begin; u < end; ++u) {
      const UnitRows unit =
          order == nullptr ? UnitRows{&u, 1} : UnitRows{order + offsets[u], offsets[u + 1] - offsets[u]};
      out[u] = meter.sq_norm(unit, gram);
    }
  });
}

}  // namespace

at::Tensor conv_sq_norm_cpu(const at::Tensor& x, const at::Tensor& g, int64_t kernel_size, int64_t stride,
                            int64_t padding, int64_t dilation, int64_t groups, int64_t bias_role, std::string_view mode,
                            const std::optional<at::Tensor>& row_order, const std::optional<at::Tensor>& unit_offsets) {
  const ConvGeometry conv = check_conv("conv_sq_norm", x, g, kernel_size, stride, padding, dilation, groups, bias_role);
  const bool gram = check_norm_mode("conv_sq_norm", mode);
  const int64_t units = check_units("conv_sq_norm", row_order, unit_offsets, conv.rows, x.device());
  at::Tensor out = at::empty({units}, x.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "conv_sq_norm", [&] {
    const ConvOperands<scalar_t> data{x.const_data_ptr<scalar_t>(), operand_strides(x), g.const_data_ptr<scalar_t>(),
                                      operand_strides(g)};
    sq_norm(conv, data, gram, row_order ? row_order->const_data_ptr<int64_t>() : nullptr,
            unit_offsets ? unit_offsets->const_data_ptr<int64_t>() : nullptr, units, out.mutable_data_ptr<double>());
  });
  return out;
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) { m.impl("conv_sq_norm", &dpcgan::cpu::conv_sq_norm_cpu); }
