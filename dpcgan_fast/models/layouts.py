"""Where in a record which parts stand: columns, then wide categories, then codes."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpcgan_fast.data.blocks import Block


@dataclass(frozen=True)
class RecordLayout:
    """First positions of the parts of a record, and its width; an empty part has no positions."""

    first_wide: int
    first_code: int
    width: int

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> "RecordLayout":
        """That of blocks in the order of a record."""
        width = blocks[-1].stop
        starts = {block.kind: block.start for block in reversed(blocks)}
        first_code = starts.get("codes", width)
        return cls(starts.get("wide", first_code), first_code, width)
