"""Tables of codes written to sparse matrix files batch by batch, so that a table may be larger than memory."""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from dpcgan_fast.data.csr_files import rises_within_rows, starts_fit
from dpcgan_fast.data.writing import check_place
from dpcgan_fast.files import machine_error, written_whole

_BLOCK = 1 << 20  # bytes of a spool that are packed at a time
_COLUMN, _START = np.dtype("<i4"), np.dtype("<i8")
_MOST_NARROW = 2**31 - 1  # what int32 index arrays can count
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date of zip's; the same rows then give the same bytes


class CodeMatrixWriter:
    """Writes batches of rows to a file that `scipy.sparse.load_npz` loads as a CSR matrix of int8 ones.

    A context manager. While it is open the batches are in unnamed files in the folder of `path`, which vanish when it
    is closed, however that happens; the file `path` is made when the block ends without an error, whole or not at all.
    Its index arrays are int64 if the entries or rows are more than int32 can count.

    Raises InputError if there can be no file at `path`, MachineError if the machine cannot write (disk full).
    """

    def __init__(self, path: str | Path, width: int):
        if not 1 <= width < 2**31:
            raise ValueError(f"Expected width={width} between 1 and 2^31 - 1.")
        self._path = Path(path)
        check_place(self._path)
        self._width = width
        self._rows = 0
        self._entries = 0
        self._open = contextlib.ExitStack()
        self._spools: tuple[IO[bytes], IO[bytes]] | None = None  # starts, columns

    def __enter__(self) -> "CodeMatrixWriter":
        with contextlib.ExitStack() as opening:
            try:
                # Unbuffered, or what did not fit on a full disk would be written again when they are closed.
                starts, columns = (
                    opening.enter_context(tempfile.TemporaryFile(dir=self._path.parent, buffering=0)) for _ in range(2)
                )
                _append(starts, np.zeros(1, _START))
            except OSError as error:
                raise machine_error(error, self._path) from error
            self._spools = starts, columns
            self._open = opening.pop_all()
        return self

    def write(self, starts: np.ndarray, columns: np.ndarray) -> None:
        """Appends n rows.

        starts:  int64 (n + 1,), row i has the entries from starts[i] up to starts[i + 1] of this batch
        columns: int32 (e,), column numbers, rising within each row and without repeats

        Raises ValueError if the batch is no such thing.
        """
        if self._spools is None:
            raise ValueError("a CodeMatrixWriter is used in a with statement")
        if len(starts) == 0 or not starts_fit(starts, len(columns)):
            raise ValueError("the batch's starts do not begin at 0, rise and end at the number of its columns")
        if len(columns) and not (columns.min() >= 0 and columns.max() < self._width):
            raise ValueError("the batch has column numbers outside of the matrix")
        if not rises_within_rows(starts, columns):
            raise ValueError("the batch has a row whose columns do not rise")
        try:
            _append(self._spools[0], starts[1:].astype(_START) + self._entries)
            _append(self._spools[1], columns.astype(_COLUMN))
        except OSError as error:
            self._spools = None  # one of them may have a part of the batch
            raise machine_error(error, self._path) from error
        self._rows += len(starts) - 1
        self._entries += len(columns)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        spools, self._spools = self._spools, None
        with self._open:
            if kind is None and spools is not None:
                self._write_archive(*spools)

    def _write_archive(self, starts: IO[bytes], columns: IO[bytes]) -> None:
        narrow = max(self._rows, self._entries) <= _MOST_NARROW
        index = _COLUMN if narrow else _START  # one type for both, or scipy would convert them
        ones = (b"\1" * min(_BLOCK, self._entries - at) for at in range(0, self._entries, _BLOCK))
        shape = np.array([self._rows, self._width], "<i8").tobytes()
        with written_whole(self._path) as sink, zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            _add(archive, "indices", index, (self._entries,), _converted(columns, _COLUMN, index))
            _add(archive, "indptr", index, (self._rows + 1,), _converted(starts, _START, index))
            _add(archive, "format", np.dtype("S3"), (), [b"csr"])
            _add(archive, "shape", np.dtype("<i8"), (2,), [shape])
            _add(archive, "data", np.dtype("i1"), (self._entries,), ones)


def _append(spool: IO[bytes], values: np.ndarray) -> None:
    left = values.tobytes()
    while left:  # a write takes no more than it has room for
        left = left[spool.write(left) :]


def _converted(spool: IO[bytes], kind: np.dtype, wanted: np.dtype) -> Iterator[bytes]:
    spool.seek(0)
    while block := spool.read(_BLOCK):
        yield np.frombuffer(block, kind).astype(wanted).tobytes()


def _add(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...], blocks: Iterable[bytes]) -> None:
    """Adds an array in the form of numpy's .npy files."""
    info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(info, "w", force_zip64=True) as member:  # sizes are not known before they are packed
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        for block in blocks:
            member.write(block)
