// Per-sample gradients of the affine pair of GroupNorm (and InstanceNorm: groups = channels) and LayerNorm.
//
// weight[n, c] = sum_s g[n, c, s] xhat[n, c, s],  bias[n, c] = sum_s g[n, c, s],  xhat = (x - mean) / sqrt(var + eps)
// with mean and biased variance over what the layer normalises. Sums are in double.
#include <cmath>

#include "kernels.h"
#include "launch.cuh"

namespace dpcgan::cuda {
namespace {

constexpr int kWarps = kThreads / kWarpSize;

struct Moments {
  double mean;
  double inverse_std;
};

// Moments of `size` values by `threads` threads, of which this is `thread`; sum(value) adds over all of them.
template <class T, class Sum>
__device__ Moments moments(const T* values, int64_t size, double eps, int thread, int threads, Sum sum) {
  double total = 0;
  for (int64_t i = thread; i < size; i += threads) total += values[i];
  const double mean = sum(total) / static_cast<double>(size);
  double squares = 0;
  for (int64_t i = thread; i < size; i += threads) squares += (values[i] - mean) * (values[i] - mean);
  return {mean, 1.0 / sqrt(sum(squares) / static_cast<double>(size) + eps)};
}

template <int kTeam>
__device__ double team_sum(double value) {
  if constexpr (kTeam == kWarpSize) {
    return warp_sum(value);
  } else {
    return block_sum<kTeam>(value);
  }
}

// A team takes one row and group; its warps share the group's channels. A team is a block, or a warp for small groups.
template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads)
    group_norm_kernel(const T* x, const T* g, int64_t row_groups, int64_t group_channels, int64_t length, double eps,
                      GradOf<T>* weight, GradOf<T>* bias) {
  constexpr int kTeams = kThreads / kTeam;
  const int lane = threadIdx.x % kWarpSize, thread = threadIdx.x % kTeam;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kTeams + threadIdx.x / kTeam; i < row_groups;
       i += static_cast<int64_t>(gridDim.x) * kTeams) {
    const int64_t first = i * group_channels;  // (row, group) pairs are contiguous blocks of channels
    const Moments m = moments(x + first * length, group_channels * length, eps, thread, kTeam,
                              [](double value) { return team_sum<kTeam>(value); });
    for (int64_t c = first + thread / kWarpSize; c < first + group_channels; c += kTeam / kWarpSize) {
      double weight_sum = 0, bias_sum = 0;
      for (int64_t s = lane; s < length; s += kWarpSize) {
        weight_sum += g[c * length + s] * (x[c * length + s] - m.mean) * m.inverse_std;
        bias_sum += g[c * length + s];
      }
      weight_sum = warp_sum(weight_sum);
      bias_sum = warp_sum(bias_sum);
      if (lane == 0) {
        weight[c] = static_cast<GradOf<T>>(weight_sum);
        bias[c] = static_cast<GradOf<T>>(bias_sum);
      }
    }
  }
}

// A warp takes one line of features.  out: (lines,)
template <class T>
__global__ void __launch_bounds__(kThreads)
    layer_norm_moments_kernel(const T* x, int64_t lines, int64_t features, double eps, Moments* out) {
  const int lane = threadIdx.x % kWarpSize;
  for (int64_t line = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize; line < lines;
       line += static_cast<int64_t>(gridDim.x) * kWarps) {
    const Moments m =
        moments(x + line * features, features, eps, lane, kWarpSize, [](double value) { return warp_sum(value); });
    if (lane == 0) out[line] = m;
  }
}

// A block takes kWarpSize features of one row; its warps share the positions.
template <class T>
__global__ void __launch_bounds__(kThreads)
    layer_norm_kernel(const T* x, const T* g, const Moments* moments, int64_t rows, int64_t positions, int64_t features,
                      GradOf<T>* weight, GradOf<T>* bias) {
  __shared__ double weight_sums[kWarps][kWarpSize];
  __shared__ double bias_sums[kWarps][kWarpSize];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t tiles = ceil_div<int64_t>(features, kWarpSize);
  for (int64_t item = blockIdx.x; item < rows * tiles; item += gridDim.x) {
    const int64_t row = item / tiles, feature = item % tiles * kWarpSize + lane;
    double weight_sum = 0, bias_sum = 0;
    for (int64_t s = warp; feature < features && s < positions; s += kWarps) {
      const int64_t line = row * positions + s, i = line * features + feature;
      weight_sum += g[i] * (x[i] - moments[line].mean) * moments[line].inverse_std;
      bias_sum += g[i];
    }
    __syncthreads();  // the sums of an earlier item have been read
    weight_sums[warp][lane] = weight_sum;
    bias_sums[warp][lane] = bias_sum;
    __syncthreads();
    if (warp != 0 || feature >= features) continue;
    weight_sum = bias_sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      weight_sum += weight_sums[w][lane];
      bias_sum += bias_sums[w][lane];
    }
    weight[row * features + feature] = static_cast<GradOf<T>>(weight_sum);
    bias[row * features + feature] = static_cast<GradOf<T>>(bias_sum);
  }
}

}  // namespace

template <class T>
void launch_group_norm_per_sample_grad(const T* x, const T* g, int64_t rows, int64_t channels, int64_t length,
                                       int64_t groups, double eps, GradOf<T>* weight, GradOf<T>* bias,
                                       cudaStream_t stream) {
  constexpr int64_t kSmallGroup = 1024;  // values that a warp takes as quickly as a block
  const int64_t row_groups = rows * groups, group_channels = channels / groups;
  if (group_channels * length <= kSmallGroup) {
    launch(group_norm_kernel<T, kWarpSize>, ceil_div<int64_t>(row_groups, kWarps), kThreads, stream, x, g, row_groups,
           group_channels, length, eps, weight, bias);
  } else {
    launch(group_norm_kernel<T, kThreads>, row_groups, kThreads, stream, x, g, row_groups, group_channels, length, eps,
           weight, bias);
  }
}

int64_t layer_norm_workspace(int64_t rows, int64_t positions) {
  return rows * positions * static_cast<int64_t>(sizeof(Moments) / sizeof(double));
}

template <class T>
void launch_layer_norm_per_sample_grad(const T* x, const T* g, int64_t rows, int64_t positions, int64_t features,
                                       double eps, double* workspace, GradOf<T>* weight, GradOf<T>* bias,
                                       cudaStream_t stream) {
  Moments* moments = reinterpret_cast<Moments*>(workspace);
  launch(layer_norm_moments_kernel<T>, ceil_div<int64_t>(rows * positions, kWarps), kThreads, stream, x,
         rows * positions, features, eps, moments);
  launch(layer_norm_kernel<T>, rows * ceil_div<int64_t>(features, kWarpSize), kThreads, stream, x, g, moments, rows,
         positions, features, weight, bias);
}

#define DPCGAN_INSTANTIATE(T)                                                                                        \
  template void launch_group_norm_per_sample_grad<T>(const T*, const T*, int64_t, int64_t, int64_t, int64_t, double, \
                                                     GradOf<T>*, GradOf<T>*, cudaStream_t);                          \
  template void launch_layer_norm_per_sample_grad<T>(const T*, const T*, int64_t, int64_t, int64_t, double, double*, \
                                                     GradOf<T>*, GradOf<T>*, cudaStream_t);
DPCGAN_INSTANTIATE(float)
DPCGAN_INSTANTIATE(double)
DPCGAN_INSTANTIATE(BFloat16)
#undef DPCGAN_INSTANTIATE

}  // namespace dpcgan::cuda
