"""Makes a store out of a table that may be larger than memory, in any order of rows, and can be interrupted.

Where all rows of a unit are one record, a first pass sorts the rows into buckets on disk by unit, and a second one
takes the buckets one at a time. Else the rows are taken as they come. What is done is noted after each group of rows or
bucket; called again with the same table and schema, the work goes on there.
"""

import math
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from dpcgan_fast.data import cells
from dpcgan_fast.data.code_rows import CodeSets
from dpcgan_fast.data.csr_files import is_matrix_file
from dpcgan_fast.data.encoding import table_columns
from dpcgan_fast.data.reading import no_rows, open_with
from dpcgan_fast.data.records import read_records, records_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.spools import bucket_of_rows, bucket_places, read_bucket, write_spool
from dpcgan_fast.data.store import (
    PROGRESS_FILE,
    CodeFiles,
    checksum,
    damaged_work,
    is_made_of,
    is_store,
    part_file,
    sealed,
    store_facts,
    unsealed,
    write_store_file,
)
from dpcgan_fast.data.units import missing_id
from dpcgan_fast.errors import InputError, StoppedError
from dpcgan_fast.files import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    machine_error,
    make_private_folder,
    write_whole,
    written_whole,
)

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_GROUP = 1 << 26  # bytes of rows in a group; a bucket has about half as many
_MOST_BUCKETS = 1 << 15  # as many as the numbers that rows are sorted by
_AHEAD = 2  # groups or buckets at work beside the one that is being written
_LAYOUT = 3  # of batches, groups, buckets and spools: to be raised whenever these are written in another way


class Progress(Protocol):
    """What is told of the work."""

    def start(self, phase: str, total: int, done: int) -> None:
        """A phase begins, or goes on after `done` of `total`."""

    def advance(self, done: int) -> None:
        """So much of the phase is done."""


@dataclass
class _Done:
    """What a call that was interrupted has done.

    facts, columns, source: of the schema and of the files, for a later call to compare
    buckets: how many there are, 0 if rows are not sorted
    batches: of the source that were taken
    spools:  files of sorted rows
    sorted:  whether all rows are
    taken:   buckets
    parts:   files of plain columns
    rows:    records written
    entries: codes written, by column; names: different ones of a private vocabulary
    sums:    checksums of the files of records as they were written
    """

    facts: dict[str, Any]
    columns: list[str]
    source: list[list[Any]]
    buckets: int
    batches: int = 0
    spools: list[str] = field(default_factory=list)
    sorted: bool = False
    taken: int = 0
    parts: list[str] = field(default_factory=list)
    rows: int = 0
    entries: list[int] = field(default_factory=list)
    names: list[list[str]] = field(default_factory=list)
    sums: dict[str, int] = field(default_factory=dict)


def prepare(
    source: Path, schema: Schema, out: Path, progress: Progress, stopped: Callable[[], bool]
) -> tuple[str, ...]:
    """Makes a store of a table, or goes on with it; returns the names of the table's columns that the schema lacks.

    source:  a file or folder that `read_records` takes
    schema:  with the unit and vocabularies decided; bounds and categories may still be open
    stopped: asked after each group of rows

    Raises InputError if the table does not fit, and then leaves nothing behind, or if there is another store at `out`;
    StoppedError if it was stopped, MachineError if the disk is full.
    """
    return _Preparation(source, schema, out, progress, stopped).run()


def is_prepared(source: Path, schema: Schema, out: Path) -> bool:
    """Whether `out` is a finished store of the very files of a source, so that nothing is left to do."""
    return is_made_of(out, _fingerprint(source), schema)


