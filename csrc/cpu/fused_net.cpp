// A sequential net's forward, per-sample gradient norms, and clipped sum, "lanes = samples": a vector holds one element
// of as many rows as it has lanes, so that no row's arithmetic meets another's before the final sum.
//
// fused_forward keeps values in a workspace. fused_clipped_sum runs backward through it, a group of rows at a time,
// measures and clips each row, and adds it up while its gradients are still in the caches; it takes factors instead
// where other layers count for the norm, too, which fused_sq_norm then measures by a backward of its own. A row's
// gradient is formed in single precision, and rows are summed in double: what a row adds does not depend on which
// others there are.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "../checks.h"
#include "../common/clip.h"
#include "fused_group.h"
#include "fused_inputs.h"
#include "fused_program.h"
#include "lane_products.h"

namespace dpcgan::cpu {
namespace {

FusedProgram checked_program(const char* op, c10::IntArrayRef layers, c10::ArrayRef<double> numbers, int64_t lanes,
                             const Shape& shape, const at::Tensor& workspace) {
  check_lanes(op, lanes);
  FusedProgram program = parse_program(op, layers, numbers, lanes, shape.rows, shape.channels, shape.length);
  TORCH_CHECK(workspace.dim() == 1 && workspace.scalar_type() == at::kFloat && workspace.is_contiguous() &&
                  workspace.numel() >= program.workspace_floats(),
              op, ": expected a contiguous float32 workspace of at least ", program.workspace_floats(),
              " elements, got shape ", workspace.sizes());
  return program;
}

// A row that must be shrunk this far is dropped: single precision could not hold the factor, or what it scales.
constexpr double kLeastFactor = 0x1p-100;

// What the two backward ops share: the checked arguments, and each row's norm.
struct Backward {
  FusedProgram program;
  const float* base;
  Workspace workspace;
  at::Tensor contiguous;  // gradients of the output
  at::Tensor sq_norm, cancelled;
  const float* grads;
  double* norm_of_row;
  bool* cancelled_of_row;

  Backward(const char* op, const at::Tensor& grad_out, c10::IntArrayRef layers, c10::ArrayRef<double> numbers,
           int64_t lanes, int64_t channels, int64_t length, const at::Tensor& buffer)
      : program(checked_program(op, layers, numbers, lanes, {shape_of(op, grad_out).rows, channels, length}, buffer)),
        base(buffer.const_data_ptr<float>()),
        workspace(program, base),
        contiguous(grad_out.contiguous()),
        sq_norm(at::zeros({program.rows}, grad_out.options().dtype(at::kDouble))),
        cancelled(at::zeros({program.rows}, grad_out.options().dtype(at::kBool))),
        grads(contiguous.const_data_ptr<float>()),
        norm_of_row(sq_norm.mutable_data_ptr<double>()),
        cancelled_of_row(cancelled.mutable_data_ptr<bool>()) {
    const LaneTensor& last = program.layers.back().out;
    TORCH_CHECK(grad_out.size(1) == last.channels && grad_out.size(2) == last.length, op,
                ": expected grad_out of shape (B, ", last.channels, ", ", last.length, "), got ", grad_out.sizes());
  }

  int64_t first_row(int64_t group) const { return group * program.lanes; }
  int64_t rows_of(int64_t group) const { return std::min(program.lanes, program.rows - first_row(group)); }
  const float* values(int64_t group) const { return base + group * program.value_vectors * program.lanes; }
  int64_t scratch_floats() const { return program.scratch_vectors * program.lanes; }

  LaneGramScratch gram_scratch(const BackwardWants& wants) const {
    LaneGramScratch gram;
    for (const FusedLayer& layer : program.layers)
      if (layer.is_conv() && layer.mode == NormMode::kGram && wants.norms)
        reserve_gram(layer.conv, program.lanes, gram);
    return gram;
  }

