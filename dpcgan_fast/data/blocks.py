"""Layout of an encoded record: which positions of the vector in [0, 1]^F hold which column."""

from dataclasses import dataclass
from typing import Literal

BlockKind = Literal["numeric", "binary", "categorical", "wide", "absent", "codes"]
MANY_CATEGORIES = 64  # public: a one-hot that is wider has a place of its own in records and networks


@dataclass(frozen=True)
class Block:
    """Consecutive positions of a record that belong to one column.

    kind: numeric      one value, scaled to [0, 1] by the public or paid bounds; with `cells`, one of so many places
          binary       one value, 0 or 1
          categorical  one-hot over the categories, then `__other__` and "missing" where the schema has them
          wide         the same of more than MANY_CATEGORIES, but of visits; these stand after all other columns,
                       before codes, and have no guard
          absent       one value, 1 where the numeric column of this name is missing, or a visit is not there
          codes        one value for each code of the vocabulary, 1 if the record has it
    guard:  position of the flag (a block "absent") that is 1 where this block says nothing, and holds `idle` then
    hidden: the block says something even there, though nothing that it can be judged by
    sample: the block is a sample of the one signal that the record is
    """

    kind: BlockKind
    name: str
    start: int
    width: int
    cells: int | None = None
    guard: int | None = None
    hidden: bool = False
    sample: bool = False

    @property
    def stop(self) -> int:
        """First position after the block."""
        return self.start + self.width

    @property
    def idle(self) -> tuple[float, ...]:
        """What the positions hold where the block says nothing."""
        first = {"numeric": 0.5, "binary": 0.0, "categorical": 1.0, "wide": 1.0, "absent": 1.0, "codes": 0.0}[self.kind]
        return (first, *(0.0 for _ in range(self.width - 1)))
