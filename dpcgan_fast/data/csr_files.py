"""Tables of codes out of sparse matrices: an entry that is stored and not zero says that this row has this code.

Files are those of `scipy.sparse.save_npz`, a zip archive of arrays. They come from others, so that names and sizes are
judged by the archive's directory, and types and shapes by the arrays' headers, before any array is inflated; headers
are matched against the one form that numpy writes, and nothing in a file is ever evaluated or made into an object.
"""

import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse

from dpcgan_fast.errors import DpcganError, InputError
from dpcgan_fast.files import open_data, unreadable

_LARGE_ARRAYS = {"indices.npy", "indptr.npy"}
_SMALL_ARRAYS = {"format.npy", "shape.npy"}
_ARRAYS = {*_LARGE_ARRAYS, *_SMALL_ARRAYS, "data.npy"}
_MARK = "_is_array.npy"  # only says which of scipy's two classes it was
_OTHER_FORMATS = ("csc", "coo", "bsr", "dia")
_NUMBERS = "biufc"  # numpy's letters for booleans, integers, floats and complex numbers
_WIDEST = 2**31 - 1  # column numbers are int32

_SMALL = 4096  # bytes: all that a header, the format's name or the shape may take
_BLOCK = 1 << 20  # bytes of an array that are inflated at a time
# Deflate shrinks zeros a thousandfold, the arrays of a real table seldom tenfold.
_MOST_INFLATION = 100
_FREE = 1 << 26  # bytes: a large array up to here may inflate from as little as it likes

