"""A sparse matrix file gives the codes that scipy's own reading gives, or is refused without harm."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data import csr_files
from dpcgan_fast.data.csr_files import code_matrix_of, is_code_matrix, read_code_matrix
from dpcgan_fast.errors import InputError, MachineError
from tests.conftest import examples

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


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("csr") / "table.npz"


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


# ---- what is read


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


# ---- what is refused


@pytest.mark.parametrize("name", ["csc", "coo", "bsr", "dia"])
def test_other_formats_are_refused_with_the_way_to_convert(path, name):
    matrix = MATRIX.astype(np.float64).asformat(name)
    scipy.sparse.save_npz(path, matrix)
    assert f"is of format {name}" in refusal(path)
    assert f"is of format {name}" in refusal(matrix, code_matrix_of)
    assert "scipy.sparse.csr_matrix(m)" in refusal(path)


@pytest.mark.parametrize("name", [np.array(SENTINEL), np.array(b"\xff\xfe"), np.array(3), np.array([b"csr"])])
def test_a_format_that_is_none_is_refused(path, name):
    write_arrays(path, format=name)
    refusal(path)


def test_a_unicode_format_of_no_characters_is_refused(path):
    write_arrays(path, format=npy_with_header("{'descr': '<U1', 'fortran_order': False, 'shape': (), }\n", b"\xff" * 4))
    assert "cannot be read" in refusal(path)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.npz")
    assert "folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("content", [b"", SENTINEL.encode(), b"PK\x03\x04" + SENTINEL.encode(), bytes(100_000)])
def test_what_is_no_archive_is_refused(path, content):
    path.write_bytes(content)
    assert "damaged" in refusal(path)


ARRAYS = {f"{name}.npy": npy(array) for name, array in arrays_of(MATRIX).items()}


@pytest.mark.parametrize(
    "name",
    ["../x.npy", "/tmp/x.npy", "a/indices.npy", "Indices.npy", "indices", "row.npy", "indices.npy\0.npy", SENTINEL],
)
def test_any_other_member_is_refused(path, name):
    members = [*ARRAYS.items(), (name.replace("\0", "#"), npy(np.zeros(3)))]
    write_members(path, members)
    path.write_bytes(path.read_bytes().replace(b"indices.npy#", b"indices.npy\0"))
    assert "other arrays" in refusal(path)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_member_is_refused(path, name):
    write_members(path, [(other, content) for other, content in ARRAYS.items() if other != name])
    assert ("no sparse matrix" if name == "format.npy" else "other arrays") in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ARRAYS)
def test_two_members_of_one_name_are_refused(path, name):
    """numpy would take the last one."""
    write_members(path, [*ARRAYS.items(), (name, ARRAYS[name])])
    assert "two arrays of one name" in refusal(path)


def test_a_hundred_thousand_members_are_refused(path):
    """The directory alone, in which each entry points to nowhere."""
    count = 100_000
    name = b"%011d"
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 45, 45, 0, 8, 0, 0, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + name % i for i in range(count))
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(directory), 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(directory + end64 + locator + end)
    assert len(zipfile.ZipFile(path).infolist()) == count
    assert "no sparse matrix" in refusal(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(path, compression):
    write_arrays(path, compression)
    assert "packed in a way" in refusal(path)


@pytest.mark.parametrize("bit", [0, 5, 6, 13])
def test_encryption_and_patches_are_refused(path, bit):
    write_arrays(path)
    content = bytearray(path.read_bytes())
    flags = content.index(b"PK\x01\x02") + 8
    content[flags : flags + 2] = struct.pack("<H", 1 << bit)
    path.write_bytes(content)
    assert "encrypted" in refusal(path)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["indices", "indptr", "format", "shape", "data"])
def test_objects_are_refused_and_never_made(path, tmp_path, name):
    marker = tmp_path / "marker"
    array = np.empty(1, dtype=object)
    array[0] = Payload(marker)
    write_arrays(path, **{name: npy(array)})
    assert f"{name}.npy" in refusal(path)
    write_arrays(path, **{name: pickle.dumps(array)})
    assert f"{name}.npy" in refusal(path)
    assert not marker.exists()
    np.lib.format.read_array(io.BytesIO(npy(array)), allow_pickle=True)
    assert marker.exists(), "the payload works where it is let"


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<i4', 'fortran_order': True, 'shape': (6,), }\n",
        "{'descr': '|O', 'fortran_order': False, 'shape': (6,), }\n",
        "{'descr': '<i3', 'fortran_order': False, 'shape': (6,), }\n",
        "{'descr': '|S0', 'fortran_order': False, 'shape': (6,), }\n",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (6,), }\n",
        "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (6,), }\n",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (-6,), }\n",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (2**3,), }\n",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (" + "9" * 400 + ",), }\n",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (6,), }" + " " * 60_000 + "\n",
        "(" * 4000,
        "[" * 60_000,
        "",
    ],
)
@pytest.mark.parametrize("name", ["indices", "data", "shape"])
def test_headers_that_numpy_would_not_write_are_refused(path, name, text):
    write_arrays(path, **{name: npy_with_header(text, bytes(24))})
    assert f"{name}.npy" in refusal(path)


def test_a_header_of_four_gigabytes_is_refused(path):
    write_arrays(path, data=npy_with_header("{", version=b"\x02\x00").replace(b"\x01\x00\x00\x00{", b"\xff" * 4))
    assert "data.npy" in refusal(path)


@pytest.mark.parametrize("size", [0, 3, 9, 10**9, 10**18])
@pytest.mark.parametrize("name", ["indices", "indptr", "data", "shape"])
def test_a_header_that_lies_about_the_size_is_refused(path, name, size):
    array = arrays_of(MATRIX)[name]
    write_arrays(path, **{name: npy_with_header(header_of(array.dtype, size), array.tobytes())})
    assert "damaged" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"indptr": [0, 2, 1, 3, 6]}, "do not fit"),
        ({"indptr": [0, 2, -2, 3, 6]}, "do not fit"),
        ({"indptr": [1, 2, 2, 3, 6]}, "do not fit"),
        ({"indptr": [-1, 2, 2, 3, 6]}, "do not fit"),
        ({"indptr": [0, 2, 2, 3, 5]}, "do not fit"),
        ({"indptr": [0, 2, 2, 3, 7]}, "do not fit"),
        ({"indptr": [0, 2, 2, 7, 6]}, "do not fit"),
        ({"indptr": [0, 2, 3, 6]}, "do not fit"),
        ({"indptr": [[0, 2, 2, 3, 6]]}, "do not fit"),
        ({"indices": [0, 2, 1, 0, 1]}, "do not fit"),
        ({"indices": [[0, 2, 1], [0, 1, 2]], "data": np.ones((2, 3))}, "do not fit"),
        ({"data": np.ones(5)}, "do not fit"),
        ({"indices": [0, 2, 1, 0, 1, 3]}, "outside of the matrix"),
        ({"indices": [0, -1, 1, 0, 1, 2]}, "outside of the matrix"),
        ({"indices": [0, 2, 1, 0, 1, 2**32]}, "outside of the matrix"),
        ({"indices": [0, 2, 1, 0, 1, -(2**63)]}, "outside of the matrix"),
        ({"indices": np.array([0, 2, 1, 0, 1, 2], np.uint32)}, "not of type int32 or int64"),
        ({"indices": np.array([0, 2, 1, 0, 1, 2], np.int8)}, "not of type int32 or int64"),
        ({"indptr": np.array([0, 2, 2, 3, 6], np.float64)}, "not of type int32 or int64"),
        ({"data": np.array([SENTINEL] * 6)}, "something else than numbers"),
        ({"shape": [4]}, "two dimensions"),
        ({"shape": [4, 3, 1]}, "two dimensions"),
        ({"shape": [4.0, 3.0]}, "two dimensions"),
        ({"shape": np.array(4)}, "two dimensions"),
        ({"shape": [0, 3], "indptr": [0]}, "no rows"),
        ({"shape": [-4, 3]}, "no rows"),
        ({"shape": [4, 0]}, "number of columns"),
        ({"shape": [4, -3]}, "number of columns"),
        ({"shape": [4, 2**31]}, "number of columns"),
        ({"shape": [5, 3]}, "do not fit"),
        ({"shape": [2**62, 3]}, "do not fit"),
        ({"shape": np.zeros(1000)}, "more than 4096 bytes"),
        ({"format": np.array(b"csr" + bytes(5000))}, "more than 4096 bytes"),
    ],
)
def test_arrays_that_make_no_matrix_are_refused(path, changes, what):
    write_arrays(
        path, **{name: array if isinstance(array, bytes) else np.array(array) for name, array in changes.items()}
    )
    assert what in refusal(path)


def broken(**changes):
    matrix = MATRIX.copy()
    for name, array in changes.items():
        setattr(matrix, name, np.array(array))
    return matrix


@pytest.mark.parametrize(
    ("matrix", "what"),
    [
        (broken(indptr=[0, 2, 1, 3, 6]), "do not fit"),
        (broken(indptr=[0, 2, 2, 3, 7]), "do not fit"),
        (broken(indptr=[0, 2, 2, 3, -1]), "do not fit"),
        (broken(indptr=[0, 2, 3, 6]), "do not fit"),
        (broken(data=[1, 2]), "do not fit"),
        (broken(indices=[0, 2, 1, 0, 1, 3]), "outside of the matrix"),
        (broken(indices=[0, 2, 1, 0, 1, -1]), "outside of the matrix"),
        (broken(indices=[0, 2, 1, 0, 1, 2**32]), "outside of the matrix"),
        (broken(data=[SENTINEL] * 6), "something else than numbers"),
        (scipy.sparse.csr_matrix((0, 3)), "no rows"),
        (scipy.sparse.csr_matrix((3, 0)), "number of columns"),
    ],
)
def test_matrices_in_memory_that_are_none_are_refused(matrix, what):
    assert what in refusal(matrix, code_matrix_of)


def test_a_member_that_begins_beyond_any_file_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("format.npy")
        info.extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)  # zip64's offset, where the directory's own is all ones
        archive.writestr(info, ARRAYS["format.npy"])
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 42, 0xFFFFFFFF)
    path.write_bytes(content)
    assert zipfile.ZipFile(path).infolist()[0].header_offset == 2**64 - 1
    assert "damaged" in refusal(path)


# ---- bombs


def deflated_zeros(head, mebibytes):
    """Deflate of `head` and then zeros, put together from one packed MiB that stands for itself."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    one = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + one * mebibytes + packer.flush()


