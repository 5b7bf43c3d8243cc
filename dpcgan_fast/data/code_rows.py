"""Sets of codes, one a record, in compressed rows: most records have few out of many codes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse

from dpcgan_fast.data import cells
from dpcgan_fast.data.hashing import mixed
from dpcgan_fast.data.mapping import let_go
from dpcgan_fast.errors import InputError

_IS_SETS = {b"dpcgan_fast": b"sets of codes"}  # of a field: its lists are sets, in order, of one list of names
_BLOCK_ROWS = 1 << 17
_CHECKED_ROWS = 1 << 12  # at a time: what is found out of them is not kept
_NARROW = 1 << 31  # keys that are smaller fit into four bytes
_FEW = 1 << 15  # keys that torch does not sort by radix


@dataclass(frozen=True)
class CodeEntries:
    """The codes that stand in a column's cells, as often as they stand there.

    rows:  int64 (E,), row of each entry
    codes: int64 (E,), index into `names`
    names: different codes, in the order in which they appear
    """

    rows: np.ndarray
    codes: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class CodeRows:
    """Which positions of each record are 1.

    starts:    int64 (N + 1,), where each record begins in `positions`
    positions: int32 (E,), rising within a record
    """

    starts: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def from_entries(cls, rows: np.ndarray, positions: np.ndarray, n_rows: int) -> "CodeRows":
        """Each record's set of positions. rows, positions: int64 (E,), in any order and as often as one likes."""
        width = int(positions.max()) + 1 if len(positions) else 1
        kind = np.int32 if n_rows * width < _NARROW else np.int64
        keys = (rows * width + positions).astype(kind)
        # Many by radix, for numpy compares ten times as long; few, as of a batch, torch would compare as well.
        keys = np.sort(keys) if len(keys) < _FEW else torch.from_numpy(keys).sort().values.numpy()
        keys = keys[np.diff(keys, prepend=kind(-1)) > 0]
        rows, positions = np.divmod(keys, kind(width))
        counts = np.bincount(rows, minlength=n_rows)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), positions.astype(np.int32))

    def capped(self, most: int, names: tuple[str, ...]) -> "CodeRows":
        """At most `most` positions of each record, as good as drawn. names: of the positions.

        Formal guarantee: what is kept of a record is a function of its own set of names. Their places in a list, which
        other records may have had a part in, do not matter, and it differs between records, so that no name is kept
        more often than others.
        """
        counts = np.diff(self.starts)
        longer = np.flatnonzero(counts > most)  # few, as a rule, and the others are as they are
        if not len(longer):
            return self
        sets = self.take(longer)
        rows, keys = sets.row_of_entry(), _keys(names)[sets.positions]
        order = np.lexsort((mixed(keys ^ mixed(sets.keys(names))[rows]), rows))
        place = np.arange(len(rows)) - sets.starts[rows]
        kept = np.repeat(counts <= most, counts)
        kept[np.flatnonzero(~kept)[order[place < most]]] = True
        starts = np.concatenate([[0], np.cumsum(np.minimum(counts, most))])
        return CodeRows(starts.astype(np.int64), self.positions[kept])

    def keys(self, names: tuple[str, ...]) -> np.ndarray:
        """A number for each record, uint64 (N,), that follows from its set of names alone. names: of the positions."""
        of_row = np.zeros(len(self), np.uint64)
        np.add.at(of_row, self.row_of_entry(), _keys(names)[self.positions])
        return of_row

    def matrix(self, width: int) -> sparse.csr_array:
        """Which positions each record has: (N, width) float64, 1 where it does."""
        return sparse.csr_array((np.ones(len(self.positions)), self.positions, self.starts), (len(self), width))

    def row_of_entry(self) -> np.ndarray:
        """Record of each entry, int64 (E,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def take(self, rows: np.ndarray) -> "CodeRows":
        """The records (B,) int64 in that order."""
        first, counts = self.starts[rows], np.diff(self.starts)[rows]
        before = np.cumsum(counts) - counts
        entries = np.arange(int(counts.sum())) + np.repeat(first - before, counts)
        return CodeRows(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), self.positions[entries])

    def blocks(self, size: int = _BLOCK_ROWS) -> Iterator["CodeRows"]:
        """The records in blocks of bounded memory, in order; pages of a mapped file are let go of block by block."""
        for first in range(0, len(self), size):
            starts = self.starts[first : first + size + 1]
            yield CodeRows(starts - starts[0], self.positions[starts[0] : starts[-1]])
            let_go(self.positions)

    def are_sets(self) -> bool:
        """Whether positions rise within every record."""
        for block in self.blocks(_CHECKED_ROWS):
            rising = np.diff(block.positions, prepend=-1) > 0
            first = block.starts[:-1]
            rising[first[first < len(rising)]] = True
            if not rising.all():
                return False
        return True

    def weighted_counts(
        self, width: int, weights: np.ndarray, classes: np.ndarray | None = None, class_count: int = 1
    ) -> np.ndarray:  # fmt: skip
        """Weighted number of records of each class that have each position: (class_count, width) float64.

        weights: (N,) of each record; classes: (N,) int64 in [0, class_count), None if there is one
        """
        counts, first = np.zeros(class_count * width), 0
        for block in self.blocks():
            record = block.row_of_entry() + first
            cells_of = block.positions if classes is None else classes[record] * width + block.positions
            counts += np.bincount(cells_of, weights[record], minlength=len(counts))
            first += len(block)
        return counts.reshape(class_count, width)

    def moved(self, by: int) -> "CodeRows":
        """All positions moved by `by`, without a copy if that is 0."""
        return self if by == 0 else CodeRows(self.starts, self.positions + np.int32(by))

    @classmethod
    def side_by_side(cls, parts: list["CodeRows"]) -> "CodeRows":
        """The same records' positions in all parts, of which each lies after those before it."""
        if len(parts) == 1:
            return parts[0]
        rows = np.concatenate([part.row_of_entry() for part in parts])
        order = np.argsort(rows, kind="stable")
        starts = np.sum([part.starts for part in parts], axis=0)
        return cls(starts, np.concatenate([part.positions for part in parts])[order])


