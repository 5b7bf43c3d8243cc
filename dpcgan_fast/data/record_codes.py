"""The codes of records, those of all columns side by side, put together for the records that are asked for alone.

What lies in a file stays there: neither another order of the codes, as of a paid vocabulary, nor a second column of
codes, nor records that are left out, makes a copy of all.
"""

from dataclasses import dataclass

import numpy as np

from dpcgan_fast.data.code_rows import CodeRows, CodeSets, positions_in
from dpcgan_fast.data.mapping import let_go


@dataclass(frozen=True)
class CodesPart:
    """The codes of one column.

    rows:   of each row of the table the codes; they may lie in a mapped file
    places: int32, for each of their positions the place in the vocabulary, negative if there is none; None if they are
            places already
    first:  where in a record the vocabulary begins, counted from the first of all codes
    """

    rows: CodeRows
    places: np.ndarray | None = None
    first: int = 0

    @classmethod
    def of(cls, sets: CodeSets, vocabulary: tuple[str, ...], most: int, first: int) -> "CodesPart":
        """Of the codes that are in a vocabulary at most `most` of each row; see `CodeSets.within`."""
        if sets.names == vocabulary or np.diff(sets.rows.starts).max(initial=0) > most:
            return cls(sets.within(vocabulary, most), None, first)
        return cls(sets.rows, positions_in(vocabulary, sets.names).astype(np.int32), first)

    def take(self, rows: np.ndarray) -> CodeRows:
        """Positions in the records of these rows (B,) int64."""
        taken = self.rows.take(rows)
        if self.places is None:
            return taken.moved(self.first)
        places = self.places[taken.positions]
        known = places >= 0
        return CodeRows.from_entries(
            taken.row_of_entry()[known], places[known].astype(np.int64) + self.first, len(rows)
        )


@dataclass(frozen=True)
class RecordCodes:
    """Which codes each record has, counted from the first of all codes.

    parts:  the columns of codes, in order
    chosen: int64 (N,), the row of the table that each record is; None if all rows are records
    """

    parts: tuple[CodesPart, ...]
    chosen: np.ndarray | None = None

    @property
    def as_they_lie(self) -> CodeRows | None:
        """The codes of all records, if they need not be put together first."""
        only = self.parts[0]
        as_one = len(self.parts) == 1 and self.chosen is None and only.places is None and only.first == 0
        return only.rows if as_one else None

    def take(self, records: np.ndarray) -> CodeRows:
        """The codes of these records (B,) int64, in that order."""
        rows = records if self.chosen is None else self.chosen[records]
        return CodeRows.side_by_side([part.take(rows) for part in self.parts])

    def let_go(self) -> None:
        """Lets go of the pages of mapped files; see `mapping.let_go`."""
        for part in self.parts:
            let_go(part.rows.positions)