def write_packed(path, name, packed, size, claimed=None, **changes):
    """A file whose array `name` is packed already; the directory may claim that it takes more room than it does."""
    arrays = {name: packed, **{other: array for other, array in arrays_of(MATRIX).items() if other != name}, **changes}
    content = {key: array if isinstance(array, bytes) else npy(array) for key, array in arrays.items()}
    write_members(path, [(f"{key}.npy", member) for key, member in content.items()], zipfile.ZIP_STORED)
    patched = bytearray(path.read_bytes())
    for signature, method, sizes in ((b"PK\x03\x04", 8, 18), (b"PK\x01\x02", 10, 20)):
        at = patched.index(signature)
        struct.pack_into("<H", patched, at + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<II", patched, at + sizes, claimed or len(packed), size)
    path.write_bytes(patched)


MEBIBYTES = 4095  # the most that the directory's 32 bits can say


@pytest.fixture(scope="module")
def bomb():
    """Four GB of zeros as an array of int32 in four MB, and its size."""
    head = npy_with_header(header_of("<i4", MEBIBYTES << 18))
    return deflated_zeros(head, MEBIBYTES), len(head) + (MEBIBYTES << 20)


def memory_of_refusal(path, what):
    tracemalloc.start()
    try:
        assert what in refusal(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["indices", "indptr"])
def test_four_gigabytes_of_zeros_are_refused_before_they_are_inflated(path, bomb, name):
    write_packed(path, name, *bomb)
    assert path.stat().st_size < 5e6
    assert memory_of_refusal(path, f"100-fold, as in files made to fill the memory ({path}, {name}.npy)") < 1 << 20


def test_a_bomb_of_data_is_refused_since_it_has_not_as_many_entries_as_the_indices(path, bomb):
    write_packed(path, "data", *bomb)
    assert memory_of_refusal(path, "do not fit") < 1 << 20


@pytest.mark.parametrize("name", ["format", "shape"])
def test_a_bomb_in_place_of_a_small_array_is_refused(path, bomb, name):
    write_packed(path, name, *bomb)
    assert memory_of_refusal(path, "more than 4096 bytes") < 1 << 20


def test_a_bomb_in_place_of_the_mark_of_arrays_is_never_inflated(path, bomb):
    write_packed(path, "_is_array", *bomb)
    assert same(read_code_matrix(path), MATRIX)


def test_a_bomb_whose_packed_size_is_a_lie_is_refused(path, bomb):
    write_packed(path, "indices", *bomb, claimed=1 << 30)
    assert memory_of_refusal(path, "damaged") < 1 << 20


def test_an_array_that_ends_before_its_size_is_refused(path):
    head = npy_with_header(header_of("<i4", 1 << 20))
    packed = deflated_zeros(head, 1)
    write_packed(path, "indices", packed, len(head) + (4 << 20), indptr=[0] * 4 + [1 << 20], data=np.ones(1 << 20))
    assert "damaged" in refusal(path)


def test_a_large_table_of_equal_rows_is_read_once_it_is_not_packed(path, monkeypatch):
    monkeypatch.setattr(csr_files, "_FREE", 1 << 16)
    matrix = scipy.sparse.csr_matrix(np.tile(np.arange(100) % 2, (5000, 1)))
    scipy.sparse.save_npz(path, matrix)
    assert "compressed=False" in refusal(path)
    scipy.sparse.save_npz(path, matrix, compressed=False)
    assert same(read_code_matrix(path), matrix)


# ---- damage


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_that_is_cut_short_is_refused(path, compressed):
    scipy.sparse.save_npz(path, MATRIX, compressed=compressed)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        assert "damaged" in refusal(path)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_flipped_bit_changes_nothing_or_is_refused(path, compressed):
    scipy.sparse.save_npz(path, MATRIX, compressed=compressed)
    whole = path.read_bytes()
    bits = np.random.default_rng(0).integers(0, 8, len(whole))
    refused = 0
    for position, bit in enumerate(bits):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            codes = read_code_matrix(path)
        except InputError:
            refused += 1
        else:
            assert same(codes, MATRIX), position
    assert refused > len(whole) // 2


def overwritten(draw, content):
    """Some bytes in a row are others; a size, an offset or a name is hit best where one begins."""
    at = draw(st.integers(0, len(content) - 1))
    patch = draw(st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from([b"\xff" * 8, bytes(8)])))
    return content[:at] + patch + content[at + len(patch) :]


