// Every op's schema, and nothing else. Implementations register at the foot of cpu/*.cpp and cuda/*_op.cpp; the
// Python side (dpcgan_fast/ops) has the public wrappers, the fake kernels and the float64 references.
//
// The three conv ops serve Conv1d, ConvTranspose1d and Linear; common/conv_geometry.h says which tensor is x and
// which is g for each. bias_role: 0 no bias, 1 the bias gradient is the sum of g, 2 it is the sum of x.
#include <torch/library.h>

TORCH_LIBRARY(dpcgan_fast, m) {
  // Squared L2 norm of each unit's weight (and bias) gradient.  x: (B, C, L)  g: (B, O, T)
  // returns (U,) float64
  m.def(
      "conv_sq_norm(Tensor x, Tensor g, int kernel_size, int stride, int padding, int dilation, int groups, "
      "int bias_role, str mode, Tensor? row_order=None, Tensor? unit_offsets=None) -> Tensor");
  // Per-sample gradients.  returns weight (B, O, C/groups, k) and bias (B, O or C or 0) in the dtype of x
  m.def(
      "conv_per_sample_grad(Tensor x, Tensor g, int kernel_size, int stride, int padding, int dilation, int groups, "
      "int bias_role) -> (Tensor, Tensor)");
  // sum_n factor[n] G_n; rows of factor 0 are not read.  factor: (B,) float64
  // returns weight (O, C/groups, k) and bias (O or C or 0), float64
  m.def(
      "conv_weighted_grad(Tensor x, Tensor g, Tensor factor, int kernel_size, int stride, "
      "int padding, int dilation, int groups, int bias_role) -> (Tensor, Tensor)");
  // Per-sample weight gradients of convolutions in two or three dimensions, on the CPU alone; adds their squared norms,
  // and writes the sums of g over positions to bias.  x: (B, C, ...)  g: (B, O, ...)
  // out: (B, O, *kernel_size, C/groups), of their dtype, as bias: (B, O)  sq_norm: (B,) float64
  m.def(
      "window_per_sample_grad_(Tensor(a!) out, Tensor(b!) sq_norm, Tensor(c!)? bias, Tensor x, Tensor g, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups) -> ()");
  // The clipped sums of such layers, each row's gradients formed once: scale sum_n factor[n] G_n with the factor, as
  // clip_factor has it, of the norm over these layers and others_sq_norm, (B,) float64, what all others add to it.
  // geometry: for each x and g, kernel_size, stride, padding, dilation, groups, and 1 with a bias that g adds up to.
  // returns factor (B,), weights (O, C/groups, taps of a channel) and biases (O or 0), float64
  m.def(
      "windows_clipped_sum(Tensor[] x, Tensor[] g, int[] geometry, Tensor others_sq_norm, float max_grad_norm, "
      "float scale) -> (Tensor, Tensor[], Tensor[])");
  // Per-sample gradients of GroupNorm's affine pair.  x, g: (B, C, S)  returns weight, bias: (B, C)
  m.def("group_norm_per_sample_grad(Tensor x, Tensor g, int groups, float eps) -> (Tensor, Tensor)");
  // Per-sample gradients of LayerNorm's affine pair; the last dimension is normalised.
  // x, g: (B, S, M)  returns weight, bias: (B, M)
  m.def("layer_norm_per_sample_grad(Tensor x, Tensor g, float eps) -> (Tensor, Tensor)");
  // Squared L2 norm of each unit's sum of rows, over all tensors.  grads[i]: (B, ...)  returns (U,) float64
  m.def("rows_sq_norm(Tensor[] grads, Tensor? row_order=None, Tensor? unit_offsets=None) -> Tensor");
  // sum_n factor[n] grads[n]; rows of factor 0 are not read.  grad: (B, ...)  factor: (B,)  returns (...) float64
  m.def("rows_weighted_sum(Tensor grad, Tensor factor) -> Tensor");
  // min(1, max_grad_norm (1 - 2^-20) / sqrt(sq_norm)); 0 where sq_norm is not finite, and for units from number `valid`
  // on, () int64 in the memory of the device.  (U,) float64 -> (U,) float64
  m.def("clip_factor(Tensor sq_norm, float max_grad_norm, Tensor? valid=None) -> Tensor");
  // Norms and clip factors of a whole step in one launch, on the GPU alone: of layers as in conv_sq_norm (geometry: its
  // six numbers and 1 for gram, 0 for direct, for each x and g) and of materialised gradients as in rows_sq_norm. In
  // float32 and bfloat16, direct norms are of the gradient as float32 sums it, which step_weighted_sum_ adds up.
  // returns squared norms (U,) float64 and factors (U,) float64, both 0 for units from number `valid` on
  m.def(
      "step_clip_factor(Tensor[] x, Tensor[] g, int[] geometry, Tensor[] grads, float max_grad_norm, "
      "Tensor? row_order=None, Tensor? unit_offsets=None, Tensor? valid=None) -> (Tensor, Tensor)");
  // Adds sum_n factor[n] G_n to the sums of all layers and materialised gradients of a step, on the GPU alone. In
  // float32 and bfloat16, G_n of a direct layer is the gradient that step_clip_factor measured, to the last bit.
  // factor: (B,) float64; rows of factor 0 are not read  weights, biases, sums: float64; of layers, and of grads
  m.def(
      "step_weighted_sum_(Tensor[] x, Tensor[] g, int[] geometry, Tensor[] grads, Tensor factor, "
      "Tensor(a!)[] weights, Tensor(b!)[] biases, Tensor(c!)[] sums) -> ()");
  // The fused path of a sequential net (cpu/fused_net.cpp), lanes = rows in a vector. layers: 10 integers a layer
  // (kind, out_channels, kernel, stride, padding, dilation, groups, bias, mode or activation, out_length); numbers:
  // slope or eps. x: (B, C, L) -> out (B, O, T); keeps what backward needs in the workspace
  m.def(
      "fused_forward(Tensor x, Tensor[] parameters, int[] layers, float[] numbers, int lanes, Tensor(a!) workspace) "
      "-> Tensor");
  // Backward through the workspace; it may be called again. returns squared norms (B,) float64; (B,) bool: rows whose
  // gradient cancels, to be taken by another path; and the gradient of x, with no rows unless input_grad. Without
  // `measure` a norm is 0, or NaN for a row that is not finite.
  m.def(
      "fused_sq_norm(Tensor grad_out, int[] layers, float[] numbers, int lanes, int channels, int length, "
      "bool measure, bool input_grad, Tensor workspace) -> (Tensor, Tensor, Tensor)");
  // Backward through the workspace, and sum_n factor[n] G_n over all parameters in order, (P,) float64; rows of factor
  // 0 are not read. factor: (B,) float64; without it, that of clip_factor for the row's norm, and 0 for a row whose
  // gradient cancels. returns the sum, and the rows' squared norms and (B,) bool as fused_sq_norm does if no factor is
  // given.
  m.def(
      "fused_clipped_sum(Tensor grad_out, Tensor? factor, float max_grad_norm, int[] layers, float[] numbers, "
      "int lanes, int channels, int length, Tensor workspace) -> (Tensor, Tensor, Tensor)");
  // The output of a net through which nothing goes backward; the values of its layers are not kept.
  m.def("fused_infer(Tensor x, Tensor[] parameters, int[] layers, float[] numbers, int lanes) -> Tensor");
  // Draws one cell of each block of a record: where uniform, (B, blocks) in [0, 1), falls among the cumulated chances
  // exp(logits + prior). logits: the net's output, (B, cells, T >= blocks)  prior: (K, blocks, cells), of which a row
  // takes that of its class, (B,) int64; -inf for a cell that a block does not have  last_cells: (blocks,) int64
  // returns (B, blocks) float32: numbers of cells, NaN where a logit is
  m.def(
      "fused_draw(Tensor x, Tensor[] parameters, int[] layers, float[] numbers, int lanes, Tensor prior, "
      "Tensor classes, Tensor uniform, Tensor last_cells) -> Tensor");
  // Fills out with numbers of [0, 1), multiples of 2^-24, from a ChaCha20 stream, on the CPU alone. out: float32
  // key: (8,) int32
  m.def("uniform_(Tensor(a!) out, Tensor key) -> ()");
  // Writes rows of a table into out, (B, F), on the CPU alone, by the calling thread alone: first_code columns, F - D
  // codes, the other columns. rows: (B,) int64 in [0, N)  dense: (N, D) float32  starts: (N + 1,) int64
  // positions: (E,) int32 in [0, F - D): row r has the codes positions[starts[r] : starts[r + 1]], 1 where all others
  // are 0
  m.def(
      "gather_rows(Tensor(a!) out, Tensor rows, Tensor dense, Tensor starts, Tensor positions, int first_code) -> ()");
  // Adds N(0, std^2) to each element in double and rounds once to the public grid. Element i of a tensor takes
  // normal i of a ChaCha20 stream that starts at block `counter` and a fresh block for each tensor.
  m.def("gaussian_noise_(Tensor(a!)[] tensors, float std, Tensor key, int counter) -> ()");
  // The end of a private step in one pass: parameters move by the optimizer's rule with the gradient
  //   (sums + N(0, std^2)) / divisor + public_sums / public_divisor
  // The noise is that of gaussian_noise_. first, second: the optimizer's moments, or empty; sums: float64; clamps: of
  // each parameter, which then lies in [-clamp, clamp], inf for none; or empty
  m.def(
      "noisy_update_(Tensor(a!)[] parameters, Tensor(b!)[] first, Tensor(c!)[] second, Tensor[] sums, "
      "Tensor[] public_sums, float std, Tensor key, int counter, float divisor, float public_divisor, str optimizer, "
      "float[] settings, float[] clamps=[]) -> ()");
  // The same with what changes from step to step read from memory, so that a CUDA graph can repeat it: control (15,)
  // int64 is an UpdateControl (common/update_rule.h). It does nothing unless `control` is armed, and clears it.
  m.def(
      "noisy_update_armed_(Tensor(a!)[] parameters, Tensor(b!)[] first, Tensor(c!)[] second, Tensor[] sums, "
      "Tensor[] public_sums, float std, Tensor(d!) control, str optimizer, float[] clamps=[]) -> ()");
}
