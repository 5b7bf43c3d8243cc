"""Poisson draws that are secret, and Opacus's BatchMemoryManager, which forgets a batch that was left half-way."""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from opacus.utils.batch_memory_manager import BatchMemoryManager as OpacusBatchMemoryManager
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch.utils.data import DataLoader


class SecureDraws(UniformWithReplacementSampler):
    """Opacus's sampler with the operating system's generator in place of torch's, which any seed decides."""

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of indices, each index with probability `sample_rate`, to 2^-53 upwards."""
        below = math.ceil(self.sample_rate * 2**53)
        for _ in range(self.steps):
            words = np.frombuffer(os.urandom(8 * self.num_samples), dtype=np.uint64)
            yield np.flatnonzero((words >> np.uint64(11)) < np.uint64(below)).tolist()


class BatchMemoryManager(OpacusBatchMemoryManager):
    """Arguments are those of Opacus.

    A logical batch that was left before its last part is dropped: in the sums of the next one, a row could count twice.
    """

    def __enter__(self) -> DataLoader[Any]:
        self.optimizer.drop_unfinished()
        self.optimizer.parts_of_one_draw = True
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.optimizer.parts_of_one_draw = False
        self.optimizer.drop_unfinished()
