"""Layout of an encoded record: which positions of the vector in [0, 1]^F hold which column."""

from dataclasses import dataclass
from typing import Literal

BlockKind = Literal["numeric", "binary", "categorical", "absent", "codes"]


@dataclass(frozen=True)
class Block:
    """Consecutive positions of a record that belong to one column.

    kind: numeric      one value, scaled to [0, 1] by the public or paid bounds; with `cells`, one of so many places
          binary       one value, 0 or 1
          categorical  one-hot over the categories, then `__other__` and "missing" where the schema has them
          absent       one value, 1 where the numeric column of this name is missing
          codes        one value for each code of the vocabulary, 1 if the record has it
    """

    kind: BlockKind
    name: str
    start: int
    width: int
    cells: int | None = None

    @property
    def stop(self) -> int:
        """First position after the block."""
        return self.start + self.width
