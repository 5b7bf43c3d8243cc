// Rows of a table of dense columns and sparse binary codes, written into a dense buffer. By the calling thread alone:
// it runs beside a training step, which has the others. The table may be the map of a damaged file, so nothing is
// addressed by a number of it that was not checked.
#include <ATen/MemoryOverlap.h>
#include <torch/library.h>

#include <algorithm>

#include "simd.h"

namespace dpcgan::cpu {
namespace {

constexpr int64_t kAhead = 8;            // rows that are on their way into the cache: they lie anywhere in the table
constexpr int64_t kPrefetchBytes = 512;  // of each part of a row; from there on the processor runs ahead by itself
constexpr int64_t kLineBytes = 64;

struct RowGather {
  const int64_t* rows;       // (count,), checked
  const float* dense;        // (N, head + tail)
  const int64_t* starts;     // (N + 1,)
  const int32_t* positions;  // (entries,)
  float* out;                // (count, head + codes + tail)
  int64_t count, entries, head, codes, tail;
};

// These two must be inlined: GCC takes a function that only prefetches for one without effect, and drops its calls.
template <class T>
DPCGAN_INLINE void prefetch(const T* from, int64_t count) {
  constexpr int64_t kStep = kLineBytes / sizeof(T);
  for (int64_t i = 0; i < std::min(count, kPrefetchBytes / kLineBytes * kStep); i += kStep)
    __builtin_prefetch(from + i);
}

DPCGAN_INLINE void prefetch_row(const RowGather& g, int64_t row) {
  const int64_t begin = std::clamp<int64_t>(g.starts[row], 0, g.entries);
  const int64_t end = std::clamp(g.starts[row + 1], begin, g.entries);
  prefetch(g.positions + begin, end - begin);
  prefetch(g.dense + row * (g.head + g.tail), g.head + g.tail);
}

void gather_row(const RowGather& g, int64_t row, float* out) {
  const float* dense = g.dense + row * (g.head + g.tail);
  float* codes = std::copy_n(dense, g.head, out);
  std::copy_n(dense + g.head, g.tail, std::fill_n(codes, g.codes, 0.0F));
  const int64_t begin = g.starts[row], end = g.starts[row + 1];
  TORCH_CHECK(0 <= begin && begin <= end && end <= g.entries,
              "gather_rows: expected starts that rise within [0, E], got others");
  for (int64_t i = begin; i < end; ++i) {
    const int64_t code = g.positions[i];
    TORCH_CHECK(0 <= code && code < g.codes, "gather_rows: expected positions in [0, ", g.codes, "), got others");
    codes[code] = 1.0F;
  }
}

void check_operand(const char* name, const at::Tensor& tensor, int64_t dims, at::ScalarType type) {
  TORCH_CHECK(tensor.dim() == dims && tensor.scalar_type() == type && tensor.is_contiguous(), "gather_rows: expected ",
              name, " to be contiguous, of ", dims, " dimensions and type ", type, ", got sizes ", tensor.sizes(),
              ", strides ", tensor.strides(), " and type ", tensor.scalar_type());
  TORCH_CHECK(!tensor.requires_grad(), "gather_rows: expected ", name, " without requires_grad, got one with it");
}

}  // namespace

void gather_rows_cpu(at::Tensor out, const at::Tensor& rows, const at::Tensor& dense, const at::Tensor& starts,
                     const at::Tensor& positions, int64_t first_code) {
  check_operand("out", out, 2, at::kFloat);
  check_operand("rows", rows, 1, at::kLong);
  check_operand("dense", dense, 2, at::kFloat);
  check_operand("starts", starts, 1, at::kLong);
  check_operand("positions", positions, 1, at::kInt);
  TORCH_CHECK(out.size(0) == rows.size(0) && out.size(1) >= dense.size(1) && starts.size(0) == dense.size(0) + 1,
              "gather_rows: expected out (B, F >= D), rows (B,), dense (N, D) and starts (N + 1,), got ", out.sizes(),
              ", ", rows.sizes(), ", ", dense.sizes(), " and ", starts.sizes());
  TORCH_CHECK(0 <= first_code && first_code <= dense.size(1), "gather_rows: expected first_code in [0, ", dense.size(1),
              "], got ", first_code);
  for (const at::Tensor& read : {rows, dense, starts, positions})
    TORCH_CHECK(at::get_overlap_status(out, read) == at::MemOverlapStatus::No,
                "gather_rows: expected out in memory of its own, got some of an operand's");
  const RowGather g{rows.const_data_ptr<int64_t>(),
                    dense.const_data_ptr<float>(),
                    starts.const_data_ptr<int64_t>(),
                    positions.const_data_ptr<int32_t>(),
                    out.mutable_data_ptr<float>(),
                    rows.size(0),
                    positions.size(0),
                    first_code,
                    out.size(1) - dense.size(1),
                    dense.size(1) - first_code};
  for (int64_t n = 0; n < g.count; ++n)
    TORCH_CHECK(0 <= g.rows[n] && g.rows[n] < dense.size(0), "gather_rows: expected rows in [0, N), got others");
  for (int64_t n = 0; n < g.count; ++n) {
    if (n + 2 * kAhead < g.count) __builtin_prefetch(g.starts + g.rows[n + 2 * kAhead]);
    if (n + kAhead < g.count) prefetch_row(g, g.rows[n + kAhead]);
    gather_row(g, g.rows[n], g.out + n * out.size(1));
  }
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) { m.impl("gather_rows", &dpcgan::cpu::gather_rows_cpu); }
