"""Float64 references of every registered op but those of the fused path: the specification that kernels are tested by.

Names and argument order are those of `csrc/registration.cpp`. Nothing here shares code with the kernels.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BIAS_NONE, BIAS_FROM_GRAD, BIAS_FROM_INPUT = 0, 1, 2
CLIP_SHRINK = 1.0 - 2.0**-20
GRID_BITS = 20
NORMALS_PER_BLOCK = 8
LEAST_SHARE = 2.0**-16  # of the sizes that are added up, which a gradient is taken to be at least
# Layout of `UpdateControl` in csrc/common/update_rule.h.
CONTROL = np.dtype(
    [
        *(("key", "<u4", 8), ("counter", "<u8"), ("armed", "<i8")),
        *(("divisor", "<f8"), ("public_divisor", "<f8"), ("settings", "<f8", 7)),
    ]
)


def _unfolded_taps(x: Tensor, positions: int, kernel_size: int, stride: int, padding: int, dilation: int) -> Tensor:
    """(B, C, L) -> (B, C, k, T): the value that tap j reads at position t, zero outside x."""
    reach = stride * (positions - 1) + dilation * (kernel_size - 1) + 1
    padded = F.pad(x.double(), (padding, max(0, reach - padding - x.shape[2])))
    taps = [padded[:, :, dilation * j :][:, :, : stride * (positions - 1) + 1 : stride] for j in range(kernel_size)]
    return torch.stack(taps, dim=2)  # (B, C, k, T)


def at_least_share(sq_norm: Tensor, sq_sizes: Tensor) -> Tensor:
    """Squared norms of sums, taken to be at least a share of what was added up (csrc/common/cancellation.h).

    sq_sizes: squared norms of the sums of the terms' absolute values
    """
    least = LEAST_SHARE**2 * sq_sizes
    return torch.where(sq_norm < least, least, sq_norm)


def _grad_dtype(x: Tensor) -> torch.dtype:
    """What per-sample gradients are stored in: bfloat16 would round them."""
    return torch.promote_types(x.dtype, torch.float32)


def _conv_grads(
    x: Tensor, g: Tensor, kernel_size: int, stride: int, padding: int, dilation: int, groups: int, bias_role: int
) -> tuple[Tensor, Tensor]:
    """Per-sample gradients in float64: weight (B, O, C/groups, k) and bias (B, O or C or 0)."""
    rows, outputs, positions = g.shape
    channels = x.shape[1]
    if positions == 0:
        weight = torch.zeros(rows, outputs, channels // groups, kernel_size, dtype=torch.float64, device=x.device)
    else:
        taps = _unfolded_taps(x, positions, kernel_size, stride, padding, dilation)
        taps = taps.reshape(rows, groups, channels // groups, kernel_size, positions)
        grad = g.double().reshape(rows, groups, outputs // groups, positions)
        weight = torch.einsum("bgot,bgckt->bgock", grad, taps)
        weight = weight.reshape(rows, outputs, channels // groups, kernel_size)
    bias = {
        BIAS_NONE: x.new_zeros(rows, 0).double(),
        BIAS_FROM_GRAD: g.double().sum(2),
        BIAS_FROM_INPUT: x.double().sum(2),
    }
    return weight, bias[bias_role]


def conv_sq_norm(
    x: Tensor,
    g: Tensor,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    bias_role: int,
    mode: str,
    row_order: Tensor | None = None,
    unit_offsets: Tensor | None = None,
) -> Tensor:
    """Squared norm of each unit's weight and bias gradient, whatever the mode."""
    if mode not in ("direct", "gram"):
        raise RuntimeError(f"conv_sq_norm: expected mode direct or gram, got {mode}")
    geometry = (kernel_size, stride, padding, dilation, groups, bias_role)
    sums, sizes = _conv_grads(x, g, *geometry), _conv_grads(x.abs(), g.abs(), *geometry)
    return _units_sq_norm(list(sums), list(sizes), row_order, unit_offsets)


