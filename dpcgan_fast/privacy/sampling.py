"""Poisson sampling of units."""

from dataclasses import dataclass, field

import numpy as np

from dpcgan_fast.ops import native_module


@dataclass(frozen=True)
class PoissonSampler:
    """Draws each unit independently with probability `sample_rate`, in time O(draw + n_units / 65536).

    n_units:     units in the table; only the draw uses it, never a divisor
    sample_rate: q in (0, 1], public
    key:         32 secret bytes, of this mechanism alone

    Formal guarantee: the draw of step t depends on (key, t) and on no other step; the presence of a unit depends
    neither on other units nor on how work is shared among processes.
    """

    n_units: int
    sample_rate: float
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"Expected sample_rate={self.sample_rate} in (0, 1].")

    def draw(self, step: int) -> np.ndarray:
        """Sorted unit indices of one step, int64; may be empty."""
        return native_module().poisson_sample(self.key, step, self.n_units, self.sample_rate)