def _fingerprint(source: Path) -> list[list[Any]]:
    """Name, size and time of change of each file."""
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    stats = [(path.name, path.stat()) for path in files if path.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


@dataclass(frozen=True)
class _Group:
    """Rows of the source. before: rows before these; batches: those of the source up to and with these."""

    table: pa.Table
    before: int
    batches: int


@dataclass(frozen=True)
class _Records:
    """Records that are ready to be written: plain columns, the sets of each column of codes, and how many there are."""

    plain: pa.Table
    sets: list[CodeSets]
    rows: int


def _ahead(work: Callable[[_In], _Out], items: Iterable[_In]) -> Generator[_Out, None, None]:
    """What `work` makes of each item, in order; that of the next ones is made meanwhile, on other threads, which end
    when it is closed.
    """
    begun: deque[Future[_Out]] = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > _AHEAD:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


class _Preparation:
    def __init__(
        self, source: Path, schema: Schema, out: Path, progress: Progress, stopped: Callable[[], bool]
    ):  # fmt: skip
        self._source, self._schema, self._out = source, schema, out
        self._progress, self._stopped = progress, stopped
        schema.require_units()
        self._codes = schema.as_records().codes_columns()
        if is_store(source):
            raise InputError("The data are in a store already", str(source), "Give the store to `dpcgan train`.")
        if is_store(out):
            what = "There is a store at the output path already, made of other files or for another schema"
            raise InputError(what, str(out), "Choose a new folder.")
        if is_matrix_file(source):
            self._left, self._batches, size = (), self._matrix, 0
        else:
            wanted = list(table_columns(schema))
            opened, self._left = open_with(source, wanted)
            self._batches, size = (lambda: opened.batches(wanted)), opened.size(wanted)
        buckets = min(math.ceil(2 * size / _GROUP) or 1, _MOST_BUCKETS)
        self._done = self._begin(buckets if schema.merges_rows else 0)
        self._spools: list[tuple[Path, np.ndarray]] = []  # once all rows are sorted

    def _matrix(self) -> Iterator[pa.Table]:
        yield read_records(self._source, self._schema, str(self._source))[0]

    def _begin(self, buckets: int) -> _Done:
        """What was done before, or nothing yet."""
        # What is noted counts batches and buckets, which other versions may cut in another way.
        facts = {**store_facts(self._schema), "cut by": [pa.__version__, _LAYOUT]}
        fresh = _Done(facts, list(table_columns(self._schema)), _fingerprint(self._source), buckets)
        path = self._out / PROGRESS_FILE
        if path.is_file():
            try:
                before = _Done(**unsealed(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                where, how = f"{path}: {type(error).__name__}", "Remove the folder and start again."
                raise InputError("The work that was begun cannot be read", where, how) from None
            if (before.facts, before.columns, before.source) != (fresh.facts, fresh.columns, fresh.source):
                what = "Another table, or the same one by another schema or version, was begun at the output path"
                raise InputError(what, str(self._out), "Remove the folder, or choose a new one.")
            return before
        if self._out.exists() and (not self._out.is_dir() or any(self._out.iterdir())):
            raise InputError("There is something at the output path already", str(self._out), "Choose a new folder.")
        make_private_folder(self._out)
        try:
            self._out.chmod(PRIVATE_FOLDER)  # of a folder that was there
        except OSError as error:
            raise machine_error(error, self._out) from error
        fresh.entries = [0] * len(self._codes)
        fresh.names = [list(c.vocabulary) if isinstance(c.vocabulary, tuple) else [] for c in self._codes]
        write_whole(path, sealed(vars(fresh)), private=True)
        return fresh

    def run(self) -> tuple[str, ...]:
        try:
            self._take_all()
            self._finish()
        except InputError:  # once the table is mended, it is another one; and of damaged work nothing is kept
            shutil.rmtree(self._out, ignore_errors=True)
            raise
        return self._left

    def _take_all(self) -> None:
        if self._done.buckets:
            self._sort_rows()
            if not self._done.spools:
                raise no_rows(str(self._source))
            self._progress.start("records", self._done.buckets, self._done.taken)
            left = range(self._done.taken, self._done.buckets)
            if left:  # else the spools may be gone
                paths = [self._out / name for name in self._done.spools]
                self._spools = [(path, bucket_places(path, self._done.buckets)) for path in paths]
            with closing(_ahead(self._records_of_bucket, left)) as ready:
                for number, records in zip(left, ready, strict=True):
                    self._add(records)
                    self._done.taken = number + 1
                    self._note()
                    self._progress.advance(number + 1)
        else:
            self._progress.start("groups of rows", 0, 0)
            with closing(_ahead(self._records_of_group, self._groups())) as ready:
                for number, (records, batches) in enumerate(ready, start=1):
                    self._add(records)
                    self._done.batches = batches
                    self._note()
                    self._progress.advance(number)
        if not self._done.rows:
            raise no_rows(str(self._source))

    def _groups(self) -> Iterator[_Group]:
        """The rows that are still to be taken, in tables of bounded size."""
        waiting: list[pa.Table] = []
        number, before = 0, 0
        for number, batch in enumerate(self._batches(), start=1):
            if number <= self._done.batches:
                before += batch.num_rows
                continue
            waiting.append(batch)
            if sum(part.nbytes for part in waiting) >= _GROUP:
                yield _Group(pa.concat_tables(waiting), before, number)
                before += sum(part.num_rows for part in waiting)
                waiting = []
        if waiting:
            yield _Group(pa.concat_tables(waiting), before, number)

    def _sort_rows(self) -> None:
        if self._done.sorted:
            return
        self._progress.start("groups of rows", 0, len(self._done.spools))
        with closing(_ahead(self._spool, enumerate(self._groups(), start=len(self._done.spools)))) as ready:
            for spool, batches in ready:
                self._done.spools.append(spool)
                self._done.batches = batches
                self._note()
                self._progress.advance(len(self._done.spools))
        self._done.sorted = True
        self._note()

    def _spool(self, numbered: tuple[int, _Group]) -> tuple[str, int]:
        number, group = numbered
        assert self._schema.unit is not None
        ids, place = group.table[self._schema.unit], f"{self._source}, column {self._schema.unit}"
        missing = cells.is_missing(ids)
        if missing.any():  # said here, where it is known which row it is
            raise missing_id(place, group.before + int(missing.argmax()) + 1)
        buckets = bucket_of_rows(ids, self._done.buckets, place)
        name = f"spool-{number:05}"
        write_spool(self._out / name, group.table, buckets, self._done.buckets)
        return name, group.batches

    def _records_of_bucket(self, bucket: int) -> _Records:
        rows = pa.concat_tables(read_bucket(self._spools, bucket))
        return self._records(rows.combine_chunks())  # hundreds of short pieces take twice as long

    def _records_of_group(self, group: _Group) -> tuple[_Records, int]:
        return self._records(group.table), group.batches

    def _records(self, rows: pa.Table) -> _Records:
        columns, where = self._codes, str(self._source)
        if not rows.num_rows:
            return _Records(rows, [], 0)
        table = records_of(rows, self._schema, where)
        sets = [CodeSets.of_column(table, c.name, c.separator, f"{where}, column {c.name}") for c in columns]
        for place, column in enumerate(columns):
            if isinstance(column.vocabulary, tuple):
                sets[place] = CodeSets(sets[place].within(column.vocabulary, column.max_codes), column.vocabulary)
        return _Records(table.drop_columns([column.name for column in columns]), sets, table.num_rows)

    def _add(self, records: _Records) -> None:
        """Appends records to the files of the store. What a call before left behind what it noted is cut off."""
        if not records.rows:
            return
        if records.plain.num_columns:
            name = part_file(len(self._done.parts))
            with (
                written_whole(self._out / name, private=True) as file,
                ipc.new_stream(file, records.plain.schema) as stream,
            ):
                stream.write_table(records.plain)
            self._done.parts.append(name)
            self._done.sums[name] = checksum(self._out / name)
        for place, (column, sets) in enumerate(zip(self._codes, records.sets, strict=True)):
            names = self._done.names[place]
            if not isinstance(column.vocabulary, tuple):
                sets = sets.capped(column.max_codes)
                names += sorted(set(sets.names) - set(names))
            rows = sets.within(tuple(names), column.max_codes)
            files = CodeFiles.of(place)
            before = self._done.entries[place]
            starts = rows.starts[1:] + before if self._done.rows else rows.starts
            self._append(files.starts, 8 * (self._done.rows + 1 if self._done.rows else 0), starts)
            self._append(files.positions, 4 * before, rows.positions)
            self._done.entries[place] = before + len(rows.positions)
        self._done.rows += records.rows

    def _append(self, name: str, size: int, values: np.ndarray) -> None:
        path = self._out / name
        try:
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE_FILE), "r+b") as file:
                if file.seek(0, os.SEEK_END) < size:
                    raise damaged_work(path, "a file is too short")
                file.truncate(size)
                file.seek(size)
                content = np.ascontiguousarray(values).tobytes()
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # before the note of it
        except OSError as error:
            raise machine_error(error, path) from error
        self._done.sums[name] = zlib.crc32(content, self._done.sums.get(name, 0))

    def _note(self) -> None:
        write_whole(self._out / PROGRESS_FILE, sealed(vars(self._done)), private=True)
        if self._stopped():
            raise StoppedError("Stopped by a signal", str(self._out), "Run the same command again to go on.")

    def _finish(self) -> None:
        """The files of the store are whole; all others are removed before it is one."""
        files = {PROGRESS_FILE, *self._done.parts}
        for place in range(len(self._done.names)):
            files.update(CodeFiles.of(place).all())
        for path in self._out.iterdir():
            if path.is_file() and path.name not in files:
                path.unlink()
        done = self._done
        write_store_file(self._out, self._schema, done.rows, done.parts, done.names, done.sums, done.source)
        (self._out / PROGRESS_FILE).unlink()