def _keys(names: tuple[str, ...]) -> np.ndarray:
    """A number for each name, uint64, that follows from the name alone."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, np.uint64)


def code_entries(column: pa.ChunkedArray | pa.Array, separator: str | None, where: str) -> CodeEntries:
    """The codes in a column of lists, of texts, or of whole numbers; blanks around a code do not count.

    separator: text between the codes of one cell, or of one entry of a list; None if it is always one code
    Missing cells, and missing entries of a list, are no codes.
    Raises InputError if the cells are neither single values nor lists of them.
    """
    rows, values = _flat(cells.plain(column), where)
    found, codes = cells.distinct(values, where)
    cells.refuse_rounded(found, "The codes", where)
    index: dict[str, int] = {}
    texts = [cells.cell_text(value) for value in found]
    parts = [[text] if separator is None else text.split(separator) for text in texts]
    numbers = np.array([_number_of(part, index) for own in parts for part in own], dtype=np.int64)
    counts = np.array([len(own) for own in parts], dtype=np.int64)
    present = codes >= 0  # a null has index -1
    rows, codes = rows[present], codes[present]
    if counts.max(initial=1) > 1:
        first = np.cumsum(counts) - counts
        entries = counts[codes]
        within = np.arange(int(entries.sum())) - np.repeat(np.cumsum(entries) - entries, entries)
        rows, codes = np.repeat(rows, entries), np.repeat(first[codes], entries) + within
    numbers = numbers[codes]
    present = numbers != cells.MISSING
    return CodeEntries(rows[present], numbers[present], tuple(index))


def _number_of(text: str, index: dict[str, int]) -> int:
    """A code is taken as it is written: 250 and 250.0 are two."""
    code = text.strip()
    return cells.MISSING if code.lower() in cells.MISSING_TEXTS else index.setdefault(code, len(index))


def _flat(column: pa.ChunkedArray, where: str) -> tuple[np.ndarray, pa.ChunkedArray]:
    """Row of each value, int64, and the values."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return np.arange(len(column)), column
    if pa.types.is_nested(kind.value_type):
        raise InputError("The column's cells are not lists of single values", where, "Leave the column out.")
    # Not Arrow's parent indices: they count what may lie beneath a null list, which flattening leaves out.
    lengths = cells.compute.list_value_length(column).fill_null(0).to_numpy()
    rows = np.repeat(np.arange(len(column)), lengths)
    values = [cells.compute.list_flatten(chunk) for chunk in column.chunks]
    return rows, pa.chunked_array(values, kind.value_type)


