"""Networks while they train: what is fixed, what changes, and the loop of private steps that the ledger allows."""

import json
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.errors import StoppedError
from dpcgan_fast.files import append_line
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger, PoissonSampler, rdp_epsilon, sampling_key
from dpcgan_fast.privacy.accountant import refuse_overspending
from dpcgan_fast.privacy.ledger import charged
from dpcgan_fast.train.checkpoint import Checkpoint, write_checkpoint
from dpcgan_fast.train.data import Chunk, TrainingData
from dpcgan_fast.train.plan import CRITIC, BudgetPlan
from dpcgan_fast.train.prefetch import Ahead, drawn_chunks, one_draw
from dpcgan_fast.train.settings import TrainSettings
from dpcgan_fast.train.state import TrainState
from dpcgan_fast.train.stepping import Stepping, graph_capture
from dpcgan_fast.train.stopping import StopRequest

_EPSILON_UPDATES = 25  # of the running epsilon in a phase; each costs some tens of milliseconds


class Progress(Protocol):
    """What is told of a run while it goes on; all of it public."""

    def start(self, phase: str, total: int, done: int) -> None:
        """A phase of `total` steps begins, or goes on after `done`."""

    def advance(self, done: int, epsilon: float | None) -> None:
        """`done` steps are taken; a bound on epsilon so far, where it was computed anew."""


