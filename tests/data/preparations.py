"""Tables of events in many forms, their stores, and machines that fail at a point of one's choice."""

import csv
import gzip
import os
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpcgan_fast.data import preparing
from dpcgan_fast.data.code_rows import CodeSets
from dpcgan_fast.data.schema import Schema

VOCABULARY = ["a", "b", "c", "d"]
COLUMNS = ["patient", "died", "age", "dx", "rx"]
ROWS = [
    (f"p{i % 7}", str(i % 2), "" if i % 3 else str(20 + i), VOCABULARY[i % 4] + ("|new" if i % 5 else ""), f"r{i % 3}")
    for i in range(40)
]


def make_schema(codes=("dx", "rx"), vocabulary=VOCABULARY, most=200, plain=("died", "age"), **changes):
    kinds = {
        "died": {"name": "died", "type": "binary", "missing": True},
        "age": {"name": "age", "type": "numeric", "bounds": None},
        "dx": {"name": "dx", "type": "codes", "vocabulary": vocabulary, "max_codes": most},
        "rx": {"name": "rx", "type": "codes", "vocabulary": "private", "max_codes": most},
    }
    columns = [kinds[name] for name in (*plain, *codes)]
    return Schema.from_dict({"unit": "patient", "columns": columns, **changes})


class Quiet:
    """Told of the work, and silent."""

    def start(self, phase, total, done):
        pass

    def advance(self, done):
        pass


def never():
    return False


def prepare(source, schema, out, stopped=never):
    return preparing.prepare(source, schema, out, Quiet(), stopped)


@contextmanager
def groups_of(size):
    """Groups of rows of so many bytes, and buckets of half as many; nothing waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "_GROUP", size)
        patch.setattr(os, "fsync", lambda _: None)
        yield


# ---- sources


def write_shards(folder, shards, form):
    """A folder with a table in several files; rows of strings. form: csv, csv.gz or parquet."""
    folder.mkdir()
    for number, rows in enumerate(shards):
        path = folder / f"part-{number}.{form}"
        if form == "parquet":
            columns = list(zip(*rows, strict=True)) or [[]] * len(COLUMNS)
            table = pa.table([pa.array(cells, pa.string()) for cells in columns], COLUMNS)
            pq.write_table(table, path, row_group_size=3)
            continue
        with gzip.open(path, "wt") if form == "csv.gz" else path.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    return folder


def write_meds(folder, shards):
    """A folder in the MEDS standard; rows of a number and a code."""
    (folder / "metadata").mkdir(parents=True)
    (folder / "data").mkdir()
    kinds = pa.schema([("subject_id", pa.int64()), ("time", pa.timestamp("us")), ("code", pa.string())])
    for number, rows in enumerate(shards):
        cells = [{"subject_id": subject, "code": code} for subject, code in rows]
        pq.write_table(pa.Table.from_pylist(cells, schema=kinds), folder / "data" / f"{number}.parquet")
    return folder


# ---- what is compared


def sets_in(table, column):
    """Of each row the codes that count."""
    sets = CodeSets.of_column(table, column.name, column.separator, "data")
    names = column.vocabulary if isinstance(column.vocabulary, tuple) else sets.names
    rows = sets.within(names, column.max_codes)
    return [
        frozenset(names[p] for p in rows.positions[first:end])
        for first, end in zip(rows.starts[:-1], rows.starts[1:], strict=True)
    ]


def records_of(table, schema):
    """Rows as tuples, in order: the unit, if there is one, plain cells, then sets of codes."""
    codes = schema.codes_columns()
    plain = [name for name in schema.column_names() if name not in {column.name for column in codes}]
    unit = [] if schema.unit is None else [schema.unit]
    columns = [table[name].to_pylist() for name in (*unit, *plain)] + [sets_in(table, column) for column in codes]
    return list(zip(*columns, strict=True))


def by_unit(records):
    """The records by the first cell, of which none may come twice."""
    found = {record[0].strip() if isinstance(record[0], str) else record[0]: record[1:] for record in records}
    assert len(found) == len(records)
    return found


def content(folder):
    """Every file beneath a folder, by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- failures


class CrashError(Exception):
    """Stands for a process that dies."""


@contextmanager
def failing_at(call, error):
    """Raises at a write to the disk, by number from 0: after it was written, and before it is durable."""
    done = 0

    def fsync(_):
        nonlocal done
        done += 1
        if done == call + 1:
            raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield
