// Draws from one categorical distribution for each block of a record, by inversion: a block in each lane of a vector.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace dpcgan::cpu {
namespace {

// e^x for x <= 0, to 2 units in the last place; 0 below -87, also for -inf and NaN. Cephes's polynomial of degree 6.
template <int kBytes>
DPCGAN_INLINE typename VectorOf<float, kBytes>::type exp_lanes(typename VectorOf<float, kBytes>::type x) {
  using Vector = typename VectorOf<float, kBytes>::type;
  using Ints = decltype(x < x);
  constexpr float kRound = 12582912.0F;  // 1.5 times 2^23: what is added to it keeps no fraction
  const Ints counts = x >= -87.0F;
  x = counts ? x : Vector{};
  const Vector n = (x * 1.44269504088896341F + kRound) - kRound;
  const Vector r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  Vector p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  Vector scale;
  std::memcpy(&scale, &exponent, kBytes);
  return counts ? p * scale : Vector{};
}

struct CellDraw {
  const float* logits;  // (rows, cells, positions)
  const float* prior;   // (classes, cells, blocks)
  const int64_t* classes;
  const float* uniform;       // (rows, blocks)
  const int64_t* last_cells;  // (blocks,)
  float* out;                 // (rows, blocks)
  int64_t cells, positions, blocks;
};

// Blocks [first, first + count) of one row. scratch: a vector a cell
template <int kBytes>
DPCGAN_INLINE void draw_lanes(const CellDraw& d, int64_t row, int64_t first, int64_t count, float* scratch) {
  using Vector = typename VectorOf<float, kBytes>::type;
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  const float* logits = d.logits + row * d.cells * d.positions + first;
  const float* prior = d.prior + d.classes[row] * d.cells * d.blocks + first;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Vector largest = Vector{} - kInfinity, finite{};  // `finite` is 0, or NaN where a logit is
  for (int64_t c = 0; c < d.cells; ++c) {
    const Vector x =
        load_some<Vector>(logits + c * d.positions, count) + load_some<Vector>(prior + c * d.blocks, count);
    largest = x > largest ? x : largest;
    finite = x == x ? finite : x;
    std::memcpy(scratch + c * kLanes, &x, kBytes);
  }
  finite += largest - largest;
  Vector below{};
  for (int64_t c = 0; c < d.cells; ++c) {
    below += exp_lanes<kBytes>(load_some<Vector>(scratch + c * kLanes, kLanes) - largest);
    std::memcpy(scratch + c * kLanes, &below, kBytes);
  }
  const Vector wanted = load_some<Vector>(d.uniform + row * d.blocks + first, count) * below;
  Vector cell{};
  for (int64_t c = 0; c + 1 < d.cells; ++c) {
    const Vector reached = load_some<Vector>(scratch + c * kLanes, kLanes);
    cell += reached <= wanted ? Vector{} + 1.0F : Vector{};
  }
  Vector last{};
  for (int64_t i = 0; i < count; ++i) last[i] = static_cast<float>(d.last_cells[first + i]);
  cell = cell < last ? cell : last;  // where the product was rounded up to the whole
  store_some(d.out + row * d.blocks + first, cell + finite, count);
}

template <int kBytes>
DPCGAN_INLINE void draw_rows(const CellDraw& d, int64_t begin, int64_t end, float* scratch) {
  constexpr int64_t kLanes = VectorOf<float, kBytes>::kLanes;
  for (int64_t row = begin; row < end; ++row) {
    int64_t first = 0;
    for (; first + kLanes <= d.blocks; first += kLanes) draw_lanes<kBytes>(d, row, first, kLanes, scratch);
    if (first == d.blocks) continue;
    if (d.blocks >= kLanes)  // some once more, which gives the same; to load less than a vector takes longer
      draw_lanes<kBytes>(d, row, d.blocks - kLanes, kLanes, scratch);
    else
      draw_lanes<kBytes>(d, row, first, d.blocks - first, scratch);
  }
}

}  // namespace

at::Tensor draw_cells_cpu(const at::Tensor& logits, const at::Tensor& prior, const at::Tensor& classes,
                          const at::Tensor& uniform, const at::Tensor& last_cells) {
  TORCH_CHECK(logits.dim() == 3 && prior.dim() == 3 && uniform.dim() == 2 && prior.size(1) == logits.size(1) &&
                  prior.size(2) <= logits.size(2) && uniform.size(0) == logits.size(0) &&
                  uniform.size(1) == prior.size(2),
              "draw_cells: expected logits (B, cells, T), prior (K, cells, blocks) and uniform (B, blocks), got ",
              logits.sizes(), ", ", prior.sizes(), " and ", uniform.sizes());
  TORCH_CHECK(
      classes.sizes() == at::IntArrayRef({logits.size(0)}) && last_cells.sizes() == at::IntArrayRef({prior.size(2)}),
      "draw_cells: expected classes (B,) and last_cells (blocks,), got ", classes.sizes(), " and ", last_cells.sizes());
  for (const at::Tensor& tensor : {logits, prior, uniform})
    TORCH_CHECK(tensor.scalar_type() == at::kFloat, "draw_cells: expected float32, got ", tensor.scalar_type());
  for (const at::Tensor& tensor : {classes, last_cells})
    TORCH_CHECK(tensor.scalar_type() == at::kLong, "draw_cells: expected int64, got ", tensor.scalar_type());
  const at::Tensor l = logits.contiguous(), p = prior.contiguous(), k = classes.contiguous(), u = uniform.contiguous(),
                   last = last_cells.contiguous();
  const int64_t rows = l.size(0), cells = l.size(1);
  for (int64_t n = 0; n < rows; ++n) {
    const int64_t of_row = k.const_data_ptr<int64_t>()[n];
    TORCH_CHECK(of_row >= 0 && of_row < p.size(0), "draw_cells: expected classes in [0, ", p.size(0), "), got ",
                of_row);
  }
  at::Tensor out = at::empty({rows, p.size(2)}, l.options());
  const CellDraw draw{l.const_data_ptr<float>(),
                      p.const_data_ptr<float>(),
                      k.const_data_ptr<int64_t>(),
                      u.const_data_ptr<float>(),
                      last.const_data_ptr<int64_t>(),
                      out.mutable_data_ptr<float>(),
                      cells,
                      l.size(2),
                      p.size(2)};
  constexpr int64_t kWork = 16;  // of a cell, in multiply-adds
  at::parallel_for(0, rows, grain_size(kWork * cells * draw.blocks), [&](int64_t begin, int64_t end) {
    simd_dispatch([&](auto width) DPCGAN_INLINE_BODY {
      constexpr int kBytes = decltype(width)::value;
      std::vector<float> scratch(cells * VectorOf<float, kBytes>::kLanes);
      draw_rows<kBytes>(draw, begin, end, scratch.data());
    });
  });
  return out;
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) { m.impl("draw_cells", &dpcgan::cpu::draw_cells_cpu); }
