"""What training and sampling need of a set of networks, whichever preset they come from."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LabelDraws = Callable[[int, torch.Generator], Tensor]


@contextmanager
def initial_weights(seed: int | None) -> Iterator[None]:
    """Within it modules that are made get weights by this seed, None for others every time; torch's global random
    state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(secrets.randbits(63) if seed is None else seed)
        yield


class Networks(nn.Module, ABC):
    """An autoencoder, a generator of codes, and a critic.

    The autoencoder and the critic see real records; no module in them may mix rows. The generator and the decoder learn
    from the critic, and from the autoencoder's own private training. Nothing here knows of privacy.

    records: (B, F) in [0, 1]; labels: (B, K) one-hot, with K = 0 where the label is part of the record
    """

    # Modules, whose types the subclasses narrow.
    autoencoder: Any  # forward(records, labels, noise) -> what `autoencoder_loss` takes
    generator: Any  # forward(latent, labels) -> codes
    critic: Any  # forward(records, labels) -> (B,)
    latent_dim: int
    generator_mixes_rows: bool = False  # in training mode, as BatchNorm does

    def autoencoder_noise(self, rows: int, randomness: torch.Generator) -> Tensor:
        """Noise (B, ...) that the autoencoder's forward takes; none by default."""
        return torch.zeros(rows, 0, device=randomness.device)

    @abstractmethod
    def autoencoder_loss(self, output: Any, records: Tensor) -> Tensor:
        """Loss of each row, (B,), from the autoencoder's output."""

    @abstractmethod
    def decode(self, codes: Tensor, labels: Tensor, randomness: torch.Generator) -> Tensor:
        """Records (B, F) in [0, 1] from codes; the one path to records, in training and in sampling."""

    @abstractmethod
    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters that the generator's step fine-tunes."""

    def latent(self, rows: int, randomness: torch.Generator) -> Tensor:
        """What the generator starts from, (B, latent_dim) standard normal."""
        return torch.randn(rows, self.latent_dim, generator=randomness, device=randomness.device)

    def generate(self, labels: Tensor, randomness: torch.Generator) -> Tensor:
        """Synthetic records (B, F), one for each row of labels.

        randomness: a generator on the device of the networks; it never touches data
        """
        latent = self.latent(len(labels), randomness)
        return self.decode(self.generator(latent, labels), labels, randomness)

    def start_codes(self, rates: Tensor) -> None:
        """Takes public or paid rates (V,) for those of all codes, where the networks know any; none do by default."""

    def start_categories(self, rates: Sequence[Tensor | None]) -> None:
        """Takes paid rates (K, categories) within each class for those of the columns of many categories.

        rates: of each such column, in the order of a record; None if nothing was released of it
        Networks that know of no rates leave them, as they do by default.
        """

    def calibrate(self, draw_labels: LabelDraws, randomness: torch.Generator) -> None:
        """Brings synthetic records to the frequencies that were released, where the networks know any.

        draw_labels: gives so many labels (n, K) one-hot, in the classes' public or paid shares
        """

    @property
    def critic_clamp(self) -> dict[nn.Parameter, float]:
        """Parameters of the critic that every update leaves in [-clamp, clamp]; those of the published nets."""
        return {}
