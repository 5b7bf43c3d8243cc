"""Private steps on canaries: units of which each has weights of its own, and a gradient far beyond the clip there.

Each form takes one step of the engine in another way. Nothing else moves a canary's coordinates than itself and noise,
so that whoever sees all noisy sums knows all that there is to know of it, and one run tells of all canaries. Noise and
draws are taken to be fresh in each step.
"""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import nn

from dpcgan_fast.adapters.functional import clip_and_aggregate
from dpcgan_fast.engine import Capture, GraphedStep, PrivateStep
from dpcgan_fast.ops import gaussian_noise_
from dpcgan_fast.privacy import Mechanism, PoissonSampler, noise_key, sampling_key

_FAR = 1e3  # gradient of a canary, over the clip
_LAYERS = 4  # that a canary has a weight of, so that a clip of each layer on its own shows
_ROWS_A_UNIT, _UNITS_A_CHUNK, _FAKES = 3, 64, 32
_GRAPH_ROWS = 64  # fewer than are drawn, so that a step takes several replays
_EXPECTED = 16.0  # public divisor; any would do

Turn = Callable[[], None]  # told that one more trial or step is done


class Form(Protocol):
    """Private steps in some way of the engine; made with the mechanism, the number of canaries m and the device."""

    @property
    def path(self) -> str:
        """Which path the steps took, once one was taken."""
        ...

    def noisy_sum(self, canaries: np.ndarray) -> np.ndarray:
        """Takes a step. The noisy sum, (m,) float64 in units of C, of the canaries (B,) int64 that were drawn."""
        ...


class _Layers(nn.Module):
    """Embeddings of one number, (B,) int64 -> (B, 1): their sum."""

    def __init__(self, canaries: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Embedding(canaries, 1) for _ in range(_LAYERS))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([layer(rows) for layer in self.layers]).sum(0)


class _OfStep:
    """What the forms of a `PrivateStep` share: SGD moves weights that are 0 before each step by what it released.

    module: of layers that have a weight for each canary, and are alike
    """

    def __init__(self, mechanism: Mechanism, module: nn.Module, device: torch.device, fused: bool = False):
        module.to(device)
        self._weights = list(module.parameters())
        self._clear()
        self._device, self._clip = device, mechanism.max_grad_norm
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        self._step = PrivateStep(
            module, optimizer, self._clip, mechanism.noise_multiplier, _EXPECTED, noise_key=noise_key(), fused=fused
        )

    @property
    def path(self) -> str:
        """See `Form`."""
        return "no rows were drawn" if self._step.last is None else self._step.last.path

    def _moved(self) -> np.ndarray:
        """What the last update took from the weights, as a sum in units of C, along the direction of each canary's
        gradient, which is the same in all layers; the weights are 0 again."""
        moved = torch.stack([weight.detach().double().ravel() for weight in self._weights]).sum(0)
        self._clear()
        return moved.cpu().numpy() * (-_EXPECTED / self._clip / math.sqrt(len(self._weights)))

    def _clear(self) -> None:
        for weight in self._weights:
            nn.init.zeros_(weight)

    def _losses(self, rows: torch.Tensor) -> torch.Tensor:
        """(B,), with gradients far beyond the clip."""
        return self._step(rows).squeeze(1) * (_FAR * self._clip)


class Layerwise(_OfStep):
    """Layer by layer: embeddings, which have a row for each canary."""

    def __init__(self, mechanism: Mechanism, canaries: int, device: torch.device):
        super().__init__(mechanism, _Layers(canaries), device)

    def noisy_sum(self, canaries: np.ndarray) -> np.ndarray:
        """See `Form`."""
        if len(canaries):
            self._step.backward(self._losses(torch.from_numpy(canaries).to(self._device)))
        self._step.step()
        return self._moved()


class Fused(_OfStep):
    """The fused kernels, where the device has them: a linear layer with an input for each canary."""

    def __init__(self, mechanism: Mechanism, canaries: int, device: torch.device):
        super().__init__(mechanism, nn.Sequential(nn.Linear(canaries, 1, bias=False)), device, fused=True)

    def noisy_sum(self, canaries: np.ndarray) -> np.ndarray:
        """See `Form`."""
        if len(canaries):
            self._step.backward(self._losses(_one_hot(canaries, self._weights[0].numel(), self._device)))
        self._step.step()
        return self._moved()


