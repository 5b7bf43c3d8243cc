"""Made-up tables of medical codes of any size, with the frequencies and the dependence of real ones, block by block.

Codes are as frequent as a power law of their rank says (Zipf-Mandelbrot). Each belongs to one of some conditions; a
patient has a few of these, and a part of the patient's codes comes from them. A condition is as common as its codes
together, so that it makes codes occur together and leaves their frequencies as they are. A block depends on the seed
and its number alone, and none but the block at hand is in memory.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dpcgan_fast.data.code_rows import CodeRows
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.store import CodeFiles, write_store_file

EventFormat = Literal["csv", "parquet"]

UNIT, COLUMN = "subject_id", "code"
EXPONENT, OFFSET = 1.1, 30.0  # a code of rank r is drawn in proportion to (r + OFFSET)^-EXPONENT
CONDITIONS, MOST_CONDITIONS = 40, 4  # in all, and of a patient
MOST_CODES = 200  # of a patient
SHARDS = 8
_MENU, _FROM_CONDITIONS = 8, 4  # of as many equally likely sources of a patient's codes, how many are conditions
_DENSITY, _SPREAD = 0.0125, 0.6  # mean draws of a patient over the number of codes; deviation of their logarithm
_LARGEST_MEAN = 130.0
_BLOCK_EVENTS = 1 << 22
_SLOTS = 64  # least number for each code, in a table by which codes are drawn
_FIRST_ID = 10_000_000  # ids have eight digits
_EVENTS = pa.schema([(UNIT, pa.int64()), ("time", pa.timestamp("us")), (COLUMN, pa.dictionary(pa.int32(), pa.string())),
                     ("numeric_value", pa.float32())])  # fmt: skip
_DAY, _DAYS = 86_400_000_000, 3650  # microseconds; events lie in ten years from 2010 on
_FIRST_DAY = 14_610


@dataclass(frozen=True)
class EventFiles:
    """A table of events on disk, in shards of one folder, and the schema beside it."""

    data: Path
    schema: Path
    events: int
    size: int


@dataclass(frozen=True)
class CodeTable:
    """The codes of some patients, 0.5 to 2 % of the vocabulary each on average, and at most MOST_CODES."""

    patients: int
    codes: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.patients <= 10 * _FIRST_ID - _FIRST_ID and 1 <= self.codes <= 100_000):
            raise ValueError(f"Expected patients={self.patients} in [1, 9e7] and codes={self.codes} in [1, 1e5].")

    @cached_property
    def condition_of(self) -> np.ndarray:
        """The condition of each code, int64 (codes,)."""
        return np.random.default_rng([self.seed, 0]).permutation(self.codes) % CONDITIONS

    @cached_property
    def frequencies(self) -> np.ndarray:
        """How likely a drawn code is each of them, (codes,)."""
        ranks = np.random.default_rng([self.seed, 1]).permutation(self.codes) + 1.0
        weights = (ranks + OFFSET) ** -EXPONENT
        return weights / weights.sum()

    @property
    def names(self) -> tuple[str, ...]:
        """The codes."""
        return tuple(f"C{code:05}" for code in range(self.codes))

    @property
    def block_patients(self) -> int:
        """Patients of a block but the last one."""
        return max(1, min(int(_BLOCK_EVENTS / self._mean), 2**32 // self.codes))

    @property
    def _mean(self) -> float:
        return min(max(2.0, _DENSITY * self.codes), _LARGEST_MEAN)

    @cached_property
    def _slots(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes by condition, int32 (S,), each in as many places as it is frequent, and where conditions begin."""
        order = np.argsort(self.condition_of, kind="stable")
        count = 1 << (_SLOTS * self.codes - 1).bit_length()
        reached = np.cumsum(self.frequencies[order])
        places = np.searchsorted(reached, (np.arange(count) + 0.5) / count * reached[-1])
        slots = order[places]
        return slots.astype(np.int32), np.searchsorted(self.condition_of[slots], np.arange(CONDITIONS + 1))

    def blocks(self) -> Iterator[CodeRows]:
        """The patients' sets of codes, in order, block by block."""
        for number, first in enumerate(range(0, self.patients, self.block_patients)):
            yield self._block(number, min(self.block_patients, self.patients - first))

    def _block(self, number: int, patients: int) -> CodeRows:
        rng = np.random.default_rng([self.seed, 2, number])
        slots, begins = self._slots
        drawn = rng.lognormal(np.log(self._mean) - _SPREAD**2 / 2, _SPREAD, patients)
        counts = np.clip(np.rint(drawn), 1, MOST_CODES).astype(np.int64)
        # Where each source of a patient's codes begins among the slots, and how many it has: first the conditions'.
        begin = np.zeros((patients, _MENU), np.uint64)
        width = np.full((patients, _MENU), len(slots), np.uint64)
        had = np.searchsorted(begins, rng.integers(0, len(slots), (patients, MOST_CONDITIONS)), side="right") - 1
        which = np.arange(_FROM_CONDITIONS) % rng.integers(1, MOST_CONDITIONS + 1, (patients, 1))
        had = np.take_along_axis(had, which, 1)
        begin[:, :_FROM_CONDITIONS], width[:, :_FROM_CONDITIONS] = begins[had], begins[had + 1] - begins[had]
        patient = np.repeat(np.arange(patients, dtype=np.uint32), counts)
        random = rng.integers(0, 2**64, len(patient), np.uint64)
        source = patient * np.uint32(_MENU) + (random >> np.uint64(61)).astype(np.uint32)
        place = begin.ravel()[source] + (((random & np.uint64(0xFFFFFFFF)) * width.ravel()[source]) >> np.uint64(32))
        keys = patient * np.uint32(self.codes) + slots[place].view(np.uint32)
        keys.sort()
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
        patient, positions = np.divmod(keys, np.uint32(self.codes))
        starts = np.concatenate([[0], np.cumsum(np.bincount(patient, minlength=patients))])
        return CodeRows(starts, positions.view(np.int32))

    def events(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Patients and codes of events, int64 and int32, a block at a time, in a random order within it."""
        first = 0
        for number, rows in enumerate(self.blocks()):
            rng = np.random.default_rng([self.seed, 3, number])
            patient = np.repeat(np.arange(len(rows), dtype=np.uint32), np.diff(rows.starts))
            keys = patient * np.uint32(self.codes) + rows.positions.view(np.uint32)
            rng.shuffle(keys)
            patient, positions = np.divmod(keys, np.uint32(self.codes))
            yield patient.astype(np.int64) + first, positions.view(np.int32)
            first += len(rows)

    def schema_values(self, vocabulary: object) -> dict[str, object]:
        """The schema of such a table as JSON values. vocabulary: the path of a file, or the codes."""
        column = {"name": COLUMN, "type": "codes", "vocabulary": vocabulary, "max_codes": MOST_CODES}
        return {"version": 1, "unit": UNIT, "n_units": self.patients, "max_rows_per_unit": 1, "label": None,
                "columns": [column]}  # fmt: skip

    def schema(self) -> Schema:
        """The schema, with the vocabulary in it."""
        return Schema.from_dict(self.schema_values(list(self.names)), "benchmark")


def write_events(table: CodeTable, folder: Path, kind: EventFormat) -> EventFiles:
    """Writes a row an event, a patient's spread over all shards: CSV, or Parquet with the columns of MEDS.

    folder: is made; the shards lie in its `events`, schema.json and codes.txt beside that
    """
    data = folder / "events"
    data.mkdir(parents=True)
    (folder / "codes.txt").write_text("\n".join(table.names) + "\n", encoding="utf-8")
    schema = folder / "schema.json"
    schema.write_text(json.dumps(table.schema_values("codes.txt"), indent=1) + "\n", encoding="utf-8")
    events = 0
    with ExitStack() as opened:
        paths = [data / f"part-{shard:02}.{kind}" for shard in range(SHARDS)]
        write = [(_csv_shard if kind == "csv" else _parquet_shard)(table, path, opened) for path in paths]
        for patients, codes in table.events():
            edges = np.linspace(0, len(codes), SHARDS + 1).astype(np.int64)
            for shard, (begin, end) in enumerate(pairwise(edges)):
                write[shard](patients[begin:end], codes[begin:end])
            events += len(codes)
    return EventFiles(data, schema, events, sum(path.stat().st_size for path in data.iterdir()))


def _csv_shard(
    table: CodeTable, path: Path, opened: ExitStack
) -> Callable[[np.ndarray, np.ndarray], None]:  # fmt: skip
    """Lines of sixteen bytes, each put together of two words."""
    file: IO[bytes] = opened.enter_context(path.open("wb"))
    file.write(f"{UNIT},{COLUMN}\n".encode())
    ends = np.array([f",{name}\n".encode() for name in table.names], "S8").view("<u8")
    digits = np.array([f"{number:04}".encode() for number in range(10_000)], "S4").view("<u4").astype(np.uint64)

    def write(patients: np.ndarray, codes: np.ndarray) -> None:
        high, low = np.divmod(patients + _FIRST_ID, 10_000)
        lines = np.empty((len(codes), 2), "<u8")
        lines[:, 0] = digits[high] | digits[low] << np.uint64(32)
        lines[:, 1] = ends[codes]
        file.write(lines.data)

    return write


def _parquet_shard(
    table: CodeTable, path: Path, opened: ExitStack
) -> Callable[[np.ndarray, np.ndarray], None]:  # fmt: skip
    wide = {"compression": "lz4", "use_dictionary": [COLUMN], "write_statistics": False}
    file = opened.enter_context(pq.ParquetWriter(path, _EVENTS, **wide))
    names = pa.array(table.names, pa.string())

    def write(patients: np.ndarray, codes: np.ndarray) -> None:
        days = _FIRST_DAY + (patients * 2_654_435_761 + codes * 40_503) % _DAYS
        columns = [
            pa.array(patients + _FIRST_ID), pa.array(days * _DAY).cast(pa.timestamp("us")),
            pa.DictionaryArray.from_arrays(pa.array(codes), names), pa.nulls(len(codes), pa.float32()),
        ]  # fmt: skip
        file.write_table(pa.Table.from_arrays(columns, schema=_EVENTS))

    return write


def write_store(table: CodeTable, folder: Path) -> None:
    """Writes the store that `dpcgan prepare` would make of the table, but for the ids, without its events."""
    folder.mkdir(parents=True)
    files = CodeFiles.of(0)
    entries = 0
    with (folder / files.starts).open("wb") as starts, (folder / files.positions).open("wb") as positions:
        starts.write(np.zeros(1, np.int64).data)
        for rows in table.blocks():
            starts.write((rows.starts[1:] + entries).data)
            positions.write(rows.positions.data)
            entries += len(rows.positions)
    write_store_file(folder, table.schema(), table.patients, [], [list(table.names)])
