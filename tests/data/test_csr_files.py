"""A sparse matrix file gives the codes that scipy's own reading gives."""

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from dpcgan_fast.data import csr_files
from dpcgan_fast.data.csr_files import code_matrix_of, is_code_matrix, read_code_matrix
from tests.data.csr_archives import MATRIX, arrays_of, matrices, same, write_arrays


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("csr") / "table.npz"


@given(matrix=matrices(), compressed=st.booleans())
def test_files_read_as_scipy_reads_them(path, matrix, compressed):
    scipy.sparse.save_npz(path, matrix, compressed=compressed)
    assert same(read_code_matrix(path), scipy.sparse.load_npz(path))


@given(matrix=matrices())
def test_a_matrix_in_memory_reads_as_its_file_does_and_is_not_changed(path, matrix):
    before = {name: getattr(matrix, name).copy() for name in ("data", "indices", "indptr")}
    codes = code_matrix_of(matrix)
    assert same(codes, matrix)
    scipy.sparse.save_npz(path, matrix)
    again = read_code_matrix(path)
    assert np.array_equal(codes.starts, again.starts)
    assert np.array_equal(codes.columns, again.columns)
    for name, array in before.items():
        assert getattr(matrix, name).dtype == array.dtype
        assert np.array_equal(getattr(matrix, name), array)


def test_rows_in_no_order_are_sorted_in_a_copy():
    matrix = scipy.sparse.csr_matrix(
        (np.ones(4, np.int8), np.array([2, 1, 1, 0], np.int32), np.array([0, 3, 4], np.int32)), shape=(2, 3)
    )
    codes = code_matrix_of(matrix)
    assert codes.starts.tolist() == [0, 2, 3]
    assert codes.columns.tolist() == [1, 2, 0]
    assert matrix.indices.tolist() == [2, 1, 1, 0]
    assert matrix.indptr.tolist() == [0, 3, 4]


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_arrays_of_many_blocks(path, monkeypatch, itemsize, dtype):
    monkeypatch.setattr(csr_files, "_BLOCK", 64)
    matrix = scipy.sparse.random(200, 30, 0.2, format="csr", random_state=0)
    matrix.data = (np.arange(matrix.nnz) % 5).astype(dtype)
    index = np.dtype(f"i{itemsize}")
    arrays = {**arrays_of(matrix), "indices": matrix.indices.astype(index), "indptr": matrix.indptr.astype(index)}
    write_arrays(path, **arrays)
    assert same(read_code_matrix(path), matrix)


def test_the_other_byte_order_is_read(path):
    wide = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in arrays_of(MATRIX).items()}
    write_arrays(path, **wide)
    assert same(read_code_matrix(path), MATRIX)


def test_a_format_in_unicode_of_old_scipy_is_read(path):
    write_arrays(path, format=np.array("csr"))
    assert same(read_code_matrix(path), MATRIX)


def test_repeats_that_cancel_are_a_code_since_each_entry_counts(path):
    matrix = scipy.sparse.csr_matrix((np.array([1, -1]), np.array([1, 1]), np.array([0, 2])), shape=(1, 2))
    scipy.sparse.save_npz(path, matrix)
    for codes in (code_matrix_of(matrix), read_code_matrix(path)):
        assert codes.columns.tolist() == [1]


def test_nan_is_not_zero():
    matrix = scipy.sparse.csr_matrix(np.array([[np.nan, 0.0]]))
    assert code_matrix_of(matrix).columns.tolist() == [0]


def test_room_behind_the_entries_is_left_alone():
    matrix = MATRIX.copy()
    matrix.indices, matrix.data = np.append(matrix.indices, -7), np.append(matrix.data, 1)
    assert same(code_matrix_of(matrix), MATRIX)


def test_a_small_table_of_empty_rows_may_inflate_as_it_likes(path):
    """A megabyte of zeros packs to a thousandth."""
    matrix = scipy.sparse.csr_matrix((250_000, 3), dtype=np.int8)
    scipy.sparse.save_npz(path, matrix)
    assert same(read_code_matrix(path), matrix)


def test_what_a_code_matrix_is():
    assert is_code_matrix(MATRIX)
    assert is_code_matrix(scipy.sparse.coo_array(MATRIX))
    assert not is_code_matrix(MATRIX.toarray())
    assert not is_code_matrix("table.npz")


def test_a_sparse_matrix_of_arrows_is_read_as_scipys():
    own = scipy.sparse.csr_matrix(np.array([[0, 2.0, 0], [0, 0, 0], [1.0, 0, 3.0]]))
    found = code_matrix_of(pa.SparseCSRMatrix.from_scipy(own))
    assert is_code_matrix(pa.SparseCSRMatrix.from_scipy(own))
    assert (found.starts.tolist(), found.columns.tolist(), found.width) == ([0, 1, 1, 3], [1, 0, 2], 3)
