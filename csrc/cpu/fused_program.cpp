#include "fused_program.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace dpcgan::cpu {
namespace {

struct Margins {
  int64_t left = 0, right = 0;
};

// Of the tensor that a convolution samples at stride * t + dilation * j - padding.
Margins strided_margins(const ConvGeometry& conv) {
  const int64_t last = conv.stride * (conv.g_length - 1) + conv.dilation * (conv.kernel_size - 1) - conv.padding;
  return {conv.padding, std::max<int64_t>(0, last - (conv.x_length - 1))};
}

// Of the tensor over t, which the adjoint reads at (position + padding - dilation * j) / stride.
Margins position_margins(const ConvGeometry& conv) {
  const int64_t before = conv.dilation * (conv.kernel_size - 1) - conv.padding;
  const int64_t last = (conv.x_length - 1 + conv.padding) / conv.stride;
  return {before > 0 ? ceil_div(before, conv.stride) : 0, std::max<int64_t>(0, last - (conv.g_length - 1))};
}

// Hands out places in a block.
class Places {
 public:
  int64_t take(int64_t vectors) {
    const int64_t offset = next_;
    next_ += vectors;
    return offset;
  }
  LaneTensor tensor(int64_t channels, int64_t length, Margins margins) {
    LaneTensor made{0, channels, length, margins.left, margins.left + length + margins.right};
    made.offset = take(made.vectors());
    return made;
  }
  int64_t used() const { return next_; }

 private:
  int64_t next_ = 0;
};

ConvGeometry geometry(const FusedLayer& layer, const int64_t* ints, int64_t channels, int64_t length) {
  const bool transposed = layer.kind == LayerKind::kConvTranspose;
  const int64_t out_channels = ints[1], out_length = ints[9];
  return ConvGeometry{1,
                      transposed ? out_channels : channels,
                      transposed ? out_length : length,
                      transposed ? channels : out_channels,
                      transposed ? length : out_length,
                      ints[2],
                      ints[3],
                      ints[4],
                      ints[5],
                      ints[6],
                      BiasRole::kNone};
}

Margins input_margins(const FusedLayer& layer) {
  if (!layer.is_conv()) return {};
  return layer.kind == LayerKind::kConv ? strided_margins(layer.conv) : position_margins(layer.conv);
}

Margins gradient_margins(const FusedLayer& layer) {
  if (!layer.is_conv()) return {};
  return layer.kind == LayerKind::kConv ? position_margins(layer.conv) : strided_margins(layer.conv);
}

int64_t packed_size(int64_t outputs, int64_t inputs, int64_t kernel, int64_t groups) {
  return groups * ceil_div(outputs / groups, kBlockOutputs) * kBlockOutputs * (inputs / groups) * kernel;
}

// Whether each output reads two neighbouring inputs: three products are then enough for two outputs. Fewer channels
// than half a block of outputs leave most of it empty, and are quicker one by one.
bool goes_by_pairs(const FusedLayer& layer) {
  const ConvGeometry& conv = layer.conv;
  return layer.kind == LayerKind::kConvTranspose && conv.dilation == 1 && conv.kernel_size == 2 * conv.stride &&
         2 * conv.x_group_channels() > kBlockOutputs;
}

FusedLayer parse_layer(const char* op, const int64_t* ints, double number, int64_t channels, int64_t length) {
  FusedLayer layer{static_cast<LayerKind>(ints[0])};
  layer.number = number;
  TORCH_CHECK(ints[0] >= 0 && ints[0] <= 3, op, ": expected a layer kind in [0, 3], got ", ints[0]);
  if (layer.is_conv()) {
    for (int i : {1, 2, 3, 5, 6, 9})
      TORCH_CHECK(ints[i] > 0, op, ": expected positive sizes of a convolution, got ", ints[i]);
    TORCH_CHECK(ints[4] >= 0, op, ": expected padding >= 0, got ", ints[4]);
    TORCH_CHECK(channels % ints[6] == 0 && ints[1] % ints[6] == 0, op, ": expected groups=", ints[6],
                " to divide the channels, got ", channels, " and ", ints[1]);
    layer.conv = geometry(layer, ints, channels, length);
    layer.has_bias = ints[7] != 0;
    TORCH_CHECK(ints[8] == 0 || ints[8] == 1, op, ": expected a norm mode in [0, 1], got ", ints[8]);
    layer.mode = static_cast<NormMode>(ints[8]);
    const int64_t reach = ints[5] * (ints[2] - 1) + 1;  // of a kernel
    if (layer.kind == LayerKind::kConv) {
      TORCH_CHECK(length + 2 * ints[4] >= reach && (length + 2 * ints[4] - reach) / ints[3] + 1 == ints[9], op,
                  ": expected the output length of the convolution, got ", ints[9]);
    } else {
      const int64_t extra = ints[9] - ((length - 1) * ints[3] - 2 * ints[4] + reach);
      TORCH_CHECK(extra >= 0 && extra < std::max(ints[3], ints[5]), op,
                  ": expected the output length of the transposed convolution, got ", ints[9]);
    }
  } else if (layer.kind == LayerKind::kGroupNorm) {
    layer.norm_groups = ints[6];
    TORCH_CHECK(ints[6] > 0 && channels % ints[6] == 0, op, ": expected norm groups that divide ", channels,
                " channels, got ", ints[6]);
  } else {
    TORCH_CHECK(ints[8] >= 0 && ints[8] <= 3, op, ": expected an activation in [0, 3], got ", ints[8]);
    layer.activation = static_cast<Activation>(ints[8]);
  }
  return layer;
}

// An activation may overwrite its input unless something needs that input later: SiLU's own derivative, or that of an
// activation before it, which reads it off its output. Without backward nothing does, and norms overwrite theirs, too.
void decide_in_place(std::vector<FusedLayer>& layers, bool keep) {
  const auto reads_output = [](const FusedLayer& layer) {
    return layer.kind == LayerKind::kActivation && layer.activation != Activation::kSilu;
  };
  for (size_t i = 0; i < layers.size(); ++i)
    layers[i].in_place =
        keep ? reads_output(layers[i]) && (i == 0 || !reads_output(layers[i - 1])) : !layers[i].is_conv();
}

void place_values(FusedProgram& program, Places& places, int64_t channels, int64_t length) {
  // Margins of the value after layer i are those of the next layer that is not done in place.
  const auto margins_after = [&](size_t i) {
    while (i < program.layers.size() && program.layers[i].in_place) ++i;
    return i < program.layers.size() ? input_margins(program.layers[i]) : Margins{};
  };
  LaneTensor value = places.tensor(channels, length, margins_after(0));
  for (size_t i = 0; i < program.layers.size(); ++i) {
    FusedLayer& layer = program.layers[i];
    layer.in = value;
    if (layer.is_conv()) {
      const bool conv = layer.kind == LayerKind::kConv;
      value = places.tensor(conv ? layer.conv.g_channels : layer.conv.x_channels,
                            conv ? layer.conv.g_length : layer.conv.x_length, margins_after(i + 1));
    } else if (!layer.in_place) {
      value = places.tensor(value.channels, value.length, margins_after(i + 1));
    }
    layer.out = value;
    if (layer.kind == LayerKind::kGroupNorm) layer.statistics = places.take(2 * layer.norm_groups);
  }
}

void place_gradients(FusedProgram& program, Places& places) {
  // A gradient lives from one convolution's input to the output of the one before it.
  const auto margins_before = [&](int64_t i) {
    while (i >= 0 && !program.layers[i].is_conv()) --i;
    return i >= 0 ? gradient_margins(program.layers[i]) : Margins{};
  };
  const LaneTensor& last = program.layers.back().out;
  const int64_t count = static_cast<int64_t>(program.layers.size());
  LaneTensor grad = places.tensor(last.channels, last.length, margins_before(count - 1));
  for (int64_t i = count - 1; i >= 0; --i) {
    FusedLayer& layer = program.layers[i];
    layer.grad = grad;
    if (!layer.is_conv()) continue;
    grad = places.tensor(layer.in.channels, layer.in.length, margins_before(i - 1));
    layer.in_grad = grad;
  }
}

void place_parameters(FusedProgram& program, Places& places) {
  int64_t kept = 0, packed = 0;
  for (FusedLayer& layer : program.layers) {
    if (!layer.has_parameters()) continue;
    layer.weight = program.parameters;
    layer.bias = program.parameters + layer.weight_numel();
    program.parameters += layer.weight_numel() + layer.bias_numel();
    if (!layer.is_conv() || layer.mode == NormMode::kMaterialise) {
      layer.kept_weight = kept;
      kept += layer.weight_numel();
    }
    layer.kept_bias = kept;
    kept += layer.bias_numel();
    if (layer.is_conv()) {
      const ConvGeometry& conv = layer.conv;
      layer.packed_forward = packed;
      packed += packed_size(layer.out.channels, layer.in.channels, conv.kernel_size, conv.groups);
      layer.packed_backward = packed;
      packed += packed_size(layer.in.channels, layer.out.channels, conv.kernel_size, conv.groups);
      if (!program.keep && goes_by_pairs(layer)) {
        layer.packed_sums = packed;
        packed += packed_size(layer.out.channels, layer.in.channels, conv.stride, conv.groups);
        program.difference_vectors = std::max(program.difference_vectors, conv.g_group_channels() * (kPairRun + 2));
      }
    }
  }
  program.kept_vectors = kept;
  program.kept_offset = places.take(kept);
  program.packed_floats = packed;
}

}  // namespace

