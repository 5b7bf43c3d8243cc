// The CUDA back end as ops on CPU tensors: the registrations and wrappers of csrc, as they stand, under the namespace
// `dpcgan_fast_emulated` and the CPU key. What runs beneath is the emulated kernels.
#include <torch/library.h>

#undef TORCH_LIBRARY
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY(ns, m) TORCH_LIBRARY_FRAGMENT(dpcgan_fast_emulated, m)
#define TORCH_LIBRARY_IMPL(ns, key, m) _TORCH_LIBRARY_IMPL(dpcgan_fast_emulated, CPU, m, C10_UID)

#include "../../csrc/checks.cpp"
#include "../../csrc/cuda/clip_op.cpp"
#include "../../csrc/cuda/conv_grad_op.cpp"
#include "../../csrc/cuda/gaussian_noise_op.cpp"
#include "../../csrc/cuda/noisy_update_op.cpp"
#include "../../csrc/cuda/norm_affine_op.cpp"
#include "../../csrc/cuda/sq_norm_op.cpp"
#include "../../csrc/cuda/step_sum_op.cpp"
#include "../../csrc/registration.cpp"
