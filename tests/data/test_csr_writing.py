"""Codes written batch by batch are one matrix for scipy; the file appears whole, or not at all."""

import contextlib
import errno
import os
import stat
import tempfile
import zipfile

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from dpcgan_fast.data import csr_writing
from dpcgan_fast.data.csr_files import read_code_matrix
from dpcgan_fast.data.csr_writing import CodeMatrixWriter
from dpcgan_fast.errors import InputError, MachineError
from tests.data.disks import small_disk

WIDTH = 5
ROWS = st.lists(st.sets(st.integers(0, WIDTH - 1)), max_size=6)
BATCH = [{0, 3}, set(), {4}]


def batch_of(rows):
    """starts and columns of rows that are sets of columns."""
    starts = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    return starts, np.array([column for row in rows for column in sorted(row)], dtype=np.int32)


def dense(rows, width=WIDTH):
    return np.array([[column in row for column in range(width)] for row in rows], np.int8).reshape(len(rows), width)


def write(path, *batches, width=WIDTH):
    with CodeMatrixWriter(path, width) as writer:
        for rows in batches:
            writer.write(*batch_of(rows))


def names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("csr") / "out.npz"


# ---- what is written


@given(batches=st.lists(ROWS, max_size=4))
def test_batches_load_in_scipy_as_one_csr_matrix_of_ones(path, batches):
    write(path, *batches)
    matrix = scipy.sparse.load_npz(path)
    assert matrix.format == "csr"
    assert matrix.dtype == np.int8
    assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
    assert matrix.has_canonical_format
    assert np.array_equal(matrix.toarray(), dense([row for rows in batches for row in rows]))
    assert names(path.parent) == [path.name]


@given(rows=ROWS.filter(len))
def test_what_is_written_is_read_back(path, rows):
    write(path, rows)
    codes = read_code_matrix(path)
    starts, columns = batch_of(rows)
    assert np.array_equal(codes.starts, starts)
    assert np.array_equal(codes.columns, columns)
    assert codes.width == WIDTH


def test_a_table_of_many_blocks(path, monkeypatch):
    monkeypatch.setattr(csr_writing, "_BLOCK", 64)
    matrix = scipy.sparse.random(300, 40, 0.2, format="csr", random_state=0)
    matrix.sort_indices()
    with CodeMatrixWriter(path, 40) as writer:
        for part in (matrix[:7], matrix[7:200], matrix[200:]):
            writer.write(part.indptr.astype(np.int64), part.indices)
    assert np.array_equal(scipy.sparse.load_npz(path).toarray(), matrix.toarray() != 0)


def test_more_entries_than_int32_counts_give_int64_index_arrays(path, monkeypatch):
    monkeypatch.setattr(csr_writing, "_MOST_NARROW", 2)
    write(path, BATCH, BATCH)
    with np.load(path) as arrays:
        assert arrays["indices"].dtype == arrays["indptr"].dtype == np.int64
    assert np.array_equal(scipy.sparse.load_npz(path).toarray(), dense(BATCH * 2))
    assert read_code_matrix(path).columns.tolist() == [0, 3, 4, 0, 3, 4]


def test_entries_beyond_int32_are_counted(path):
    """The starts of a batch are moved by the entries before it, which may be more than int32 can hold."""
    with CodeMatrixWriter(path, WIDTH) as writer:
        writer._entries = 2**31
        starts, columns = batch_of(BATCH)
        writer.write(starts.astype(np.int32), columns)
        spool = writer._spools[0]
        spool.seek(0)
        assert np.frombuffer(spool.read(), np.int64).tolist() == [0, 2**31 + 2, 2**31 + 2, 2**31 + 3]
        writer._entries = 3


def test_the_same_rows_give_the_same_bytes_however_they_are_cut_into_batches(tmp_path):
    write(tmp_path / "one.npz", BATCH, BATCH)
    write(tmp_path / "two.npz", BATCH * 2)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_the_file_has_the_permissions_of_other_outputs(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "out.npz", BATCH)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.npz").stat().st_mode) == 0o640


# ---- what is refused


@pytest.mark.parametrize(
    ("starts", "columns", "what"),
    [
        ([], [], "starts"),
        ([1, 2], [0, 1], "starts"),
        ([0, 1], [0, 1], "starts"),
        ([0, 3], [0, 1], "starts"),
        ([0, 2, 1, 2], [0, 1], "starts"),
        ([0, 2], [0, WIDTH], "outside"),
        ([0, 2], [-1, 0], "outside"),
        ([0, 2], [1, 0], "do not rise"),
        ([0, 2], [1, 1], "do not rise"),
        ([0, 1, 1, 3], [2, 1, 0], "do not rise"),
    ],
)
def test_a_batch_that_is_none_is_refused(tmp_path, starts, columns, what):
    with pytest.raises(ValueError, match=what), CodeMatrixWriter(tmp_path / "out.npz", WIDTH) as writer:
        writer.write(np.array(starts, np.int64), np.array(columns, np.int32))
    assert names(tmp_path) == []


