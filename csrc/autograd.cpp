// No op has a derivative. Without this, a backward through one would leave its share of the gradient out and only warn
// of it. Ops that mutate are left out: they refuse, or are not given, what requires a gradient.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

TORCH_LIBRARY_IMPL(dpcgan_fast, Autograd, m) {
  for (const char* op : {"conv_sq_norm", "conv_per_sample_grad", "conv_weighted_grad", "window_sq_norm",
                         "window_weighted_grad", "windows_clipped_sum", "group_norm_per_sample_grad",
                         "layer_norm_per_sample_grad", "rows_sq_norm", "rows_weighted_sum", "clip_factor",
                         "step_clip_factor", "fused_sq_norm", "fused_clipped_sum", "fused_infer", "fused_draw"})
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
}
