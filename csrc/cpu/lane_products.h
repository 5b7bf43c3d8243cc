// The clip-weighted sum over rows of convolutions' weight gradients, as products of the batch:
//   W[row, column] = sum over rows n and positions t of a scalar times a vector,
// where one of x and g is the vector side, whose channels fill the vectors, and the other the scalar side, whose rows
// are its channels (g) or its channels' taps (x). A worker copies both sides of a group into row order, the vector
// side scaled by the clip factors, and adds their products to sums of its own.
//
// What a row adds does not depend on which other rows there are: sums over rows are in double throughout. With few
// positions the products are in double, too; with more, each row's sum over positions is in single precision.
#pragma once

#include <vector>

#include "fused_program.h"
#include "lane_rows.h"

namespace dpcgan::cpu {

struct WeightProduct {
  const FusedLayer* layer;
  bool in_double;    // the products; else each row's sum is in single precision
  bool x_is_vector;  // else g is
  int64_t conv_group;
  int64_t channels, padded;  // of the vector side; the latter fills whole vectors
  int64_t vector_length;     // positions of the vector side's copy, margins included
  int64_t scalar_channels;   // of the scalar side
  int64_t scalar_length;     // positions of the scalar side's copy, margins included, in whole vectors
  int64_t row_count;         // scalars: outputs, or taps of inputs
  int64_t column_count;      // vectors: blocks of channels, times taps where x is the vector side
  int64_t unit;              // channels of one vector
  int64_t tile_rows;         // rows of a tile
  int64_t sums = 0;          // offset of the sums, in doubles

  const ConvGeometry& conv() const { return layer->conv; }
  int64_t real_bytes() const { return in_double ? 8 : 4; }
  // The copies of a group: the vector side, [vector of channels][row][position][channel], then the scalar side,
  // [channel][row][position].
  int64_t vector_numel() const { return vector_length * padded; }  // of a row
  int64_t scalar_numel() const { return scalar_channels * scalar_length; }
  int64_t row_bytes() const { return ceil_div<int64_t>((vector_numel() + scalar_numel()) * real_bytes(), 64) * 64; }
  int64_t padded_rows() const { return ceil_div(row_count, tile_rows) * tile_rows; }
  int64_t sum_count() const { return padded_rows() * column_count * unit; }
  // Vectors of the tile that begins at a column.
  int64_t tile_columns(int64_t column) const { return product_columns(column_count - column); }
  // Where the sums of a tile's first row and column lie; in a tile they are [row][column][channel of the vector].
  int64_t tile_sums(int64_t first_row, int64_t first_column) const {
    return sums + (first_row * column_count + first_column * tile_rows) * unit;
  }
  // The weight of a row and the first channel of a column, and the step to the next channel.
  int64_t weight_at(int64_t row, int64_t column) const;
  int64_t weight_step() const { return x_is_vector ? conv().kernel_size : conv().taps(); }
};

// How workers sum rows, a group at a time.
struct SumPlan {
  const FusedProgram& program;
  std::vector<WeightProduct> products;
  int64_t copied_bytes = 0;  // of a group, the largest product's
  int64_t sum_count = 0;     // doubles of a worker: the products' sums, then those of kept gradients
  int64_t kept_sums = 0;     // offset of the latter
  int64_t workers = 1;

  // threads: how many may work
  SumPlan(const FusedProgram& program, int64_t threads);
};

// Adds a group's rows, each times its factor, to a worker's sums.
// factor: a float a lane; copies: scratch memory of plan.copied_bytes, 64-byte aligned.
void add_rows(const SumPlan& plan, const float* values, const float* scratch, const float* factor, char* copies,
              double* sums);

// The sums of all workers, in the order of the program's parameters. out: zeros.
void join_worker_sums(const SumPlan& plan, const double* sums, double* out);

}  // namespace dpcgan::cpu
