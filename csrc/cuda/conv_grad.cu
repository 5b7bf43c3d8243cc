// Per-sample and clip-weighted weight gradients of the conv family.
#include "conv_contract.cuh"

namespace dpcgan::cuda {
namespace {

RowSlices weighted_slices(const ConvGeometry& conv, int64_t tiles) {
  return RowSlices(conv.rows, conv.groups * tiles, kMinSlicePositions / larger(1, conv.g_length));
}

}  // namespace

template <class T>
void launch_conv_per_sample_grad(const ConvGeometry& conv, const ConvOperands<T>& data, GradOf<T>* weight,
                                 GradOf<T>* bias, cudaStream_t stream) {
  with_tile(conv, [&](auto tile) {
    using Tile = decltype(tile);
    const int64_t parts = TileCounts<Tile>(conv).total;
    const ContractProblem<T> problem{conv, data, single_rows(conv.rows), nullptr, parts};
    const ContractOutput<GradOf<T>> out{weight, bias, conv.weight_numel(), conv.bias_numel()};
    launch(conv_contract_kernel<T, Tile, GradOf<T>>, conv.rows * conv.groups * parts, Tile::kThreads, stream, problem,
           out);
  });
}

int64_t conv_weighted_grad_workspace(const ConvGeometry& conv) {
  int64_t slices = 1;
  with_tile(conv, [&](auto tile) { slices = weighted_slices(conv, TileCounts<decltype(tile)>(conv).total).slices; });
  return slices == 1 ? 0 : slices * (conv.weight_numel() + conv.bias_numel());
}

// Sums are in double from the first product on.
template <class T>
void launch_conv_weighted_grad(const ConvGeometry& conv, const ConvOperands<T>& data, const double* factor,
                               double* workspace, double* weight, double* bias, cudaStream_t stream) {
  const int64_t weights = conv.weight_numel(), biases = conv.bias_numel();
  with_tile(conv, [&](auto tile) {
    using Tile = decltype(tile);
    const int64_t parts = TileCounts<Tile>(conv).total;
    const RowSlices cut = weighted_slices(conv, parts);
    const ContractProblem<T> problem{conv, data, sliced_rows(conv.rows, cut), factor, parts};
    ContractOutput<double> out{weight, bias, 0, 0};
    if (cut.slices > 1) out = {workspace, workspace + weights, weights + biases, weights + biases};
    launch(conv_contract_kernel<T, Tile, double>, cut.slices * conv.groups * parts, Tile::kThreads, stream, problem,
           out);
    if (cut.slices > 1)
      launch(sum_slices_kernel<kThreads>, ceil_div<int64_t>(weights + biases, kThreads), kThreads, stream, workspace,
             cut.slices, weight, weights, bias, biases);
  });
}

#define DPCGAN_INSTANTIATE(T)                                                                                       \
  template void launch_conv_per_sample_grad<T>(const ConvGeometry&, const ConvOperands<T>&, GradOf<T>*, GradOf<T>*, \
                                               cudaStream_t);                                                       \
  template void launch_conv_weighted_grad<T>(const ConvGeometry&, const ConvOperands<T>&, const double*, double*,   \
                                             double*, double*, cudaStream_t);
DPCGAN_INSTANTIATE(float)
DPCGAN_INSTANTIATE(double)
DPCGAN_INSTANTIATE(BFloat16)
#undef DPCGAN_INSTANTIATE

}  // namespace dpcgan::cuda
