"""Rows of one table sorted into buckets on disk, so that all rows of a unit meet in memory, a bucket at a time."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
from numpy.lib.stride_tricks import as_strided

from dpcgan_fast.data import cells
from dpcgan_fast.data.hashing import mixed
from dpcgan_fast.data.opened import UNREADABLE
from dpcgan_fast.data.store import damaged_work
from dpcgan_fast.errors import InputError
from dpcgan_fast.files import unreadable, written_whole
from dpcgan_fast.ops import native_module

_ODD = np.uint64(0x9E3779B97F4A7C15)
_FULL = np.uint64(0xFFFFFFFFFFFFFFFF)
_BLOCK = 1 << 14  # texts, so that what is computed of them stays in the cache
_LONGEST = 1 << 9  # bytes of a text that its bucket depends on
_OPTIONS = ipc.IpcWriteOptions(compression="lz4")
_SUM = 4  # bytes behind each bucket and the list of them: the CRC-32 of what is before them
_PLACE = np.dtype("<i8")  # of a bucket in the file


def bucket_of_rows(ids: pa.ChunkedArray, buckets: int, where: str) -> np.ndarray:
    """Bucket of each row, int64 (M,), from 0 to buckets - 1; ids that mean the same, of whatever type, have the same.

    Raises InputError if the column is of a nested type.
    """
    column = cells.plain(ids)
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    if cells.written_one_way(column):
        parts = [chunk.slice(i, _BLOCK) for chunk in column.chunks for i in range(0, len(chunk), _BLOCK)]
        return np.concatenate([np.empty(0, np.int64), *(_of_words(_hashes(part), buckets) for part in parts)])
    values, codes = cells.distinct(column, where)
    texts = pa.array([*(cells.canonical_text(value) for value in values), ""], pa.string())
    return _of_words(_hashes(texts), buckets)[codes]


def _hashes(texts: pa.StringArray) -> np.ndarray:
    """A number for each text, uint64, of its first bytes and its length."""
    text, starts = cells.bytes_of(texts)
    starts, lengths = starts[:-1], np.diff(starts)
    padded = np.concatenate([text, np.zeros(8, np.uint8)])
    words = as_strided(padded[:8].view(np.uint64), (len(padded) - 7,), (1,))  # eight bytes from each byte on
    hashes = lengths.astype(np.uint64)
    for begin in range(0, min(int(lengths.max(initial=0)), _LONGEST), 8):
        rows = np.flatnonzero(lengths > begin) if begin else slice(None)
        unused = (8 * (8 - np.clip(lengths[rows] - begin, 1, 8))).astype(np.uint64)  # bits
        word = np.where(lengths[rows] > begin, words[starts[rows] + begin] & (_FULL >> unused), np.uint64(0))
        mixed = (hashes[rows] ^ word) * _ODD
        hashes[rows] = mixed ^ (mixed >> np.uint64(32))
    return hashes


def _of_words(words: np.ndarray, buckets: int) -> np.ndarray:
    return (mixed(words) % np.uint64(buckets)).astype(np.int64)


def _taken(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows of a table; texts by a kernel of our own, for Arrow's takes six times as long where rows lie anywhere."""
    columns = [
        _texts_taken(column.chunk(0), rows) if _is_plain_text(column) else column.take(pa.array(rows))
        for column in table.combine_chunks().columns
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _is_plain_text(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) and column.num_chunks == 1 and len(column) > 0 and not column.null_count


def _texts_taken(texts: pa.StringArray, rows: np.ndarray) -> pa.StringArray:
    """Texts at `rows`, (M,) int64, of an array without nulls. Raises ValueError beyond 2 GiB."""
    _, starts, data = texts.buffers()
    own = np.frombuffer(starts, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    taken, ends = native_module().take_texts(np.frombuffer(data or b"", np.uint8), own, rows)
    return pa.StringArray.from_buffers(len(rows), pa.py_buffer(ends), pa.py_buffer(taken))


def write_spool(path: Path, table: pa.Table, bucket_of: np.ndarray, buckets: int) -> None:
    """Writes the rows of a table bucket by bucket, whole or not at all.

    A bucket is an Arrow stream and its checksum. Behind the last one stands where each begins, and the end. It is kept
    here and not by the caller: of all spools together it is a long list.
    Raises MachineError if the disk is full.
    """
    order = np.argsort(bucket_of.astype(np.int16), kind="stable")  # by radix
    ends = np.cumsum(np.bincount(bucket_of, minlength=buckets))
    table = _taken(table, order)
    offsets, first = [], 0
    with written_whole(path, private=True) as file:
        for end in ends:
            offsets.append(file.tell())
            content = pa.BufferOutputStream()
            with ipc.new_stream(content, table.schema, options=_OPTIONS) as stream:
                stream.write_table(table.slice(first, int(end) - first))
            rows = content.getvalue()
            file.write(rows)
            file.write(zlib.crc32(rows).to_bytes(_SUM, "little"))
            first = int(end)
        places = np.array([*offsets, file.tell()], _PLACE).tobytes()
        file.write(places)
        file.write(zlib.crc32(places).to_bytes(_SUM, "little"))


def bucket_places(path: Path, buckets: int) -> np.ndarray:
    """Where each bucket of a spool begins, and the end of the last one, int64 (buckets + 1,).

    Raises InputError if the spool is gone or damaged.
    """
    size = (buckets + 1) * _PLACE.itemsize + _SUM
    try:
        with path.open("rb") as file:
            file.seek(-size, os.SEEK_END)
            content = file.read(size)
    except FileNotFoundError:
        raise damaged_work(path, "a file is missing") from None
    except UNREADABLE as error:
        raise unreadable(error, path) from None
    if zlib.crc32(content[:-_SUM]).to_bytes(_SUM, "little") != content[-_SUM:]:
        raise damaged_work(path, "a checksum does not match")
    return np.frombuffer(content[:-_SUM], _PLACE)


def read_bucket(spools: list[tuple[Path, np.ndarray]], bucket: int) -> Iterator[pa.Table]:
    """The rows of a bucket out of each spool, in order. spools: paths, and their `bucket_places`.

    Raises InputError if a spool is gone or damaged.
    """
    for path, places in spools:
        try:
            with path.open("rb") as file:
                file.seek(int(places[bucket]))
                content = memoryview(file.read(int(places[bucket + 1] - places[bucket])))
            rows, checksum = content[:-_SUM], content[-_SUM:]
            if zlib.crc32(rows).to_bytes(_SUM, "little") != checksum:
                raise damaged_work(path, "a checksum does not match")
            table = ipc.open_stream(rows).read_all()
        except InputError:
            raise
        except FileNotFoundError:
            raise damaged_work(path, "a file is missing") from None
        except UNREADABLE as error:
            raise unreadable(error, path) from None
        yield table