@given(st.data())
@settings(max_examples=examples(300))
def test_an_array_that_is_overwritten_is_a_sound_matrix_or_refused(path, data):
    """The checksums are right."""
    name = data.draw(st.sampled_from(sorted(ARRAYS)))
    write_members(path, [*({**ARRAYS, name: overwritten(data.draw, ARRAYS[name])}).items()])
    try:
        codes = read_code_matrix(path)
    except InputError:
        return
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(codes.columns)), codes.columns, codes.starts), shape=(len(codes.starts) - 1, codes.width)
    )
    matrix.check_format(full_check=True)
    assert matrix.has_canonical_format


@given(st.data())
@settings(max_examples=examples(300))
def test_bytes_that_are_overwritten_change_nothing_or_are_refused(path, data):
    write_arrays(path, data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))
    path.write_bytes(overwritten(data.draw, path.read_bytes()))
    try:
        codes = read_code_matrix(path)
    except InputError:
        return
    assert same(codes, MATRIX)


def test_too_little_memory_is_the_machines_error(path, monkeypatch):
    def fail(*_):
        raise MemoryError(SENTINEL)

    scipy.sparse.save_npz(path, MATRIX)
    monkeypatch.setattr(np, "empty", fail)
    with pytest.raises(MachineError, match="Out of memory") as caught:
        read_code_matrix(path)
    assert SENTINEL not in str(caught.value)


def test_a_sparse_matrix_of_arrows_is_read_as_scipys():
    own = scipy.sparse.csr_matrix(np.array([[0, 2.0, 0], [0, 0, 0], [1.0, 0, 3.0]]))
    found = code_matrix_of(pa.SparseCSRMatrix.from_scipy(own))
    assert is_code_matrix(pa.SparseCSRMatrix.from_scipy(own))
    assert (found.starts.tolist(), found.columns.tolist(), found.width) == ([0, 1, 1, 3], [1, 0, 2], 3)
