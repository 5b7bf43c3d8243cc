"""Poisson draws that are secret, and Opacus's BatchMemoryManager, which forgets a batch that was left half-way."""

# Opacus has no type stubs, and leaves much of what it has without types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from collections.abc import Generator
from typing import Any

from opacus.utils.batch_memory_manager import BatchMemoryManager as OpacusBatchMemoryManager
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch.utils.data import DataLoader

from dpcgan_fast.privacy.keys import sampling_key
from dpcgan_fast.privacy.sampling import PoissonSampler


class SecurePoissonBatches(UniformWithReplacementSampler):
    """Opacus's Poisson batches, drawn by ChaCha20 with a key of their own: who knows the draws has no amplification."""

    def __init__(self, num_samples: int, sample_rate: float, steps: int):
        super().__init__(num_samples=num_samples, sample_rate=sample_rate, steps=steps)
        self._sampler = PoissonSampler(num_samples, sample_rate, sampling_key("opacus"))
        self._drawn = 0

    def __iter__(self) -> Generator[list[int], None, None]:
        for _ in range(self.steps):
            self._drawn += 1
            yield self._sampler.draw(self._drawn - 1).tolist()


class BatchMemoryManager(OpacusBatchMemoryManager):
    """Arguments are those of Opacus.

    A logical batch that was left before its last part is dropped: in the sums of the next one, a row could count twice.
    """

    optimizer: Any  # one of ours: `optimizer.DPOptimizer`

    def __enter__(self) -> DataLoader[Any]:
        self.optimizer.drop_unfinished()
        self.optimizer.parts_of_one_draw = True
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.optimizer.parts_of_one_draw = False
        self.optimizer.drop_unfinished()