class Units(_OfStep):
    """Canaries of several rows each, in chunks, beside rows that touch no data (private=False)."""

    def __init__(self, mechanism: Mechanism, canaries: int, device: torch.device):
        super().__init__(mechanism, _Layers(canaries), device)
        self._fakes = torch.arange(min(_FAKES, canaries), device=device)

    def noisy_sum(self, canaries: np.ndarray) -> np.ndarray:
        """See `Form`."""
        for first in range(0, len(canaries), _UNITS_A_CHUNK):
            rows = torch.from_numpy(np.repeat(canaries[first : first + _UNITS_A_CHUNK], _ROWS_A_UNIT)).to(self._device)
            self._step.backward(self._losses(rows), units=rows)
        self._step.backward(self._losses(self._fakes), private=False)
        self._step.step()
        noisy = self._moved()
        noisy[: len(self._fakes)] -= _EXPECTED / len(self._fakes)  # each was clipped to C, and then averaged
        return noisy


class Graphed(_OfStep):
    """Replayed, as a GPU replays its captured step; draws take several replays."""

    def __init__(self, mechanism: Mechanism, canaries: int, device: torch.device, capture: Capture):
        super().__init__(mechanism, _Layers(canaries), device)
        self._graphed = GraphedStep(self._step, _GRAPH_ROWS, capture=capture)
        any_rows = torch.zeros(1, dtype=torch.int64, device=device)
        self._backward = self._graphed.backward_of(self._losses, (any_rows,))

    def noisy_sum(self, canaries: np.ndarray) -> np.ndarray:
        """See `Form`."""
        self._backward(torch.from_numpy(canaries).to(self._device))
        self._graphed.step()
        return self._moved()


class Functional:
    """Per-sample gradients that others formed, clipped and noised by `adapters.functional`."""

    def __init__(self, mechanism: Mechanism, canaries: int, device: torch.device):
        self._mechanism, self._device, self._canaries, self._key = mechanism, device, canaries, noise_key()

    @property
    def path(self) -> str:
        """See `Form`."""
        return "clip_and_aggregate"

    def noisy_sum(self, canaries: np.ndarray) -> np.ndarray:
        """See `Form`."""
        clip, noise = self._mechanism.max_grad_norm, self._mechanism.noise_multiplier
        grads = _one_hot(canaries, self._canaries, self._device) * (_FAR * clip)
        leaves = dict.fromkeys(map(str, range(_LAYERS)), grads)
        summed, _ = clip_and_aggregate(leaves, clip, noise_multiplier=noise, noise_key=self._key)
        whole = torch.stack([leaf.double() for leaf in summed.values()]).sum(0)
        return whole.cpu().numpy() / (clip * math.sqrt(_LAYERS))


def _one_hot(canaries: np.ndarray, count: int, device: torch.device) -> torch.Tensor:
    """(B, count) float32."""
    rows = torch.zeros(len(canaries), count, device=device)
    rows[torch.arange(len(canaries)), torch.from_numpy(canaries)] = 1.0
    return rows


def step_scores(mechanism: Mechanism, form: Form, included: np.ndarray, turn: Turn = lambda: None) -> np.ndarray:
    """Log likelihood ratios of canaries, (m,), by the noisy sums of all steps of a mechanism on Poisson draws.

    included: (m,) bool, which canaries there are
    Given that a canary is there, a step's coordinate is N(1, sigma^2) with probability q, else N(0, sigma^2).
    """
    present = np.flatnonzero(included)
    sampler = PoissonSampler(len(present), mechanism.sample_rate, sampling_key(mechanism.mechanism))
    scores, rate = np.zeros(len(included)), mechanism.sample_rate
    with np.errstate(divide="ignore"):  # log(0) where every unit is drawn
        drawn, left = np.log(rate), np.log1p(-rate)
    for step in range(mechanism.steps):
        noisy = form.noisy_sum(present[sampler.draw(step)])
        scores += np.logaddexp(left, drawn + (2 * noisy - 1) / (2 * mechanism.noise_multiplier**2))
        turn()
    return scores


def drawn_canaries(count: int) -> np.ndarray:
    """Which of so many canaries are given, (count,) bool: each with probability 1/2, by the noise's own generator."""
    noise = torch.zeros(count, dtype=torch.float64)
    gaussian_noise_([noise], 1.0, noise_key())
    return noise.numpy() > 0
