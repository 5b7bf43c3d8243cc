// Which rows of a batch add up to one gradient.
#pragma once

#include <limits>

#include "kernels.h"
#include "launch.cuh"

namespace dpcgan::cuda {

constexpr int64_t kNoRow = -1;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();  // what a row that does not exist adds to a sum

// Rows of one owner: a sample, a unit, or a slice of the batch.
struct RowSpan {
  const int64_t* order;  // null: rows follow one another from `begin` on
  int64_t begin;
  int64_t count;
  int64_t batch_rows;

  // Row number `index` of [0, count); kNoRow where the indices lie outside the batch.
  __device__ int64_t row(int64_t index) const {
    if (order == nullptr) return begin < 0 ? kNoRow : begin + index;
    const int64_t row = order[begin + index];
    return row >= 0 && row < batch_rows ? row : kNoRow;
  }
};

struct RowOwners {
  const int64_t* order;
  const int64_t* offsets;  // null: owner i holds rows [i rows_per_owner, (i + 1) rows_per_owner)
  int64_t owners;
  int64_t rows_per_owner;
  int64_t batch_rows;

  __device__ RowSpan span(int64_t owner) const {
    if (offsets == nullptr) {
      const int64_t begin = owner * rows_per_owner;
      return {nullptr, begin, smaller(rows_per_owner, batch_rows - begin), batch_rows};
    }
    const int64_t begin = offsets[owner], end = offsets[owner + 1];
    const bool inside = 0 <= begin && begin <= end && end <= batch_rows;
    return inside ? RowSpan{order, begin, end - begin, batch_rows} : RowSpan{nullptr, kNoRow, 1, batch_rows};
  }
};

inline RowOwners single_rows(int64_t rows) { return {nullptr, nullptr, rows, 1, rows}; }

inline RowOwners sliced_rows(int64_t rows, const RowSlices& cut) {
  return {nullptr, nullptr, cut.slices, cut.rows_per_slice, rows};
}

inline RowOwners unit_rows(int64_t rows, const UnitIndex& index) {
  if (index.unit_offsets == nullptr) return single_rows(rows);
  return {index.row_order, index.unit_offsets, index.units, 0, rows};
}

}  // namespace dpcgan::cuda
