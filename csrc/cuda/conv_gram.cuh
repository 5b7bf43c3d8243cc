// The Gram form of a squared norm on the GPU: sum_{t,t'} (g^T g)[t,t'] A[t,t'] with A from the polyphase view of x, lag
// by lag t' - t, without forming a gradient. A block takes one lag of one unit and channel group at a time.
#pragma once

#include "../common/cancellation.h"
#include "../common/conv_geometry.h"
#include "rows.cuh"

namespace dpcgan::cuda {

constexpr int kGramThreads = 128;
constexpr int64_t kGramPositions = 128;  // positions of a lag that are held in shared memory at a time
constexpr int64_t kMaxFolds = 65;        // a kernel of more strides is taken tap by tap

struct GramShared {
  double full[kGramPositions + kMaxFolds - 1];  // products of two columns over all phases
  double last[kGramPositions + kMaxFolds - 1];  // and over the phases of the last fold
  double scratch[kGramThreads];
};

template <class T>
struct GramProblem {
  const ConvGeometry& conv;
  PolyphaseGeometry poly;
  ConvOperands<T> data;
  unsigned column_lanes;  // threads of a block side by side along the columns; the others share channels
};

inline unsigned gram_column_lanes(int64_t positions) {
  unsigned lanes = 1;
  while (lanes < kGramThreads && lanes < positions) lanes *= 2;
  return lanes;
}

// A pair of rows at one lag, and one channel group.
struct GramPair {
  int64_t first_row, second_row;
  int64_t group;
  int64_t lag;
};

// Sum over the threads that share a column; valid in the first of them, which has line lane 0.
__device__ double line_sum(double value, unsigned column_lanes, double* scratch) {
  __syncthreads();  // the values of an earlier call have been read
  scratch[threadIdx.x] = value;
  __syncthreads();
  if (threadIdx.x >= column_lanes) return 0;
  double sum = 0;
  for (unsigned lane = threadIdx.x; lane < kGramThreads; lane += column_lanes) sum += scratch[lane];
  return sum;
}

template <class T>
__device__ double column_value(const GramProblem<T>& problem, const T* line, int64_t column, int64_t phase) {
  const int64_t position = polyphase_position(problem.conv, column, phase);
  return problem.conv.inside(position) ? static_cast<double>(line[position * problem.data.x_strides.position]) : 0.0;
}

// Fills shared.full and shared.last for the columns [first, first + columns) of the pair's first row. The threads of
// line lane 0 may read them after the next call of line_sum, whose barriers they share.
template <class T>
__device__ void multiply_columns(const GramProblem<T>& problem, const GramPair& pair, int64_t first, int64_t columns,
                                 GramShared& shared) {
  const OperandStrides& strides = problem.data.x_strides;
  const int64_t channels = problem.conv.x_group_channels();
  const T* x = problem.data.x + pair.group * channels * strides.channel;
  const unsigned line_lane = threadIdx.x / problem.column_lanes, line_lanes = kGramThreads / problem.column_lanes;
  for (int64_t base = 0; base < columns; base += problem.column_lanes) {
    const int64_t column = base + threadIdx.x % problem.column_lanes;
    double last = 0, rest = 0;
    for (int64_t c = line_lane; column < columns && c < channels; c += line_lanes) {
      const T* a = x + pair.first_row * strides.row + c * strides.channel;
      const T* b = x + pair.second_row * strides.row + c * strides.channel;
      for (int64_t phase = 0; phase < problem.poly.phases; ++phase) {
        const double product = column_value(problem, a, first + column, phase) *
                               column_value(problem, b, first + column + pair.lag, phase);
        (phase < problem.poly.last_phases ? last : rest) += product;
      }
    }
    last = line_sum(last, problem.column_lanes, shared.scratch);
    rest = line_sum(rest, problem.column_lanes, shared.scratch);
    if (line_lane == 0 && column < columns) {
      shared.last[column] = last;
      shared.full[column] = last + rest;
    }
  }
}

// (g^T g)[t, t + lag]; valid in line lane 0.
template <class T>
__device__ double multiply_outputs(const GramProblem<T>& problem, const GramPair& pair, int64_t t, bool exists,
                                   GramShared& shared) {
  const OperandStrides& strides = problem.data.g_strides;
  const int64_t outputs = problem.conv.g_group_channels();
  const T* g = problem.data.g + pair.group * outputs * strides.channel;
  double sum = 0;
  for (int64_t o = threadIdx.x / problem.column_lanes; exists && o < outputs; o += kGramThreads / problem.column_lanes)
    sum += static_cast<double>(g[pair.first_row * strides.row + o * strides.channel + t * strides.position]) *
           g[pair.second_row * strides.row + o * strides.channel + (t + pair.lag) * strides.position];
  return line_sum(sum, problem.column_lanes, shared.scratch);
}

// Adds the thread's share of what a pair of rows contributes to the norm, and a row with itself to the bound.
template <class T>
__device__ void add_pair(const GramProblem<T>& problem, const GramPair& pair, GramShared& shared,
                         NormAndBound& result) {
  const int64_t pairs = problem.conv.g_length - pair.lag, folds = problem.poly.folds;
  for (int64_t first = 0; first < pairs; first += kGramPositions) {
    const int64_t positions = smaller(kGramPositions, pairs - first);
    multiply_columns(problem, pair, first, positions + folds - 1, shared);
    for (int64_t base = 0; base < positions; base += problem.column_lanes) {
      const int64_t t = base + threadIdx.x % problem.column_lanes;
      const double outputs = multiply_outputs(problem, pair, first + t, t < positions, shared);
      if (threadIdx.x >= problem.column_lanes || t >= positions) continue;
      double inputs = shared.last[t + folds - 1];
      for (int64_t m = 0; m + 1 < folds; ++m) inputs += shared.full[t + m];
      result.sq_norm += inputs * outputs;
      if (pair.first_row == pair.second_row && pair.lag == 0) result.bound += sqrt(inputs * outputs);
    }
  }
}

// The thread's share of one lag of a unit and channel group. bound_only: no products of different rows
template <class T>
__device__ NormAndBound gram_lag(const GramProblem<T>& problem, const RowSpan& rows, int64_t group, int64_t lag,
                                 bool bound_only, GramShared& shared) {
  NormAndBound result;
  for (int64_t i = 0; i < rows.count; ++i) {
    NormAndBound row;  // apart, so that rounding grows with the rows and not with their pairs
    for (int64_t j = bound_only ? i : 0; j < (bound_only ? i + 1 : rows.count); ++j) {
      const GramPair pair{rows.row(i), rows.row(j), group, lag};
      if (pair.first_row == kNoRow || pair.second_row == kNoRow) {
        row.sq_norm = kNan;
      } else {
        add_pair(problem, pair, shared, row);
      }
    }
    result.sq_norm += row.sq_norm;
    result.bound += row.bound;
  }
  // Ordered pairs of rows at lags > 0 stand for the lags < 0 of the swapped pair too.
  if (lag > 0) result.sq_norm *= 2;
  return result;
}

}  // namespace dpcgan::cuda