class Silent:
    """Tells nothing."""

    def start(self, phase: str, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, done: int, epsilon: float | None = None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Turn:
    """One step: its number among the steps of its mechanism, and the rows that were drawn for it, to be taken
    once and in whole."""

    number: int
    chunks: Iterable[Chunk]  # each lasts until the next one is asked for


@dataclass(kw_only=True)
class Training(ABC):
    """Networks while they train: what is fixed, what changes, and where the steps come from.

    noise_key: secret and fresh in every process; with a seed, the position is kept in the checkpoints
    where:     of the run, for errors
    """

    settings: TrainSettings
    plan: BudgetPlan
    data: TrainingData
    state: TrainState
    noise_key: NoiseKey
    where: str
    progress: Progress = field(default_factory=Silent)
    stop: StopRequest = field(default_factory=StopRequest)

    @abstractmethod
    def turns(self, name: str) -> Generator[Turn, None, None]:
        """The steps of a mechanism, each with a fresh Poisson draw. Raises StoppedError if a stop was asked for."""

    def sampler(self, name: str) -> PoissonSampler:
        """Draws of a mechanism's steps from the units of the data, by a fresh key, or by the seed."""
        rate, key = self.plan.mechanism(name).sample_rate, sampling_key(name, self.settings.seed)
        return PoissonSampler(self.data.index.n_units, rate, key)

    def stopped(self) -> StoppedError:
        """The error for a stop that was asked for."""
        return StoppedError(f"Stopped by {self.stop.signal_name}", self.where, "Go on with resume=True (--resume).")

    def private_randomness(self, turn: Turn) -> torch.Generator:
        """Randomness for what has as many rows as were drawn; it is not the run's public one, whose state is kept in
        checkpoints and would tell how often it was used.

        Torch's CPU generator keeps 32 bits of its seed and is no cipher. A stronger source would have to take the place
        of every draw in the models, so that a row's loss draws as from independent randomness is an assumption, which
        the card states. It is a mild one: the seed is fresh in every step and never kept, and what is drawn from it
        leaves the process in clipped and noised sums alone.
        """
        seed = self.settings.seed
        fresh = secrets.randbits(63) if seed is None else (seed + 1) * 1_000_003 + turn.number
        return torch.Generator(self.data.device).manual_seed(fresh % 2**63)

    def private_step(self, name: str, module: nn.Module) -> Stepping:
        """The step of a mechanism, with the very noise and clipping that are accounted.

        On a GPU it is captured, unless rows are grouped into units.

        Where gradients add before they are clipped, over the rows of a unit or over a row and its fake, the step goes
        layer by layer from the start. It would find that out in its first backward, whose forward would then differ
        by rounding from that of the same step of a run that was not resumed there.
        """
        mechanism = self.plan.mechanism(name)
        paired = self.settings.paired_fakes and name == CRITIC
        step = PrivateStep(
            module,
            self.state.optimizers[name],
            max_grad_norm=mechanism.max_grad_norm,
            noise_multiplier=mechanism.noise_multiplier,
            expected_batch_size=self.state.divisors[name],
            noise_key=self.noise_key,
            fused=self.data.rows_are_units and not paired,
            clamp=self.state.networks.critic_clamp if name == CRITIC else None,
        )
        capture = graph_capture(self.data.device) if self.data.rows_are_units else None
        return Stepping(step, self.state.divisors[name], capture)


@dataclass(kw_only=True)
class Session(Training):
    """A run while it trains on the data: its steps are private, and reserved in the ledger."""

    ledger: Ledger
    checkpoints: Path
    log: Path

    _taken: dict[int, int] = field(default_factory=dict, init=False)  # by seq, steps taken of the block at work

    def running_epsilon(self) -> float:
        """Epsilon of what the ledger charges, by Renyi DP; of the block at work, the steps that were taken so far.

        It is the ledger and not the state that counts: steps that a crash lost were spent all the same.
        """
        return rdp_epsilon(charged(self.ledger.lines, self._taken), self.settings.delta)

    def save(self) -> None:
        """Writes a checkpoint and a line of the log. Raises MachineError if the disk is full."""
        values = {
            **self.state.values(),
            "ledger_seq": len(self.ledger.lines) - 1,
            "ledger_head": self.ledger.head,
            "noise_position": self.noise_key.position if self.noise_key.seeded else None,
        }
        order = sum(self.state.steps.values()) + self.state.fitted  # the fit is one more place in the order
        write_checkpoint(self.checkpoints, order, Checkpoint(self.state.tensors(), values))
        epsilon = self.running_epsilon() if self.settings.private else "inf"
        append_line(self.log, json.dumps({"steps": self.state.steps, "epsilon_rdp": epsilon}))

    def turns(self, name: str) -> Generator[Turn, None, None]:
        """The private steps of a mechanism that the budget still holds, each with a fresh Poisson draw.

        A block is reserved in the ledger, durably, before its first step; after its last one a checkpoint is written
        and the block is closed. If the caller fails inside a block, the block stays charged in full.
        The rows of the next step of the block are drawn and gathered meanwhile; close the generator (it ends the thread
        that does so) also if a step fails.
        Raises StoppedError after the checkpoint if a stop was asked for.
        """
        mechanism = self.plan.mechanism(name)
        if mechanism.steps == 0:
            return
        sampler = self.sampler(name)
        self.progress.start(name, mechanism.steps, self.state.steps[name])
        update_every = math.ceil(mechanism.steps / _EPSILON_UPDATES)
        while True:
            reserved = self._reserve(name)
            if reserved is None:
                return
            seq, block, done = reserved
            self._taken = {seq: done}
            first = self.state.steps[name]
            with Ahead(drawn_chunks(self.data, sampler, range(first, first + block - done))) as chunks:
                while self._taken[seq] < block and not self.stop.requested:
                    number = self.state.steps[name]
                    rows = one_draw(chunks)
                    yield Turn(number, rows)
                    if next(rows, None) is not None:
                        raise RuntimeError("A private step left out rows of its draw.")
                    self._taken[seq] += 1
                    self.state.steps[name] = number + 1
                    # The plan's own bound holds at every step, and is the smaller one where a release has most of it.
                    shown = (number + 1) % update_every == 0
                    epsilon = min(self.running_epsilon(), self.settings.epsilon) if shown else None
                    self.progress.advance(number + 1, epsilon)
                self.save()
                self.ledger.close(seq, self._taken[seq])
            if self.stop.requested:
                raise self.stopped()

    def _reserve(self, name: str) -> tuple[int, int, int] | None:
        """Seq and size of the next block, and how many of its steps the state has; None if all steps are charged.

        Raises PrivacyError if the block would take the ledger beyond what the run claims.
        """
        mechanism = self.plan.mechanism(name)
        interrupted = self.ledger.open_reservation(name)
        if interrupted is not None and self.settings.seed is not None:
            # The same key takes the same steps on the same draws: a repetition, which releases nothing new. A block
            # whose checkpoint was written before the crash has nothing to repeat.
            block = interrupted.mechanism.steps
            lost = min(block, self.ledger.charged_steps(name) - self.state.steps[name])
            if lost > 0:
                return interrupted.seq, block, block - lost
            self.ledger.close(interrupted.seq, block)
        left = mechanism.steps - self.ledger.charged_steps(name)
        if left <= 0:
            return None
        block = mechanism.with_steps(min(left, self.settings.checkpoint_interval))
        total = self.ledger.charged_with(block)
        refuse_overspending(total, self.settings.epsilon, self.settings.delta, str(self.ledger.path))
        return self.ledger.reserve(block, self.noise_key.key_id), block.steps, 0