  LaneNorms run(int64_t group, const BackwardWants& wants, float* scratch, LaneGramScratch& gram) {
    LaneNorms norms;
    zero_gradient_margins(program, scratch);
    lanes_dispatch(program.lanes, [&](auto width) DPCGAN_INLINE_BODY {
      constexpr int kBytes = decltype(width)::value;
      load_rows<kBytes>(grads, program.layers.back().grad, first_row(group), rows_of(group), scratch);
      backward_group<kBytes>(program, workspace, wants, values(group), scratch, gram, norms);
    });
    std::copy_n(norms.sq_norm, rows_of(group), norm_of_row + first_row(group));
    std::copy_n(norms.cancelled, rows_of(group), cancelled_of_row + first_row(group));
    return norms;
  }
};

}  // namespace

at::Tensor fused_forward_cpu(const at::Tensor& x, at::TensorList parameters, c10::IntArrayRef layers,
                             c10::ArrayRef<double> numbers, int64_t lanes, at::Tensor workspace) {
  const FusedProgram program =
      checked_program("fused_forward", layers, numbers, lanes, shape_of("fused_forward", x), workspace);
  float* base = workspace.mutable_data_ptr<float>();
  copy_parameters("fused_forward", program, parameters, base + program.parameters_offset());
  pack_all(program, base + program.parameters_offset(), base + program.packed_offset());
  const LaneTensor& last = program.layers.back().out;
  at::Tensor out = at::empty({program.rows, last.channels, last.length}, x.options());
  const at::Tensor contiguous = x.contiguous();
  const float* in = contiguous.const_data_ptr<float>();
  float* results = out.mutable_data_ptr<float>();
  const Workspace shared(program, base);
  at::parallel_for(0, program.groups(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      float* values = base + group * program.value_vectors * lanes;
      const int64_t first = group * lanes, count = std::min(lanes, program.rows - first);
      zero_value_margins(program, values);
      lanes_dispatch(lanes, [&](auto width) DPCGAN_INLINE_BODY {
        constexpr int kBytes = decltype(width)::value;
        load_rows<kBytes>(in, program.layers.front().in, first, count, values);
        forward_group<kBytes>(program, shared, values);
        store_rows<kBytes>(last, first, count, values, results);
      });
    }
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fused_sq_norm_cpu(const at::Tensor& grad_out, c10::IntArrayRef layers,
                                                                 c10::ArrayRef<double> numbers, int64_t lanes,
                                                                 int64_t channels, int64_t length, bool measure,
                                                                 bool input_grad, const at::Tensor& workspace) {
  Backward backward("fused_sq_norm", grad_out, layers, numbers, lanes, channels, length, workspace);
  const FusedProgram& program = backward.program;
  const FusedLayer& front = program.layers.front();
  const LaneTensor& in_grad = front.is_conv() ? front.in_grad : front.grad;
  at::Tensor grad_in = at::empty({input_grad ? program.rows : 0, channels, length}, grad_out.options());
  float* grads_in = grad_in.mutable_data_ptr<float>();
  const BackwardWants wants{measure, false, input_grad};
  at::parallel_for(0, program.groups(), 1, [&](int64_t begin, int64_t end) {
    const at::Tensor block = at::empty({backward.scratch_floats()}, at::kFloat);
    float* scratch = block.mutable_data_ptr<float>();
    LaneGramScratch gram = backward.gram_scratch(wants);
    for (int64_t group = begin; group < end; ++group) {
      backward.run(group, wants, scratch, gram);
      if (!input_grad) continue;
      lanes_dispatch(lanes, [&](auto width) DPCGAN_INLINE_BODY {
        store_rows<decltype(width)::value>(in_grad, backward.first_row(group), backward.rows_of(group), scratch,
                                           grads_in);
      });
    }
  });
  return {backward.sq_norm, backward.cancelled, grad_in};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fused_clipped_sum_cpu(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& factor, double max_grad_norm, c10::IntArrayRef layers,
    c10::ArrayRef<double> numbers, int64_t lanes, int64_t channels, int64_t length, const at::Tensor& workspace) {
  Backward backward("fused_clipped_sum", grad_out, layers, numbers, lanes, channels, length, workspace);
  const FusedProgram& program = backward.program;
  if (factor) check_row_factor("fused_clipped_sum", *factor, program.rows, workspace.device());
  TORCH_CHECK(max_grad_norm > 0, "fused_clipped_sum: expected max_grad_norm > 0, got ", max_grad_norm);
  const double* given = factor ? factor->const_data_ptr<double>() : nullptr;
  const BackwardWants wants{given == nullptr && std::isfinite(max_grad_norm), true, false};
  const auto row_factor = [&](const LaneNorms& norms, int64_t row, int64_t lane) {
    if (given != nullptr) return given[row];
    return norms.cancelled[lane] ? 0.0 : clip_factor(norms.sq_norm[lane], max_grad_norm);
  };
  const SumPlan plan(program, at::get_num_threads());
  const at::Tensor sums = at::zeros({plan.workers, plan.sum_count}, at::kDouble);
  double* worker_sums = sums.mutable_data_ptr<double>();
  at::parallel_for(0, plan.workers, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor block = at::empty({backward.scratch_floats()}, at::kFloat);
    const at::Tensor copied = at::empty({plan.copied_bytes}, at::kByte);
    float* scratch = block.mutable_data_ptr<float>();
    char* copies = reinterpret_cast<char*>(copied.mutable_data_ptr<uint8_t>());
    LaneGramScratch gram = backward.gram_scratch(wants);
    for (int64_t worker = begin; worker < end; ++worker) {
      const int64_t last = program.groups() * (worker + 1) / plan.workers;
      for (int64_t group = program.groups() * worker / plan.workers; group < last; ++group) {
        const LaneNorms norms = backward.run(group, wants, scratch, gram);
        float factors[kMaxLanes] = {};  // 0 beyond the batch
        for (int64_t lane = 0; lane < backward.rows_of(group); ++lane) {
          const double value = row_factor(norms, backward.first_row(group) + lane, lane);
          factors[lane] = value < kLeastFactor ? 0.0f : static_cast<float>(value);
        }
        add_rows(plan, backward.values(group), scratch, factors, copies, worker_sums + worker * plan.sum_count);
      }
    }
  });
  at::Tensor out = at::zeros({program.parameters}, grad_out.options().dtype(at::kDouble));
  join_worker_sums(plan, worker_sums, out.mutable_data_ptr<double>());
  return {out, backward.sq_norm, backward.cancelled};
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) {
  m.impl("fused_forward", &dpcgan::cpu::fused_forward_cpu);
  m.impl("fused_sq_norm", &dpcgan::cpu::fused_sq_norm_cpu);
  m.impl("fused_clipped_sum", &dpcgan::cpu::fused_clipped_sum_cpu);
}