@pytest.mark.parametrize("width", [0, -1, 2**31])
def test_a_width_that_no_column_number_fits_is_refused(tmp_path, width):
    with pytest.raises(ValueError, match="width"):
        CodeMatrixWriter(tmp_path / "out.npz", width)


def test_places_that_cannot_be_written_are_refused_before_anything_is(tmp_path):
    with pytest.raises(InputError, match="folder"):
        CodeMatrixWriter(tmp_path, WIDTH)
    with pytest.raises(InputError, match="does not exist"):
        CodeMatrixWriter(tmp_path / "none" / "out.npz", WIDTH)


def test_writing_outside_of_the_block_is_refused(tmp_path):
    writer = CodeMatrixWriter(tmp_path / "out.npz", WIDTH)
    with pytest.raises(ValueError, match="with statement"):
        writer.write(*batch_of(BATCH))
    with writer:
        writer.write(*batch_of(BATCH))
    with pytest.raises(ValueError, match="with statement"):
        writer.write(*batch_of(BATCH))
    assert read_code_matrix(tmp_path / "out.npz").columns.tolist() == [0, 3, 4]


# ---- what fails


def test_an_error_in_the_block_leaves_what_stood_there_and_nothing_else(tmp_path):
    for before in (None, "before"):
        path = tmp_path / "out.npz"
        if before:
            path.write_text(before)
        with pytest.raises(KeyboardInterrupt), CodeMatrixWriter(path, WIDTH) as writer:  # noqa: PT012
            writer.write(*batch_of(BATCH))
            raise KeyboardInterrupt
        assert names(tmp_path) == ([path.name] if before else [])
    assert path.read_text() == "before"


def test_batches_wait_in_files_without_names(tmp_path):
    with CodeMatrixWriter(tmp_path / "out.npz", WIDTH) as writer:
        writer.write(*batch_of(BATCH))
        assert names(tmp_path) == []


def large_batch():
    """Rows of one column, which deflate packs to no less than half."""
    columns = np.random.default_rng(0).integers(0, 2**31 - 1, 50_000, dtype=np.int32)
    return np.arange(len(columns) + 1, dtype=np.int64), columns


@pytest.mark.parametrize("space", [4, 20, 1000, 300_000])
def test_a_disk_that_is_full_while_batches_come_is_the_machines_error(tmp_path, space):
    """400 KB of starts do not fit, be it on the way in or a part of them."""
    (tmp_path / "out.npz").write_text("before")
    with (
        pytest.raises(MachineError, match="full") as caught,
        small_disk(space),
        CodeMatrixWriter(tmp_path / "out.npz", 2**31 - 1) as writer,
    ):
        writer.write(*large_batch())
    assert caught.value.exit_code == 5
    assert caught.value.where == str(tmp_path / "out.npz")
    assert names(tmp_path) == ["out.npz"]
    assert (tmp_path / "out.npz").read_text() == "before"


@pytest.mark.parametrize("space", [10, 1000, 150_000])
def test_a_disk_that_is_full_while_the_file_is_packed_is_the_machines_error(tmp_path, space):
    (tmp_path / "out.npz").write_text("before")
    with (  # noqa: PT012
        pytest.raises(MachineError, match="full") as caught,
        contextlib.ExitStack() as until_it_is_closed,
        CodeMatrixWriter(tmp_path / "out.npz", 2**31 - 1) as writer,
    ):
        writer.write(*large_batch())
        until_it_is_closed.enter_context(small_disk(space))
    assert caught.value.where == str(tmp_path / "out.npz")
    assert names(tmp_path) == ["out.npz"]
    assert (tmp_path / "out.npz").read_text() == "before"


def test_a_disk_that_is_full_after_few_bytes_is_the_machines_error(tmp_path):
    """So few that a buffer would hold them back and write them when the file is closed."""
    with (
        pytest.raises(MachineError, match="full"),
        small_disk(20),
        CodeMatrixWriter(tmp_path / "out.npz", WIDTH) as writer,
    ):
        writer.write(*batch_of(BATCH))
    assert names(tmp_path) == []


def test_a_batch_that_was_written_in_part_never_becomes_a_file(tmp_path):
    with CodeMatrixWriter(tmp_path / "out.npz", 2**31 - 1) as writer:
        with small_disk(1000), pytest.raises(MachineError, match="full"):
            writer.write(*large_batch())
        with pytest.raises(ValueError, match="with statement"):
            writer.write(*batch_of(BATCH))
    assert names(tmp_path) == []


def test_a_folder_that_takes_no_files_is_the_machines_error(tmp_path, monkeypatch):
    def fail(**_):
        raise OSError(errno.EROFS, "planted")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(MachineError, match="Read-only"), CodeMatrixWriter(tmp_path / "out.npz", WIDTH):
        pytest.fail("the block is not entered")


def test_a_device_error_at_the_end_is_the_machines_error(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "planted")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MachineError):
        write(tmp_path / "out.npz", BATCH)
    assert names(tmp_path) == []
