// Geometry of the weight gradient that Conv1d, ConvTranspose1d and Linear share.
//
// All three have per-sample weight gradients of one form,
//   G[o, c, j] = sum_t g[o, t] * x[group(o) * C/groups + c, stride * t + dilation * j - padding],
// with the roles of `x` (sampled at strided positions) and `g` (one value a position t) as follows:
//   Conv1d:          x = input,        g = grad_output
//   ConvTranspose1d: x = grad_output,  g = input          (the adjoint swaps the roles)
//   Linear:          x = input,        g = grad_output, kernel 1, stride 1, t runs over the middle dimensions
// G has the layout of the layer's own weight in each case.
#pragma once

#include "host_device.h"

namespace dpcgan {

// The role whose plain sum over positions is the gradient of the bias.
enum class BiasRole : int { kNone = 0, kGrad = 1, kInput = 2 };

struct ConvGeometry {
  int64_t rows;         // B
  int64_t x_channels;   // C
  int64_t x_length;     // L
  int64_t g_channels;   // O
  int64_t g_length;     // T
  int64_t kernel_size;  // k
  int64_t stride;
  int64_t padding;
  int64_t dilation;
  int64_t groups;
  BiasRole bias;

  DPCGAN_HOST_DEVICE int64_t x_group_channels() const { return x_channels / groups; }
  DPCGAN_HOST_DEVICE int64_t g_group_channels() const { return g_channels / groups; }
  // Weights that one output channel owns: the (c, j) plane of G, row-major.
  DPCGAN_HOST_DEVICE int64_t taps() const { return x_group_channels() * kernel_size; }
  DPCGAN_HOST_DEVICE int64_t weight_numel() const { return g_channels * taps(); }
  DPCGAN_HOST_DEVICE int64_t bias_numel() const {
    return bias == BiasRole::kNone ? 0 : bias == BiasRole::kGrad ? g_channels : x_channels;
  }
  // Additions on the way from a product to the Gram norm of so many rows together: over channels and taps, positions
  // and lags, the rows of a pair. Its rounding grows with them.
  DPCGAN_HOST_DEVICE int64_t gram_depth(int64_t rows_together) const {
    return taps() + g_group_channels() + 3 * g_length + 2 * rows_together;
  }
  // Position in x that tap j reads at t; outside [0, x_length) it is padding, that is, zero.
  DPCGAN_HOST_DEVICE int64_t x_position(int64_t t, int64_t j) const { return stride * t + dilation * j - padding; }
  DPCGAN_HOST_DEVICE bool inside(int64_t position) const { return position >= 0 && position < x_length; }
};

// Element strides of a (rows, channels, length) operand, so that Linear's (rows, length, channels) needs no copy.
struct OperandStrides {
  int64_t row;
  int64_t channel;
  int64_t position;
};

template <class T>
struct ConvOperands {
  const T* x;
  OperandStrides x_strides;
  const T* g;
  OperandStrides g_strides;
};

// Polyphase view of x for the Gram norm:
//   sum_j x[s t + j] x[s t' + j] = sum_{m < folds} S[t + m, t' + m],  S[q, q'] = sum_{phase} x[s q + phase] x[s q' +
//   phase]
// which needs no unfolding and costs `phases` products a pair where unfolding costs kernel_size.
// A dilated kernel has no such fold; there every tap is a phase of its own and folds = 1. So it is, too, with more
// folds than the caller has room for, and where few positions share few columns: one position is one product a tap.
struct PolyphaseGeometry {
  int64_t phases;       // products for one (q, q') and channel
  int64_t folds;        // shifted adds, ceil(k / s)
  int64_t last_phases;  // phases of the last fold, k - (folds - 1) s
  int64_t columns;      // Q, columns of the polyphase view

  DPCGAN_HOST_DEVICE explicit PolyphaseGeometry(const ConvGeometry& conv, int64_t max_folds = INT64_MAX) {
    const int64_t most = ceil_div(conv.kernel_size, conv.stride), folded_columns = conv.g_length + most - 1;
    const bool folded =
        conv.dilation == 1 && conv.stride < conv.kernel_size && most <= max_folds &&
        folded_columns * (folded_columns + 1) * conv.stride < conv.g_length * (conv.g_length + 1) * conv.kernel_size;
    phases = folded ? conv.stride : conv.kernel_size;
    folds = folded ? most : 1;
    last_phases = folded ? conv.kernel_size - (folds - 1) * conv.stride : conv.kernel_size;
    columns = conv.g_length + folds - 1;
  }
};

// x position of (column, phase): stride * column + phase when folded; with one fold, phases are dilated taps.
DPCGAN_HOST_DEVICE int64_t polyphase_position(const ConvGeometry& conv, int64_t column, int64_t phase) {
  return conv.stride * column + conv.dilation * phase - conv.padding;
}

}  // namespace dpcgan