FusedProgram parse_program(const char* op, c10::IntArrayRef layers, c10::ArrayRef<double> numbers, int64_t lanes,
                           int64_t rows, int64_t channels, int64_t length, bool keep) {
  const int64_t count = static_cast<int64_t>(numbers.size());
  TORCH_CHECK(count > 0 && static_cast<int64_t>(layers.size()) == count * kLayerInts, op, ": expected ", kLayerInts,
              " integers a layer and at least one layer, got ", layers.size(), " for ", count, " layers");
  TORCH_CHECK(lanes == 4 || lanes == 8 || lanes == 16, op, ": expected 4, 8 or 16 lanes, got ", lanes);
  TORCH_CHECK(channels > 0 && length > 0, op, ": expected x of shape (B, C, L) with C, L > 0, got C=", channels,
              " and L=", length);
  FusedProgram program;
  program.lanes = lanes;
  program.rows = rows;
  program.keep = keep;
  const int64_t in_channels = channels, in_length = length;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* ints = layers.data() + i * kLayerInts;
    const FusedLayer layer = parse_layer(op, ints, numbers[i], channels, length);
    program.layers.push_back(layer);
    if (layer.is_conv()) {
      channels = ints[1];
      length = ints[9];
    }
  }
  decide_in_place(program.layers, keep);
  Places values, scratch;
  place_values(program, values, in_channels, in_length);
  place_gradients(program, scratch);
  place_parameters(program, scratch);
  program.value_vectors = values.used();
  program.scratch_vectors = scratch.used();
  return program;
}

}  // namespace dpcgan::cpu