def positions_in(vocabulary: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    """Position of each name in the vocabulary, int64; UNKNOWN if it is not there."""
    position = {code: i for i, code in enumerate(vocabulary)}
    return np.array([position.get(name, cells.UNKNOWN) for name in names], dtype=np.int64)


@dataclass(frozen=True)
class CodeSets:
    """The sets of codes of a column. rows: positions in `names`; names: codes, each once."""

    rows: CodeRows
    names: tuple[str, ...]

    @classmethod
    def of_column(cls, table: pa.Table, name: str, separator: str | None, where: str) -> "CodeSets":
        """The sets in a column of a table, without a copy where `lists` has made the column."""
        column = table[name]
        if table.field(name).metadata == _IS_SETS and column.num_chunks == 1:
            sets = cls._of_lists(column.chunk(0))
            if sets is not None:
                return sets
        entries = code_entries(column, separator, where)
        return cls(CodeRows.from_entries(entries.rows, entries.codes, len(column)), entries.names)

    @classmethod
    def _of_lists(cls, lists: pa.Array) -> "CodeSets | None":
        """None if the lists are no sets in order after all: files keep what a field says, whatever is done to them.

        Formal guarantee: no record has a code twice, on which the sensitivity of all counts of codes rests.
        """
        kind = lists.type
        if not (pa.types.is_large_list(kind) and pa.types.is_dictionary(kind.value_type)):
            return None
        if lists.null_count or lists.values.null_count:
            return None
        starts = lists.offsets.to_numpy()
        positions = lists.values.indices.to_numpy()[starts[0] : starts[-1]]
        rows = CodeRows(starts - starts[0] if starts[0] else starts, positions)
        names = tuple(lists.values.dictionary.to_pylist())
        return cls(rows, names) if len(set(names)) == len(names) and rows.are_sets() else None

    def capped(self, most: int) -> "CodeSets":
        """At most `most` codes of each record, and the names of those alone that a record then has; see `CodeRows`."""
        rows = self.rows.capped(most, self.names)
        used = np.zeros(len(self.names), bool)
        for block in rows.blocks():  # numpy takes eight bytes for each place that it is given
            used[block.positions] = True
        if used.all():
            return CodeSets(rows, self.names)
        places = np.cumsum(used, dtype=np.int32) - np.int32(1)
        names = tuple(name for name, kept in zip(self.names, used, strict=True) if kept)
        return CodeSets(CodeRows(rows.starts, places[rows.positions]), names)

    def lists(self, checked: bool = False) -> pa.LargeListArray:
        """A column of lists, without a copy. checked: whether all positions are known to have a name."""
        names = pa.array(self.names, pa.string())
        values = pa.DictionaryArray.from_arrays(pa.array(self.rows.positions, pa.int32()), names, safe=not checked)
        return pa.LargeListArray.from_arrays(pa.array(self.rows.starts, pa.int64()), values)

    def field(self, name: str) -> pa.Field:
        """The field of such a column in a table's schema; it says that `of_column` need not sort anything."""
        return pa.field(name, pa.large_list(pa.dictionary(pa.int32(), pa.string())), metadata=_IS_SETS)

    def within(self, vocabulary: tuple[str, ...], most: int) -> CodeRows:
        """Positions in a vocabulary, of which a record has at most `most`; codes that are not in it do not count."""
        if self.names == vocabulary:
            return self.rows.capped(most, vocabulary)
        place = positions_in(vocabulary, self.names)
        starts, row = np.zeros(len(self.rows) + 1, np.int64), 0
        found = np.empty(len(self.rows.positions), np.int32)  # what is not filled takes no memory
        for block in self.rows.blocks():
            positions = place[block.positions]
            known = positions != cells.UNKNOWN
            own = CodeRows.from_entries(block.row_of_entry()[known], positions[known], len(block))
            own = own.capped(most, vocabulary)
            first = int(starts[row])
            starts[row + 1 : row + 1 + len(own)] = own.starts[1:] + first
            found[first : first + len(own.positions)] = own.positions
            row += len(own)
        return CodeRows(starts, found[: starts[-1]])
