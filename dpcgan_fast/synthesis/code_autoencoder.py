"""Clusters of codes by a private convolutional autoencoder: records are grouped by their latent codes.

The autoencoder learns with DP-SGD to tell which codes a record has from a few numbers. Those numbers are grouped by
noisy k-means, and what the records of each group have is released as a round of a mixture releases it; one more round
then goes by the codes. What is drawn from is what it is with a mixture: frequencies, numbers, clusters and pairs of
codes; the autoencoder itself draws nothing.

Source: RDP-CGAN's autoencoder of codes, arXiv 2012.11774; noisy k-means, Su et al., arXiv 1504.05998.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.code_mixture import CodeRecords, Mixture, MixturePlan, release_clusters, with_numbers
from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.models import initial_weights
from dpcgan_fast.models.auto import trunk
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger, Mechanism, PoissonSampler, sampling_key
from dpcgan_fast.train.state import scale_learning_rate

# Source of all: measured on the made-up table of `bench/paper/code_world.py`, 40,000 x 1,071, at three epsilons.
MAX_GRAD_NORM = 0.5
LATENT_DIM, HIDDEN = 16, 48
_INPUT_SCALE = 1.5  # of flags of 0 and 1, nearly all of them 0
_LR, _WARM_UP, _LAST_RATE = 3e-3, 20, 0.05  # the rate rises for some steps, then falls to this share of itself
_MUCH_EPSILON = 3.0
_ROUNDS = 6  # of k-means
_GROUPS_SHARE, _NUMBERS_SHARE = 0.1, 0.05  # of what clusters have: for k-means, and for numbers of codes
_USUAL_LOG, _LOG_SCALE = 2.2, 1.5  # of the number of codes of a record; public
_LONGEST = math.sqrt(0.75 * (LATENT_DIM + 1))  # norm to which latent codes are clipped, each of whose numbers is <= 1
_FEWEST = 60.0  # records without which a group is given up
_BESIDE = 0.15  # how far from a large group another begins in its place
_ROWS_AT_A_TIME, _GROUPED_AT_A_TIME = 256, 1 << 10


def cluster_steps(epsilon: float) -> int:
    """Private steps: with much noise fewer teach more."""
    return 100 if epsilon < _MUCH_EPSILON else 200


class CodeAutoencoder(nn.Module):
    """Which codes records have, (B, V) of 0 and 1 -> logits of the codes, (B, V).

    log_shares: (V,) released frequencies, to which the decoder adds; they are not trained
    """

    log_shares: Tensor

    def __init__(self, log_shares: Tensor):
        super().__init__()
        width = len(log_shares)
        self.trunk, channels, length = trunk(1, width)
        self.to_latent = _linear(channels * length + 1, LATENT_DIM, 1.0)
        self.hidden = _linear(LATENT_DIM, HIDDEN, 1.0)
        self.out = _linear(HIDDEN, width, 0.3)  # at first nearly the frequencies alone
        self.register_buffer("log_shares", log_shares)

    def latent(self, held: Tensor) -> Tensor:
        """(B, LATENT_DIM) in [-1, 1]."""
        features = self.trunk(_INPUT_SCALE * held.unsqueeze(1)).flatten(1)  # (B, 1, V) -> (B, C L)
        return torch.tanh(self.to_latent(torch.cat([features, _centred_number(held)], 1)))

    def forward(self, held: Tensor) -> Tensor:
        """Logits of a multinomial draw."""
        return self.out(torch.tanh(self.hidden(self.latent(held)))) + self.log_shares

    def groupable(self, held: Tensor) -> Tensor:
        """Latent codes and the number of codes, (B, LATENT_DIM + 1), of L2 norm at most `_LONGEST`.

        Formal guarantee: finite, whatever the weights are.
        """
        number = (_centred_number(held) / _LOG_SCALE).clamp(-1, 1)
        found = torch.cat([self.latent(held), number], 1).nan_to_num(0.0, 0.0, 0.0)
        return found * (_LONGEST / found.norm(dim=1, keepdim=True).clamp(min=_LONGEST))


def _linear(inputs: int, outputs: int, scale: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=scale / math.sqrt(inputs))
    nn.init.zeros_(layer.bias)
    return layer


def _centred_number(held: Tensor) -> Tensor:
    """Logarithm of how many codes a record has, about 0: (B, 1)."""
    return held.sum(1, keepdim=True).clamp(min=1).log() - _USUAL_LOG


def code_loss(logits: Tensor, held: Tensor) -> Tensor:
    """Negative multinomial log likelihood of the codes of each record over the root of their number, (B,)."""
    return -(held * torch.log_softmax(logits, 1)).sum(1) / held.sum(1).clamp(min=1).sqrt()


@dataclass(frozen=True)
class AutoencoderClusters:
    """A `ClusterFinder`.

    mechanism: the autoencoder's private steps, for which a line is reserved in the ledger before the first one
    key:       of all noise
    seed:      of what is no noise: first weights, draws of rows, first groups. None for fresh ones
    """

    mechanism: Mechanism
    ledger: Ledger
    key: NoiseKey
    seed: int | None

    def __call__(
        self, records: CodeRecords, shares: np.ndarray, plan: MixturePlan, budget: Budget, share: float
    ) -> Mixture:
        """Spends the mechanism, and the share of the budget on what becomes of it.

        Raises ValueError, before anything is spent, for records that share the weight of a unit, or if the ledger
        charges the mechanism already: it is paid for once.
        """
        if self.ledger.charged_steps(self.mechanism.mechanism):
            raise ValueError("Expected a mechanism that the ledger does not charge yet.")
        if not np.isin(records.weights, (0.0, 1.0)).all():
            raise ValueError("Expected records each of which is a unit, or weighs nothing.")
        seq = self.ledger.reserve(self.mechanism, self.key.key_id)
        network = self._trained(records, shares)
        self.ledger.close(seq, self.mechanism.steps)
        return clusters_of(network, records, shares, plan, budget, share, np.random.default_rng(self.seed))

    def _trained(self, records: CodeRecords, shares: np.ndarray) -> CodeAutoencoder:
        """Formal guarantee: `steps` steps of DP-SGD on Poisson draws of units, each of which has one row at most: the
        one that weighs 1. Others are those beyond a unit's cap, and those of no known class.
        """
        mechanism, units = self.mechanism, np.flatnonzero(records.weights)
        with initial_weights(self.seed):
            network = CodeAutoencoder(torch.from_numpy(np.log(shares)).float())
        optimizer = torch.optim.Adam(network.parameters(), lr=_LR)
        step = PrivateStep(
            network,
            optimizer,
            max_grad_norm=mechanism.max_grad_norm,
            noise_multiplier=mechanism.noise_multiplier,
            expected_batch_size=1.0,  # a public constant, whose size Adam takes out again
            noise_key=self.key,
        )
        sampler = PoissonSampler(len(units), mechanism.sample_rate, sampling_key(mechanism.mechanism, self.seed))
        for number in range(mechanism.steps):
            warm = min(1.0, (number + 1) / _WARM_UP)
            scale_learning_rate(optimizer, warm * (1 - (1 - _LAST_RATE) * number / mechanism.steps))
            for rows in _parts(units[sampler.draw(number)], _ROWS_AT_A_TIME):
                held = _held(records, rows, len(shares))
                step.backward(code_loss(step(held), held))
            step.step()
        return network.eval()


def clusters_of(
    network: CodeAutoencoder, records: CodeRecords, shares: np.ndarray, plan: MixturePlan, budget: Budget, share: float,
    rng: np.random.Generator,
) -> Mixture:  # fmt: skip
    """Spends a share of the budget on groups of records with latent codes near each other, and on what they have.

    rng: of where groups begin; public
    """
    width = len(shares)
    parts = _parts(np.arange(len(records.sets)), _GROUPED_AT_A_TIME)
    found = [_points(network, _held(records, rows, width)) for rows in parts]
    points = np.concatenate([np.empty((0, LATENT_DIM + 1), np.float32), *found])
    centres = release_centres(points, records.weights, plan.clusters, budget, share * _GROUPS_SHARE, rng)

    def by_latent(_: sparse.csr_array, rows: slice) -> np.ndarray:
        return np.eye(len(centres))[nearest(points[rows], centres)]

    blocks = records.blocks(width)
    of_round = share * (1 - _GROUPS_SHARE - _NUMBERS_SHARE) / 2
    rough = release_clusters(by_latent, records, blocks, shares, plan, budget, of_round)

    def by_codes(matrix: sparse.csr_array, rows: slice) -> np.ndarray:
        return rough.members(matrix, records.classes[rows], shares)

    mixture = release_clusters(by_codes, records, blocks, shares, plan, budget, of_round)
    return with_numbers(mixture, by_codes, records, blocks, budget, share * _NUMBERS_SHARE)


@torch.no_grad()
def _points(network: CodeAutoencoder, held: Tensor) -> np.ndarray:
    """What `groupable` gives of at most `_GROUPED_AT_A_TIME` records: (rows, LATENT_DIM + 1) float32.

    Formal guarantee: what a record gets follows from its own codes alone, to the last bit, which may decide on a group.
    torch may round otherwise in a batch of another size, so that all batches have one size. That it then rounds a row
    the same, wherever it stands, is assumed.
    """
    batch = torch.zeros(_GROUPED_AT_A_TIME, held.shape[1])
    batch[: len(held)] = held
    return network.groupable(batch)[: len(held)].numpy()


def release_centres(
    points: np.ndarray, weights: np.ndarray, count: int, budget: Budget, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Spends a share of the budget on centres of groups of points: (count, dimensions) float64.

    points: (rows, dimensions) finite, of L2 norm at most `_LONGEST`; weights: (rows,), those of a unit sum to at most 1
    Formal guarantee: a round releases sums of points and `_LONGEST` times their number, by group, which a unit moves by
    at most sqrt(2) `_LONGEST` in L2 norm, wherever the centres before were.
    """
    dimensions = points.shape[1]
    centres = 0.5 * rng.standard_normal((count, dimensions))  # about where points are, whose numbers are <= 1
    for _ in range(_ROUNDS):
        sums = np.zeros((count, dimensions + 1))
        for rows in _parts(np.arange(len(points)), _GROUPED_AT_A_TIME):
            own = np.concatenate([points[rows], np.full((len(rows), 1), _LONGEST)], 1) * weights[rows, None]
            np.add.at(sums, nearest(points[rows], centres), own)
        noisy = budget.release("groups of latent codes", sums, math.sqrt(2) * _LONGEST, share / _ROUNDS).values
        numbers = noisy[:, -1] / _LONGEST
        large = numbers > _FEWEST
        centres = np.clip(noisy[:, :-1] / np.maximum(numbers, 1.0)[:, None], -1, 1)
        if large.any() and not large.all():
            start = rng.choice(np.flatnonzero(large), (~large).sum(), p=numbers[large] / numbers[large].sum())
            centres[~large] = centres[start] + _BESIDE * rng.standard_normal((len(start), dimensions))
    return centres


def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The centre nearest to each point, (rows,) int64.

    Formal guarantee: that of a point does not depend on the others, as it may where a matrix product rounds.
    """
    return np.argmin(cdist(points, centres, "sqeuclidean"), axis=1)


def _held(records: CodeRecords, rows: np.ndarray, width: int) -> Tensor:
    """Which codes some records have: (rows, width) float32 of 0 and 1."""
    return torch.from_numpy(records.sets.take(rows).matrix(width).toarray()).float()


def _parts(rows: np.ndarray, most: int) -> list[np.ndarray]:
    """Runs of at most so many, none for no rows."""
    return [rows[first : first + most] for first in range(0, len(rows), most)]
