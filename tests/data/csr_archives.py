"""Sparse matrices and the files that hold them, sound or put together by hand."""

import io
import struct
import zipfile

import numpy as np
import pytest
import scipy.sparse
from hypothesis import strategies as st

from dpcgan_fast.data.csr_files import read_code_matrix
from dpcgan_fast.errors import InputError

SENTINEL = "Zq8sentinel"
DTYPES = ["bool", "int8", "uint16", "int64", "float32", "float64", "complex64"]


def same(codes, wanted):
    """Whether the codes are those that scipy's matrix has once repeats are summed and zeros dropped."""
    wanted = scipy.sparse.csr_matrix(wanted, copy=True)
    wanted.sum_duplicates()
    wanted.eliminate_zeros()
    assert codes.starts.dtype == np.int64
    assert codes.columns.dtype == np.int32
    return (
        codes.width == wanted.shape[1]
        and np.array_equal(codes.starts, wanted.indptr)
        and np.array_equal(codes.columns, wanted.indices)
    )


@st.composite
def matrices(draw):
    """CSR matrices with empty rows, entries in any order, repeats and stored zeros. No repeats cancel."""
    width = draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(st.tuples(st.integers(0, width - 1), st.booleans()), max_size=8), min_size=1))
    entries = [entry for row in rows for entry in row]
    data = np.array([present for _, present in entries], dtype=draw(st.sampled_from(DTYPES)))
    columns = np.array([column for column, _ in entries], dtype=np.int32)
    starts = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int32)
    build = draw(st.sampled_from([scipy.sparse.csr_matrix, scipy.sparse.csr_array]))
    matrix = build((data, columns, starts), shape=(len(rows), width))
    if draw(st.booleans()):
        matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return matrix


def arrays_of(matrix):
    return {
        "indices": matrix.indices, "indptr": matrix.indptr, "format": np.array(b"csr"),
        "shape": np.array(matrix.shape), "data": matrix.data,
    }  # fmt: skip


MATRIX = scipy.sparse.csr_matrix(
    (np.arange(1, 7, dtype=np.int16), np.array([0, 2, 1, 0, 1, 2], np.int32), np.array([0, 2, 2, 3, 6], np.int32)),
    shape=(4, 3),
)


def npy(array):
    content = io.BytesIO()
    np.lib.format.write_array(content, np.asarray(array))
    return content.getvalue()


def npy_with_header(text, values=b"", version=b"\x01\x00"):
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text.encode() + values


def header_of(dtype, count):
    return f"{{'descr': '{np.dtype(dtype).str}', 'fortran_order': False, 'shape': ({count},), }}\n"


def write_members(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)


def write_arrays(path, compression=zipfile.ZIP_DEFLATED, **changes):
    """A file of MATRIX in which some arrays are others, given as arrays or as the bytes of their members."""
    arrays = {**arrays_of(MATRIX), **changes}
    content = {name: array if isinstance(array, bytes) else npy(array) for name, array in arrays.items()}
    write_members(path, [(f"{name}.npy", member) for name, member in content.items()], compression)


def refusal(source, read=read_code_matrix):
    """The text of the error that reading ends in; it must be one line and must not quote the data."""
    with pytest.raises(InputError) as caught:
        read(source)
    text = str(caught.value)
    assert "\n" not in text
    assert SENTINEL not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return text


ARRAYS = {f"{name}.npy": npy(array) for name, array in arrays_of(MATRIX).items()}
