// A sequential net's output where nothing goes backward: values of one group of rows stay in the caches and are gone
// after it. fused_draw goes on to draw a cell of each block from the output, which is never written to memory.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "fused_group.h"
#include "fused_inputs.h"
#include "fused_program.h"
#include "lane_draw.h"

namespace dpcgan::cpu {
namespace {

// A net that keeps nothing, and what its kernels read.
struct Inference {
  FusedProgram program;
  at::Tensor contiguous, weights;
  Workspace workspace;

  Inference(const char* op, const at::Tensor& x, at::TensorList parameters, c10::IntArrayRef layers,
            c10::ArrayRef<double> numbers, int64_t lanes)
      : program(checked(op, x, layers, numbers, lanes)),
        contiguous(x.contiguous()),
        weights(at::empty({program.workspace_floats()}, x.options())),
        workspace(program, weights.const_data_ptr<float>()) {
    float* base = weights.mutable_data_ptr<float>();
    copy_parameters(op, program, parameters, base + program.parameters_offset());
    pack_all(program, base + program.parameters_offset(), base + program.packed_offset());
  }

  const LaneTensor& out() const { return program.layers.back().out; }

  // Calls take(width, first row, rows, values) for each group after its forward; `values` has `more` vectors at its
  // end.
  void each_group(int64_t more, auto take) const {
    const float* in = contiguous.const_data_ptr<float>();
    const int64_t lanes = program.lanes;
    at::parallel_for(0, program.groups(), 1, [&](int64_t begin, int64_t end) {
      const at::Tensor block =
          at::empty({(program.difference_vectors + program.value_vectors + more) * lanes}, contiguous.options());
      float* differences = block.mutable_data_ptr<float>();
      float* values = differences + program.difference_vectors * lanes;
      zero_value_margins(program, values);  // nothing writes there
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * lanes, count = std::min(lanes, program.rows - first);
        lanes_dispatch(lanes, [&](auto width) DPCGAN_INLINE_BODY {
          constexpr int kBytes = decltype(width)::value;
          load_rows<kBytes>(in, program.layers.front().in, first, count, values);
          forward_group<kBytes>(program, workspace, values, differences);
          take(width, first, count, values);
        });
      }
    });
  }

 private:
  static FusedProgram checked(const char* op, const at::Tensor& x, c10::IntArrayRef layers,
                              c10::ArrayRef<double> numbers, int64_t lanes) {
    check_lanes(op, lanes);
    const Shape shape = shape_of(op, x);
    return parse_program(op, layers, numbers, lanes, shape.rows, shape.channels, shape.length, false);
  }
};

void check_draw(const LaneTensor& logits, int64_t rows, const at::Tensor& prior, const at::Tensor& classes,
                const at::Tensor& uniform, const at::Tensor& last_cells) {
  TORCH_CHECK(prior.dim() == 3 && prior.size(1) <= logits.length && prior.size(2) == logits.channels &&
                  uniform.sizes() == at::IntArrayRef({rows, prior.size(1)}),
              "fused_draw: expected logits (B, cells, T), prior (K, blocks, cells) and uniform (B, blocks), got (",
              rows, ", ", logits.channels, ", ", logits.length, "), ", prior.sizes(), " and ", uniform.sizes());
  TORCH_CHECK(classes.sizes() == at::IntArrayRef({rows}) && last_cells.sizes() == at::IntArrayRef({prior.size(1)}),
              "fused_draw: expected classes (B,) and last_cells (blocks,), got ", classes.sizes(), " and ",
              last_cells.sizes());
  for (const at::Tensor& tensor : {prior, uniform})
    TORCH_CHECK(tensor.scalar_type() == at::kFloat, "fused_draw: expected float32, got ", tensor.scalar_type());
  for (const at::Tensor& tensor : {classes, last_cells})
    TORCH_CHECK(tensor.scalar_type() == at::kLong, "fused_draw: expected int64, got ", tensor.scalar_type());
}

}  // namespace

at::Tensor fused_infer_cpu(const at::Tensor& x, at::TensorList parameters, c10::IntArrayRef layers,
                           c10::ArrayRef<double> numbers, int64_t lanes) {
  const Inference net("fused_infer", x, parameters, layers, numbers, lanes);
  at::Tensor out = at::empty({net.program.rows, net.out().channels, net.out().length}, x.options());
  float* results = out.mutable_data_ptr<float>();
  net.each_group(0, [&](auto width, int64_t first, int64_t count, float* values) DPCGAN_INLINE_BODY {
    store_rows<decltype(width)::value>(net.out(), first, count, values, results);
  });
  return out;
}

at::Tensor fused_draw_cpu(const at::Tensor& x, at::TensorList parameters, c10::IntArrayRef layers,
                          c10::ArrayRef<double> numbers, int64_t lanes, const at::Tensor& prior,
                          const at::Tensor& classes, const at::Tensor& uniform, const at::Tensor& last_cells) {
  const Inference net("fused_draw", x, parameters, layers, numbers, lanes);
  check_draw(net.out(), net.program.rows, prior, classes, uniform, last_cells);
  const at::Tensor p = prior.contiguous(), k = classes.contiguous(), u = uniform.contiguous(),
                   last = last_cells.contiguous();
  const int64_t* of_row = k.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < net.program.rows; ++n)
    TORCH_CHECK(of_row[n] >= 0 && of_row[n] < p.size(0), "fused_draw: expected classes in [0, ", p.size(0), "), got ",
                of_row[n]);
  const int64_t blocks = p.size(1), cells = p.size(2);
  at::Tensor out = at::empty({net.program.rows, blocks}, x.options());
  const CellDraw draw{p.const_data_ptr<float>(), of_row, last.const_data_ptr<int64_t>(), cells, blocks};
  const LaneTensor drawn{net.program.value_vectors, 1, blocks, 0, blocks};
  const float* numbers_in = u.const_data_ptr<float>();
  float* results = out.mutable_data_ptr<float>();
  net.each_group(blocks + cells, [&](auto width, int64_t first, int64_t count, float* values) DPCGAN_INLINE_BODY {
    constexpr int kBytes = decltype(width)::value;
    load_rows<kBytes>(numbers_in, drawn, first, count, values);
    float* uniform_lanes = values + drawn.offset * net.program.lanes;
    draw_group<kBytes>(draw, LanePrior<kBytes>(draw, first, count), net.out(), values, uniform_lanes,
                       uniform_lanes + blocks * net.program.lanes);
    store_rows<kBytes>(drawn, first, count, values, results);
  });
  return out;
}

}  // namespace dpcgan::cpu

TORCH_LIBRARY_IMPL(dpcgan_fast, CPU, m) {
  m.impl("fused_infer", &dpcgan::cpu::fused_infer_cpu);
  m.impl("fused_draw", &dpcgan::cpu::fused_draw_cpu);
}