_UNPACKED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_FLAGS = 0b1000_0000_1110  # deflate's level, sizes behind the member, UTF-8 names; others mean encryption or patches
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<>|][biufcSU]\d{1,4})', 'fortran_order': False, "
    rb"'shape': \((?P<shape>(?:\d{1,19}(?:, ?|(?=\))))*)\), \} *\n"
)
_UNREADABLE = (
    OSError, ValueError, MemoryError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_SAVE = "Write it with scipy.sparse.save_npz."
_CONVERT = "Convert it with scipy.sparse.csr_matrix(m)"


@dataclass(frozen=True)
class CodeMatrix:
    """Which of `width` codes each of N rows has.

    starts:  int64 (N + 1,), row i has the entries from starts[i] up to starts[i + 1]
    columns: int32 (E,), column numbers, rising within each row and without repeats
    width:   number of columns
    """

    starts: np.ndarray
    columns: np.ndarray
    width: int


def is_matrix_file(source: object) -> bool:
    """Whether it is the path of a CSR matrix, by its ending."""
    return isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() == ".npz"


def is_code_matrix(source: object) -> bool:
    """Whether it is a sparse matrix or array of scipy's, of any format, or a CSR matrix of Arrow's."""
    return scipy.sparse.issparse(source) or isinstance(source, pa.SparseCSRMatrix)


def code_matrix_of(matrix: Any) -> CodeMatrix:
    """Codes out of a CSR matrix or array in memory, of scipy's or Arrow's.

    It stays as it is, and may share memory with the result.

    Entries may be in any order, repeated, or zero. Of repeated ones each counts by itself: 1 and -1 are a code.
    Raises InputError if the matrix is of another format, or is not a sound matrix of numbers.
    """
    where = "matrix"
    if isinstance(matrix, pa.SparseCSRMatrix):
        matrix = matrix.to_scipy()
    if matrix.format != "csr":
        raise InputError(f"The matrix is of format {matrix.format}, not CSR", where, f"{_CONVERT}.")
    if matrix.data.dtype.kind not in _NUMBERS:
        raise InputError("The matrix holds something else than numbers", where, "Give a matrix of numbers.")
    rows, width = _checked_shape(matrix.shape, where)
    starts = matrix.indptr.astype(np.int64)
    if len(starts) != rows + 1 or len(matrix.indices) != len(matrix.data):
        raise _unfit(where)
    used = int(starts[-1])  # scipy may keep room behind them
    columns = _checked_columns(matrix.indices[:used], width, where)
    return _code_matrix(starts, columns, np.flatnonzero(matrix.data[:used] == 0), width, where)


def read_code_matrix(path: Path) -> CodeMatrix:
    """Codes out of a CSR matrix that `scipy.sparse.save_npz` wrote, compressed or not, of any numbers or booleans.

    Entries may be in any order, repeated, or zero, as in `code_matrix_of`. Memory: what is returned and a byte for
    each entry, and more only if entries are zero or in no order.
    Raises InputError if the file is damaged or holds anything else, or arrays that inflate more than a hundredfold;
    MachineError if the memory does not suffice. No error quotes the data.
    """
    try:
        with open_data(path) as file, zipfile.ZipFile(file) as archive:
            return _read(archive, file, path)
    except DpcganError:
        raise
    except _UNREADABLE as error:
        raise unreadable(error, path) from None


# ---- the archive


@dataclass(frozen=True)
class _Array:
    """An array of the archive whose header is read and whose values are not."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    header: int  # bytes before the values
    dtype: np.dtype
    shape: tuple[int, ...]

    def blocks(self) -> Iterator[np.ndarray]:
        """Its values, flat, some at a time. The checksum is compared behind the last of them."""
        left, most = math.prod(self.shape), _BLOCK // self.dtype.itemsize
        with self.archive.open(self.info) as stream:
            stream.read(self.header)
            while left:
                raw = stream.read(min(left, most) * self.dtype.itemsize)
                block = np.frombuffer(raw, self.dtype, min(left, most))  # a ValueError if it is cut short
                left -= len(block)
                yield block


def _read(archive: zipfile.ZipFile, file: IO[bytes], path: Path) -> CodeMatrix:
    members = _members(archive, file, path)
    _check_format(archive, members, path)
    if not _ARRAYS <= set(members) <= _ARRAYS | {_MARK}:
        raise InputError("The file holds other arrays than those of a CSR matrix", str(path), _SAVE)
    arrays = {name: _array(archive, members[name], path) for name in sorted(_ARRAYS)}
    indices, starts, data = arrays["indices.npy"], arrays["indptr.npy"], arrays["data.npy"]
    for array in (indices, starts):
        if array.dtype.kind != "i" or array.dtype.itemsize < 4:
            raise InputError("The array is not of type int32 or int64", _place(path, array.info), _SAVE)
    if data.dtype.kind not in _NUMBERS:
        raise InputError("The matrix holds something else than numbers", str(path), "Give a matrix of numbers.")
    rows, width = _shape(arrays["shape.npy"], path)
    if starts.shape != (rows + 1,) or len(indices.shape) != 1 or data.shape != indices.shape:
        raise _unfit(str(path))
    zeros = _zeros(data)
    numbers = (_checked_columns(block, width, str(path)) for block in indices.blocks())
    columns = _collected(numbers, data.shape[0], np.int32)
    return _code_matrix(_collected(starts.blocks(), rows + 1, np.int64), columns, zeros, width, str(path))


def _members(archive: zipfile.ZipFile, file: IO[bytes], path: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's directory by name, if it says what can be true and can be unpacked."""
    members = {info.orig_filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise InputError("The file holds two arrays of one name", str(path), _SAVE)
    if sum(info.compress_size for info in members.values()) > os.fstat(file.fileno()).st_size:
        raise zipfile.BadZipFile
    for info in members.values():
        if info.compress_type not in _UNPACKED or info.flag_bits & ~_FLAGS:
            raise InputError("The file is encrypted, or packed in a way that save_npz does not use", str(path), _SAVE)
        _check_size(info, path)
    return members


def _check_size(info: zipfile.ZipInfo, path: Path) -> None:
    """Of the arrays that are held in memory. The data are not; they have as many entries as the indices."""
    if info.orig_filename in _SMALL_ARRAYS and info.file_size > _SMALL:
        raise InputError(f"The array takes more than {_SMALL} bytes", _place(path, info), _SAVE)
    if info.orig_filename in _LARGE_ARRAYS and info.file_size > max(_FREE, _MOST_INFLATION * info.compress_size):
        what = f"The array would inflate more than {_MOST_INFLATION}-fold, as in files made to fill the memory"
        how = "If you trust the file, load it with scipy and write it with save_npz(..., compressed=False)."
        raise InputError(what, _place(path, info), how)


def _check_format(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path) -> None:
    """Comes before the names are judged: other formats have arrays of other names."""
    if "format.npy" not in members:
        raise InputError("The file holds no sparse matrix of scipy's", str(path), _SAVE)
    array = _array(archive, members["format.npy"], path)
    if array.dtype.kind not in "SU" or array.shape != ():
        raise InputError("The file's format is not a name", _place(path, array.info), _SAVE)
    raw = _collected(array.blocks(), 1, array.dtype).tobytes()
    name = raw.replace(b"\0", b"").decode("ascii")  # text or bytes; numpy itself fails at text of no characters
    if name in _OTHER_FORMATS:
        raise InputError(f"The matrix is of format {name}, not CSR", str(path), f"{_CONVERT} and save that.")
    if name != "csr":
        raise InputError("The matrix is not of format CSR", str(path), f"{_CONVERT} and save that.")


def _shape(array: _Array, path: Path) -> tuple[int, int]:
    if array.dtype.kind not in "iu" or array.shape != (2,):
        raise InputError("The matrix has no two dimensions", _place(path, array.info), _SAVE)
    return _checked_shape(tuple(_collected(array.blocks(), 2, array.dtype).tolist()), str(path))


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> _Array:
    """Inflates no more than the header. What the archive says of the size must be what the header says."""
    with archive.open(info) as stream:
        start = stream.read(len(_MAGIC) + 2)
        length = int.from_bytes(start[len(_MAGIC) :], "little")
        header = _HEADER.fullmatch(stream.read(length)) if start.startswith(_MAGIC) and length <= _SMALL else None
    try:
        dtype = np.dtype(header["dtype"].decode()) if header else None
    except TypeError:  # a size that there is no such number of
        dtype = None
    if header is None or dtype is None or dtype.itemsize == 0:
        raise InputError("The array is not one of numbers as numpy writes them", _place(path, info), _SAVE)
    shape = tuple(int(size) for size in re.findall(rb"\d+", header["shape"]))
    before = len(start) + length
    if before + math.prod(shape) * dtype.itemsize != info.file_size:
        raise zipfile.BadZipFile
    return _Array(archive, info, before, dtype, shape)


def _collected(blocks: Iterable[np.ndarray], count: int, dtype: npt.DTypeLike) -> np.ndarray:
    """Blocks of so many values in all as one array."""
    values, at = np.empty(count, dtype), 0
    for block in blocks:
        values[at : at + len(block)] = block
        at += len(block)
    return values


def _zeros(data: _Array) -> np.ndarray:
    """Positions of the entries that are zero, int64."""
    found, at = [np.empty(0, np.int64)], 0
    for block in data.blocks():
        positions = np.flatnonzero(block == 0)
        if len(positions):
            found.append(positions + at)
        at += len(block)
    return np.concatenate(found)


def _place(path: Path, info: zipfile.ZipInfo) -> str:
    return f"{path}, {info.orig_filename}"  # one of the names above


# ---- the matrix


def _unfit(where: str) -> InputError:
    return InputError("The arrays of the matrix do not fit together", where, _SAVE)


def _checked_shape(shape: tuple[int, ...], where: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise InputError("The matrix has no two dimensions", where, "Give a matrix of rows and codes.")
    rows, width = shape
    if rows < 1:
        raise InputError("The data have no rows", where, "Give a table with at least one row.")
    if not 1 <= width <= _WIDEST:
        raise InputError("The number of columns is not between 1 and 2^31 - 1", where, "Give a column for each code.")
    return rows, width


def _checked_columns(indices: np.ndarray, width: int, where: str) -> np.ndarray:
    """Column numbers as int32, if they are of a matrix so wide."""
    if len(indices) and not (indices.min() >= 0 and indices.max() < width):
        raise InputError("A column number lies outside of the matrix", where, _SAVE)
    return indices.astype(np.int32, copy=False)


def starts_fit(starts: np.ndarray, entries: int) -> bool:
    """Whether they cut that many entries into rows. starts: int64 (N + 1,)"""
    return bool(starts[0] == 0 and starts[-1] == entries and (starts[1:] >= starts[:-1]).all())


def rises_within_rows(starts: np.ndarray, columns: np.ndarray) -> bool:
    """Whether each row's columns rise. starts: int64 (N + 1,), which fit; columns: int32 (E,)"""
    falls = np.flatnonzero(columns[1:] <= columns[:-1]) + 1
    return bool((starts[np.searchsorted(starts, falls)] == falls).all())  # only from one row to the next


def _code_matrix(starts: np.ndarray, columns: np.ndarray, zeros: np.ndarray, width: int, where: str) -> CodeMatrix:
    """starts: int64 (N + 1,); columns: int32 (E,), in range; zeros: int64, rising, which entries do not count."""
    if not starts_fit(starts, len(columns)):
        raise _unfit(where)
    if len(zeros):
        columns = np.delete(columns, zeros)
        starts = starts - np.searchsorted(zeros, starts)
    if not rises_within_rows(starts, columns):
        present = np.ones(len(columns), np.bool_)
        matrix = scipy.sparse.csr_matrix((present, columns, starts), shape=(len(starts) - 1, width), copy=True)
        matrix.sum_duplicates()
        starts, columns = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32, copy=False)
    return CodeMatrix(starts, columns, width)