def conv_per_sample_grad(
    x: Tensor, g: Tensor, kernel_size: int, stride: int, padding: int, dilation: int, groups: int, bias_role: int
) -> tuple[Tensor, Tensor]:
    """Per-sample gradients, rounded to the dtype of x, or to float32 for bfloat16."""
    weight, bias = _conv_grads(x, g, kernel_size, stride, padding, dilation, groups, bias_role)
    return weight.to(_grad_dtype(x)), bias.to(_grad_dtype(x))


def conv_weighted_grad(
    x: Tensor,
    g: Tensor,
    factor: Tensor,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    bias_role: int,
) -> tuple[Tensor, Tensor]:
    """sum_n factor[n] G_n in float64; rows of factor 0 are left out, whatever they hold."""
    weight, bias = _conv_grads(x, g, kernel_size, stride, padding, dilation, groups, bias_role)
    return rows_weighted_sum(weight, factor), rows_weighted_sum(bias, factor)


def group_norm_per_sample_grad(x: Tensor, g: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Per-sample gradients of GroupNorm's weight and bias; x, g: (B, C, S) -> (B, C) each."""
    rows, channels, length = x.shape
    grouped = x.double().reshape(rows, groups, channels // groups * length)
    mean = grouped.mean(2, keepdim=True)
    var = (grouped - mean).square().mean(2, keepdim=True)
    normalised = ((grouped - mean) / torch.sqrt(var + eps)).reshape(rows, channels, length)
    return (g.double() * normalised).sum(2).to(_grad_dtype(x)), g.double().sum(2).to(_grad_dtype(x))


def layer_norm_per_sample_grad(x: Tensor, g: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Per-sample gradients of LayerNorm's weight and bias; x, g: (B, S, M) -> (B, M) each."""
    values = x.double()
    mean = values.mean(2, keepdim=True)
    var = (values - mean).square().mean(2, keepdim=True)
    normalised = (values - mean) / torch.sqrt(var + eps)
    return (g.double() * normalised).sum(1).to(_grad_dtype(x)), g.double().sum(1).to(_grad_dtype(x))


def rows_sq_norm(grads: list[Tensor], row_order: Tensor | None = None, unit_offsets: Tensor | None = None) -> Tensor:
    """Squared norm over all tensors of each unit's sum of rows, (U,) float64."""
    if not grads:
        raise RuntimeError("rows_sq_norm: expected at least one per-sample gradient, got an empty list")
    return _units_sq_norm(grads, [grad.abs() for grad in grads], row_order, unit_offsets)


def _units_sq_norm(
    sums: list[Tensor], sizes: list[Tensor], row_order: Tensor | None, unit_offsets: Tensor | None
) -> Tensor:
    """Squared norms of gradients, (B, ...), added up by unit; sizes: of the terms that each row's gradient adds up."""

    def by_unit(rows: Tensor) -> Tensor:
        rows = rows.double().reshape(rows.shape[0], math.prod(rows.shape[1:]))
        if row_order is None or unit_offsets is None:
            return rows
        units = [rows[row_order[a:b]].sum(0) for a, b in pairwise(int(offset) for offset in unit_offsets)]
        return torch.stack(units) if units else rows[:0]

    sq_norm, sq_sizes = (
        torch.stack([by_unit(part).square().sum(1) for part in parts]).sum(0) for parts in (sums, sizes)
    )
    return at_least_share(sq_norm, sq_sizes)


def rows_weighted_sum(grad: Tensor, factor: Tensor) -> Tensor:
    """sum_n factor[n] grad[n] in float64; rows of factor 0 are left out, whatever they hold."""
    kept = factor != 0
    return torch.einsum("n,n...->...", factor[kept], grad[kept].double())


def clip_factor(sq_norm: Tensor, max_grad_norm: float, valid: Tensor | None = None) -> Tensor:
    """min(1, max_grad_norm (1 - 2^-20) / norm), and 0 where the norm is not finite, or from unit `valid` on."""
    norm = sq_norm.double().sqrt()
    limit = max_grad_norm * CLIP_SHRINK
    factor = torch.where(norm <= limit, torch.ones_like(norm), limit / norm)
    kept = torch.isfinite(sq_norm)
    if valid is not None:
        kept &= torch.arange(len(norm), device=norm.device) < valid
    return torch.where(kept, factor, torch.zeros_like(norm))


def step_clip_factor(
    x: list[Tensor],
    g: list[Tensor],
    geometry: list[int],
    grads: list[Tensor],
    max_grad_norm: float,
    row_order: Tensor | None = None,
    unit_offsets: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared norms over all layers and materialised gradients, and clip factors; both 0 from unit `valid` on."""
    sums, sizes = list(grads), [grad.abs() for grad in grads]
    for i, (x_role, g_role) in enumerate(zip(x, g, strict=True)):
        sums += _conv_grads(x_role, g_role, *geometry[7 * i : 7 * i + 6])
        sizes += _conv_grads(x_role.abs(), g_role.abs(), *geometry[7 * i : 7 * i + 6])
    sq_norm = _units_sq_norm(sums, sizes, row_order, unit_offsets)
    if valid is not None:
        sq_norm = torch.where(torch.arange(len(sq_norm), device=sq_norm.device) < valid, sq_norm, 0.0)
    return sq_norm, clip_factor(sq_norm, max_grad_norm, valid)


def step_weighted_sum_(
    x: list[Tensor],
    g: list[Tensor],
    geometry: list[int],
    grads: list[Tensor],
    factor: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    sums: list[Tensor],
) -> None:
    """Adds the weighted sums of all layers and materialised gradients to `weights`, `biases` and `sums`."""
    for i, (x_role, g_role) in enumerate(zip(x, g, strict=True)):
        weight, bias = conv_weighted_grad(x_role, g_role, factor, *geometry[7 * i : 7 * i + 6])
        weights[i] += weight.reshape(weights[i].shape)
        biases[i] += bias
    for grad, total in zip(grads, sums, strict=True):
        total += rows_weighted_sum(grad, factor).reshape(total.shape)


def chacha20_block(key: np.ndarray, nonce: int, counter: int) -> np.ndarray:
    """One ChaCha20 block as 16 uint32 words (RFC 8439 section 2.3, with a 64-bit counter and a 64-bit nonce)."""
    mask = 0xFFFFFFFF
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
    start += [int(word) & mask for word in key]
    start += [counter & mask, counter >> 32 & mask, nonce & mask, nonce >> 32 & mask]
    state = list(start)

    def quarter_round(a: int, b: int, c: int, d: int) -> None:
        for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & mask
            mixed = state[z] ^ state[x]
            state[z] = (mixed << bits | mixed >> (32 - bits)) & mask

    for _ in range(10):
        for i in range(4):
            quarter_round(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter_round(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return np.array([(word + first) & mask for word, first in zip(state, start, strict=True)], dtype=np.uint32)


def standard_normals(key: np.ndarray, counter: int, size: int) -> np.ndarray:
    """`size` standard normals in float64: Box-Muller on 53-bit uniforms, eight a block."""
    normals: list[float] = []
    for block in range(math.ceil(size / NORMALS_PER_BLOCK)):
        words = [int(word) for word in chacha20_block(key, 0, counter + block)]
        for i in range(0, 16, 4):
            first = (words[i] >> 5) * 2**26 + (words[i + 1] >> 6)
            second = (words[i + 2] >> 5) * 2**26 + (words[i + 3] >> 6)
            radius = math.sqrt(-2.0 * math.log((first + 1) * 2.0**-53))
            angle = 2.0 * math.pi * (second * 2.0**-53)
            normals += [radius * math.cos(angle), radius * math.sin(angle)]
    return np.array(normals[:size])


def gaussian_noise_(tensors: list[Tensor], std: float, key: Tensor, counter: int) -> None:
    """Adds N(0, std^2) to each element in float64 and rounds once to the grid 2^(floor(log2(std)) - 20)."""
    grid = 2.0 ** (math.frexp(std)[1] - 1 - GRID_BITS)
    words = key.numpy().view(np.uint32)
    for tensor in tensors:
        noise = torch.as_tensor(standard_normals(words, counter, tensor.numel())).reshape(tensor.shape)
        noisy = tensor.double() + std * noise.to(tensor.device)
        tensor.copy_(torch.round(noisy / grid) * grid)
        counter += math.ceil(tensor.numel() / NORMALS_PER_BLOCK)


def noisy_update_(
    parameters: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    sums: list[Tensor],
    public_sums: list[Tensor],
    std: float,
    key: Tensor,
    counter: int,
    divisor: float,
    public_divisor: float,
    optimizer: str,
    settings: list[float],
    clamps: Sequence[float] = (),
) -> None:
    """Moves parameters by an optimizer's rule, in float64; sums are left as they are."""
    noisy = [total.clone() for total in sums]
    if std > 0:
        gaussian_noise_(noisy, std, key, counter)
    rate, weight_decay, *rest = settings
    for i, parameter in enumerate(parameters):
        value = parameter.double()
        grad = noisy[i] / divisor + (public_sums[i] / public_divisor if public_sums else 0.0) + weight_decay * value
        if optimizer == "adam":
            beta1, beta2, eps, correction1, correction2 = rest
            first[i].copy_(beta1 * first[i].double() + (1 - beta1) * grad)
            second[i].copy_(beta2 * second[i].double() + (1 - beta2) * grad.square())
            deviation = (second[i].double() / correction2).sqrt() + eps
            move = first[i].double() / correction1 / deviation
        elif optimizer == "rmsprop":
            alpha, eps = rest
            second[i].copy_(alpha * second[i].double() + (1 - alpha) * grad.square())
            move = grad / (second[i].double().sqrt() + eps)
        else:
            if first:
                first[i].copy_(rest[0] * first[i].double() + grad)
            move = first[i].double() if first else grad
        parameter.copy_(value - rate * move)
        if clamps:
            parameter.clamp_(-clamps[i], clamps[i])


def noisy_update_armed_(
    parameters: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    sums: list[Tensor],
    public_sums: list[Tensor],
    std: float,
    control: Tensor,
    optimizer: str,
    clamps: Sequence[float] = (),
) -> None:
    """`noisy_update_` by what `control` holds, which it clears; nothing unless it is armed."""
    held = control.cpu().numpy().copy().view(CONTROL)[0]
    control.zero_()
    if not held["armed"]:
        return
    key = torch.as_tensor(held["key"].view(np.int32).copy())
    settings = held["settings"][: {"sgd": 3, "adam": 7, "rmsprop": 4}[optimizer]].tolist()
    noisy_update_(
        parameters, first, second, sums, public_sums, std, key, int(held["counter"]), float(held["divisor"]),
        float(held["public_divisor"]), optimizer, settings, clamps,
    )  # fmt: skip


def uniform_(out: Tensor, key: Tensor) -> None:
    """The upper 24 bits of ChaCha20's words, of sixteen blocks at a time, word by word; see `ops.uniform`."""
    words = key.numpy().view(np.uint32)
    batches = range(math.ceil(out.numel() / 256))
    blocks = [[chacha20_block(words, 0, 16 * batch + lane) for lane in range(16)] for batch in batches]
    drawn = np.array(blocks, np.uint32).reshape(-1, 16, 16).transpose(0, 2, 1).reshape(-1)[: out.numel()]
    out.copy_(torch.as_tensor((drawn >> 8) * 2.0**-24).view(out.shape))


def gather_rows(out: Tensor, rows: Tensor, dense: Tensor, starts: Tensor, positions: Tensor, first_code: int) -> None:
    """Writes rows of dense columns, with codes between them, into out, (B, F) float32; see `ops.gather_rows`."""
    after_codes = first_code + out.shape[1] - dense.shape[1]
    for written, row in zip(out, rows, strict=True):
        codes = positions[starts[row] : starts[row + 1]].long()
        written[:first_code] = dense[row, :first_code]
        written[first_code:after_codes] = 0.0
        written[first_code:after_codes][codes] = 1.0
        written[after_codes:] = dense[row, first_code:]
