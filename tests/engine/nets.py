"""Small nets and the oracle that the engine's tests share: clipped sums by micro-batches of one unit, in float64."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

CLIP_SHRINK = 1 - 2**-20


class Residual(nn.Module):
    """A branch and a skip connection, with an in-place activation after the norm."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(1, 6, 5, stride=2, padding=2)
        self.norm = nn.GroupNorm(2, 6)
        self.branch = nn.Conv1d(6, 6, 3, padding=1, groups=3)
        self.head = nn.Linear(6 * 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.first(x)))
        return self.head((x + torch.tanh(self.branch(x))).flatten(1))


class SharedTwice(nn.Module):
    """One convolution used twice, and a linear layer that shares its weight with another."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, padding=1)
        self.first, self.second = nn.Linear(20, 20), nn.Linear(20, 20)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(torch.tanh(self.conv(x.expand(-1, 2, -1)))))
        return self.second(torch.tanh(self.first(x)))


class OwnParameter(nn.Module):
    """A module of the user's own, without a layer rule."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 20))
        self.inner = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.sin(x * self.scale))


def sequential(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


# Name, module, shape of one row.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv critic": (
        lambda: sequential(
            nn.Conv1d(1, 8, 8, 4, 1), nn.LeakyReLU(0.2), nn.Conv1d(8, 16, 8, 4, 1), nn.GroupNorm(4, 16),
            nn.LeakyReLU(0.2), nn.Conv1d(16, 1, 2)
        ),
        (1, 50),
    ),
    "autoencoder": (
        lambda: sequential(
            nn.Conv1d(1, 4, 5, 2), nn.LeakyReLU(0.2), nn.Conv1d(4, 8, 5, 3), nn.GroupNorm(2, 8), nn.Tanh(),
            nn.ConvTranspose1d(8, 4, 7, 4), nn.GroupNorm(1, 4), nn.LeakyReLU(0.2),
            nn.ConvTranspose1d(4, 1, 6, 2, 1, output_padding=1), nn.Sigmoid(),
        ),
        (1, 40),
    ),
    "dilated and grouped": (
        lambda: sequential(
            nn.Conv1d(2, 4, 3, padding=2, dilation=2, bias=False), nn.SiLU(),
            nn.ConvTranspose1d(4, 6, 3, stride=2, dilation=2, groups=2), nn.InstanceNorm1d(6, affine=True),
            nn.Flatten(), nn.Linear(6 * 43, 3),
        ),
        (2, 20),
    ),
    "padding by name": (
        lambda: sequential(
            nn.Conv1d(1, 3, 4, padding="same"), nn.Tanh(), nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular"),
            nn.Flatten(), nn.Linear(60, 1)
        ),
        (1, 20),
    ),
    "sequence": (
        lambda: sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(inplace=True), nn.Linear(7, 2, bias=False)),
        (6, 5),
    ),
    "residual": (Residual, (1, 20)),
    "shared weights": (SharedTwice, (1, 20)),
    "own module": (lambda: sequential(nn.Linear(20, 20), OwnParameter()), (20,)),
}  # fmt: skip


def row_losses(output: Tensor) -> Tensor:
    """(B, ...) -> (B,): a loss whose gradient depends on the output."""
    flat = output.flatten(1)
    return (flat.square() + flat).sum(1)


def clipped_sum_by_microbatches(
    module: nn.Module, x: Tensor, max_grad_norm: float, units: Tensor | None = None
) -> dict[str, Tensor]:
    """sum over units of min(1, C / norm) times the unit's gradient, one unit at a time, in float64."""
    module = copy.deepcopy(module).double()
    ids = torch.arange(len(x)) if units is None else units
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters() if p.requires_grad}
    for unit in ids.unique():
        module.zero_grad()
        row_losses(module(x[ids == unit].double())).sum().backward()
        grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
        if not math.isfinite(norm):
            continue
        factor = min(1.0, max_grad_norm * CLIP_SHRINK / norm) if norm > 0 else 1.0
        for name, grad in grads.items():
            total[name] += factor * grad
    return total


def flat(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.double().flatten() for g in grads.values()])
