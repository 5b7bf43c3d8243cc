"""Fused kernels for DP-SGD: per-sample gradient norms, clipped sums, and secure Gaussian noise.

Each op has a C++ kernel and a fake kernel for tracing, and, but for what is the CPU's alone, a CUDA kernel. All but the
fused path, with its draws, and gradients of windows, which are checked against torch's, have a float64 reference.
`step_clip_factor` and `step_weighted_sum_`, which do in one go what takes several ops on the CPU, are the GPU's alone.
None has a derivative: a backward through one is an error. All but those that draw noise can be compiled and exported.
Importing this package needs torch and numpy alone.
"""

from dpcgan_fast.ops import _fake
from dpcgan_fast.ops._affine import group_norm_per_sample_grad as group_norm_per_sample_grad
from dpcgan_fast.ops._affine import group_norm_sq_norm as group_norm_sq_norm
from dpcgan_fast.ops._affine import layer_norm_per_sample_grad as layer_norm_per_sample_grad
from dpcgan_fast.ops._affine import layer_norm_sq_norm as layer_norm_sq_norm
from dpcgan_fast.ops._affine import rms_norm_per_sample_grad as rms_norm_per_sample_grad
from dpcgan_fast.ops._backend import backend as backend
from dpcgan_fast.ops._backend import gpu_ops as gpu_ops
from dpcgan_fast.ops._backend import has_cuda_kernels as has_cuda_kernels
from dpcgan_fast.ops._backend import native
from dpcgan_fast.ops._backend import native_module as native_module
from dpcgan_fast.ops._backend import same_backend as same_backend
from dpcgan_fast.ops._clip import clip_and_sum as clip_and_sum
from dpcgan_fast.ops._clip import rows_weighted_sum as rows_weighted_sum
from dpcgan_fast.ops._conv import ConvProblem as ConvProblem
from dpcgan_fast.ops._conv import LayerNorms as LayerNorms
from dpcgan_fast.ops._conv import as_channels as as_channels
from dpcgan_fast.ops._conv import clip_factor as clip_factor
from dpcgan_fast.ops._conv import conv1d_sq_norm as conv1d_sq_norm
from dpcgan_fast.ops._conv import conv_transpose1d_sq_norm as conv_transpose1d_sq_norm
from dpcgan_fast.ops._conv import linear_sq_norm as linear_sq_norm
from dpcgan_fast.ops._conv import rows_sq_norm as rows_sq_norm
from dpcgan_fast.ops._conv import step_clip_factor as step_clip_factor
from dpcgan_fast.ops._conv import step_weighted_sum_ as step_weighted_sum_
from dpcgan_fast.ops._conv import sum_positions as sum_positions
from dpcgan_fast.ops._embedding import TokenGradients as TokenGradients
from dpcgan_fast.ops._fused import FusedLayer as FusedLayer
from dpcgan_fast.ops._fused import FusedNet as FusedNet
from dpcgan_fast.ops._gather import gather_rows as gather_rows
from dpcgan_fast.ops._modes import NormChoice as NormChoice
from dpcgan_fast.ops._modes import NormMode as NormMode
from dpcgan_fast.ops._modes import NormProblem as NormProblem
from dpcgan_fast.ops._modes import check_norm_mode as check_norm_mode
from dpcgan_fast.ops._modes import gram_phases as gram_phases
from dpcgan_fast.ops._modes import near_norm_modes as near_norm_modes
from dpcgan_fast.ops._modes import pick_gpu_norm_mode as pick_gpu_norm_mode
from dpcgan_fast.ops._modes import pick_norm_mode as pick_norm_mode
from dpcgan_fast.ops._noise import KEY_BYTES as KEY_BYTES
from dpcgan_fast.ops._noise import SEEDED_KEY_ID as SEEDED_KEY_ID
from dpcgan_fast.ops._noise import NoiseKey as NoiseKey
from dpcgan_fast.ops._noise import derive_key as derive_key
from dpcgan_fast.ops._noise import gaussian_noise_ as gaussian_noise_
from dpcgan_fast.ops._reference import BIAS_FROM_GRAD as BIAS_FROM_GRAD
from dpcgan_fast.ops._reference import BIAS_FROM_INPUT as BIAS_FROM_INPUT
from dpcgan_fast.ops._reference import BIAS_NONE as BIAS_NONE
from dpcgan_fast.ops._spare import drop_spare as drop_spare
from dpcgan_fast.ops._spare import give_back as give_back
from dpcgan_fast.ops._uniform import uniform as uniform
from dpcgan_fast.ops._units import UnitGroups as UnitGroups
from dpcgan_fast.ops._units import group_units as group_units
from dpcgan_fast.ops._update import UpdateControl as UpdateControl
from dpcgan_fast.ops._update import noise_blocks as noise_blocks
from dpcgan_fast.ops._update import noisy_update_ as noisy_update_
from dpcgan_fast.ops._update import noisy_update_armed_ as noisy_update_armed_
from dpcgan_fast.ops._windows import WindowLayer as WindowLayer
from dpcgan_fast.ops._windows import WindowProblem as WindowProblem
from dpcgan_fast.ops._windows import windows_clipped_sum as windows_clipped_sum

if native is not None:
    _fake.register()
