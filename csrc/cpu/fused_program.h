// The layers of a sequential net and where their tensors lie on the fused path ("lanes = samples").
//
// A group of `lanes` rows (one vector) shares one block of values, which forward leaves in the workspace, and, while it
// goes backward, one block of scratch memory with its gradients. In either, element (channel c, position l) of a tensor
// is the vector of that element in the group's rows. Tensors that a convolution reads have margins of zeros, so that no
// inner loop tests for padding.
#pragma once

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <vector>

#include "../common/conv_geometry.h"

namespace dpcgan::cpu {

constexpr int kMaxLanes = 16;

enum class LayerKind : int64_t { kConv = 0, kConvTranspose = 1, kGroupNorm = 2, kActivation = 3 };
enum class Activation : int64_t { kLeakyRelu = 0, kTanh = 1, kSigmoid = 2, kSilu = 3 };
enum class NormMode : int64_t { kMaterialise = 0, kGram = 1 };

// Where a tensor of one group lies, in vectors from the start of the block that holds it.
struct LaneTensor {
  int64_t offset = 0;
  int64_t channels = 0;
  int64_t length = 0;
  int64_t left = 0;    // margin before position 0
  int64_t stride = 0;  // vectors from a channel to the next: left + length + right

  int64_t at(int64_t channel, int64_t position) const { return offset + channel * stride + left + position; }
  int64_t vectors() const { return channels * stride; }
};

struct FusedLayer {
  LayerKind kind;
  ConvGeometry conv{};    // of convolutions: x and g in the roles of conv_geometry.h, rows = 1
  bool has_bias = false;  // of convolutions
  NormMode mode = NormMode::kMaterialise;
  Activation activation = Activation::kLeakyRelu;
  int64_t norm_groups = 1;
  double number = 0;      // slope of a leaky ReLU, eps of a GroupNorm
  bool in_place = false;  // of an activation or a norm: its output overwrites its input

  // Among the values:
  LaneTensor in, out;
  int64_t statistics = 0;  // of GroupNorm: offset of mean and inverse deviation, two vectors a group of channels
  // In scratch memory:
  LaneTensor grad;     // gradient of `out`; of an activation or a norm it becomes that of `in` in place
  LaneTensor in_grad;  // gradient of `in`; of convolutions only

  // Offsets among the per-sample gradients that are kept, in vectors; -1 if there are none.
  int64_t kept_weight = -1;
  int64_t kept_bias = -1;
  // Offsets in the flat parameter vector.
  int64_t weight = -1;
  int64_t bias = -1;
  // Offsets of the packed weights, in floats.
  int64_t packed_forward = 0;
  int64_t packed_backward = 0;
  int64_t packed_sums = -1;  // of pairs of taps, if the layer goes by them (lane_pairs.h)

  bool is_conv() const { return kind == LayerKind::kConv || kind == LayerKind::kConvTranspose; }
  int64_t weight_numel() const { return is_conv() ? conv.weight_numel() : in.channels; }
  int64_t bias_numel() const { return is_conv() ? (has_bias ? out.channels : 0) : in.channels; }
  bool has_parameters() const { return kind != LayerKind::kActivation; }
};

struct FusedProgram {
  int64_t lanes = 0;
  int64_t rows = 0;
  bool keep = true;  // the values of every group, for backward
  std::vector<FusedLayer> layers;
  int64_t parameters = 0;       // floats of all weights and biases
  int64_t value_vectors = 0;    // of one group
  int64_t scratch_vectors = 0;  // of one group: gradients, then the kept per-sample gradients
  int64_t kept_offset = 0;      // of the latter
  int64_t kept_vectors = 0;
  int64_t packed_floats = 0;       // packed weights
  int64_t difference_vectors = 0;  // scratch of layers that go by pairs of taps

  int64_t groups() const { return ceil_div(rows, lanes); }
  // The workspace: a block of values for each group if they are kept, the parameters as one vector, the packed weights.
  int64_t parameters_offset() const { return keep ? groups() * value_vectors * lanes : 0; }
  int64_t packed_offset() const { return parameters_offset() + ceil_div<int64_t>(parameters, 16) * 16; }
  int64_t workspace_floats() const { return packed_offset() + packed_floats; }
};

// Of a layer: kind, out_channels, kernel, stride, padding, dilation, groups, bias, mode or activation, out_length.
constexpr int64_t kLayerInts = 10;
constexpr int64_t kBlockOutputs = 8;  // output channels of a packed block of weights
constexpr int64_t kPairRun = 8;       // positions of a residue for which differences of inputs are taken at a time

// layers: kLayerInts integers a layer; numbers: one a layer (slope or eps); keep: what backward needs.
// Raises c10::Error if the program does not describe a net.
FusedProgram parse_program(const char* op, c10::IntArrayRef layers, c10::ArrayRef<double> numbers, int64_t lanes,
                           int64_t rows, int64_t channels, int64_t length, bool keep = true);

}  // namespace dpcgan::cpu
