// Launchers of the CUDA kernels: device pointers and sizes in, work queued on `stream`. All norms share one of them.
//
// The kernels and launchers (*.cu) include no ATen header, so that one source compiles with nvcc for the device and
// with a C++ compiler under the emulation of CUDA that the tests use. The *_op.cpp files check arguments, allocate,
// launch, and register the ops.
//
// Every kernel strides over its grid, so that any number of blocks gives the same result, and no floating-point sum
// depends on the order in which blocks run: results are bitwise reproducible. Sums are formed in double throughout.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../common/bfloat16.h"
#include "../common/chacha20.h"
#include "../common/conv_geometry.h"
#include "../common/update_rule.h"

namespace dpcgan::cuda {

// Rows by unit, as in check_units(); both null where each row is a unit of its own. On the device the values are not
// checked, since that would need a synchronisation: a unit whose indices lie outside the batch gets a NaN norm, which
// the clip factor drops.
struct UnitIndex {
  const int64_t* row_order;
  const int64_t* unit_offsets;
  int64_t units;
};

enum class ElementType : int { kFloat, kDouble, kBFloat16 };
enum class NormForm : int { kDirect, kGram, kRows, kFormed };

// What per-sample gradients of operands of type T are stored in: bfloat16 would round them.
template <class T>
using GradOf = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

// What gradients of operands of type T are formed in, where the norm is taken of what is formed.
template <class T>
using FormedOf = GradOf<T>;

// One summand of every unit's squared norm: a layer whose gradient is not stored, or a tensor of per-sample gradients.
struct NormTask {
  NormForm form;
  ElementType type;
  ConvGeometry conv;        // of a layer
  ConvOperands<void> data;  // of a layer; kRows: x is (rows, numel), contiguous
  int64_t numel;            // of kRows
};

// One layer's, or one tensor's, part in the clipped sum of a step, and where it is added.
struct SumTask {
  NormTask task;   // kFormed: the gradient whose norm was taken so; kDirect and kGram: the gradient itself
  double* weight;  // (O, C/groups, k), or (numel,) of kRows
  double* bias;    // (O or C), or null
};

// Doubles of scratch memory that a launcher needs.
int64_t sq_norm_workspace(const NormTask* tasks, int64_t count, int64_t units);
int64_t conv_weighted_grad_workspace(const ConvGeometry& conv);
int64_t layer_norm_workspace(int64_t rows, int64_t positions);
int64_t rows_weighted_sum_workspace(int64_t rows, int64_t numel);
int64_t step_sum_workspace(const SumTask* tasks, int64_t count, int64_t rows);

// sq_norm, factor: (units,)  arrived: (units,) zeros, and zeros again afterwards  valid: one number on the device:
// units from it on are not read and get norm and factor 0; null: all units count
void launch_sq_norm(const NormTask* tasks, int64_t count, int64_t rows, const UnitIndex& index, double max_grad_norm,
                    const int64_t* valid, int* arrived, double* workspace, double* sq_norm, double* factor,
                    cudaStream_t stream);

// Adds the weighted sums of all tasks to where they belong.  factor: (rows,); rows of factor 0 are not read
void launch_step_sum(const SumTask* tasks, int64_t count, int64_t rows, const double* factor, double* workspace,
                     cudaStream_t stream);

// weight: (rows, O, C/groups, k)  bias: (rows, O or C or 0)
template <class T>
void launch_conv_per_sample_grad(const ConvGeometry& conv, const ConvOperands<T>& data, GradOf<T>* weight,
                                 GradOf<T>* bias, cudaStream_t stream);

// factor: (rows,)  weight: (O, C/groups, k)  bias: (O or C or 0)
template <class T>
void launch_conv_weighted_grad(const ConvGeometry& conv, const ConvOperands<T>& data, const double* factor,
                               double* workspace, double* weight, double* bias, cudaStream_t stream);

// x, g: (rows, channels, length), contiguous  weight, bias: (rows, channels)
template <class T>
void launch_group_norm_per_sample_grad(const T* x, const T* g, int64_t rows, int64_t channels, int64_t length,
                                       int64_t groups, double eps, GradOf<T>* weight, GradOf<T>* bias,
                                       cudaStream_t stream);

// x, g: (rows, positions, features), contiguous  weight, bias: (rows, features)
template <class T>
void launch_layer_norm_per_sample_grad(const T* x, const T* g, int64_t rows, int64_t positions, int64_t features,
                                       double eps, double* workspace, GradOf<T>* weight, GradOf<T>* bias,
                                       cudaStream_t stream);

// grad: (rows, numel), contiguous  factor: (rows,)  out: (numel,)
template <class T>
void launch_rows_weighted_sum(const T* grad, const double* factor, int64_t rows, int64_t numel, double* workspace,
                              double* out, cudaStream_t stream);

// sq_norm, factor: (units,)  valid: as in launch_sq_norm
void launch_clip_factor(const double* sq_norm, int64_t units, double max_grad_norm, const int64_t* valid,
                        double* factor, cudaStream_t stream);

// values: (numel,); element i takes normal i % 8 of the key's ChaCha20 block counter + i / 8
template <class T>
void launch_gaussian_noise(T* values, int64_t numel, double std_dev, const ChaChaKey& key, uint64_t counter,
                           cudaStream_t stream);

// One parameter of an update; moments and public_sum are null where there are none.
struct UpdateTensor {
  float* parameter;
  float* first;
  float* second;
  const double* sum;
  const double* public_sum;
  int64_t numel;
  float clamp;  // of the moved parameter, inf for none
};

// Element i of a parameter takes normal i % 8 of block i / 8, and each parameter begins with a fresh block.
// memory: on the device, null to go by `given`; the update does nothing unless it is armed, and disarms it
void launch_noisy_update(const UpdateTensor* tensors, int64_t count, Optimizer optimizer, double std_dev,
                         const UpdateControl& given, UpdateControl* memory, cudaStream_t stream);

}  // namespace dpcgan::cuda
