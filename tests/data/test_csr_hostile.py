"""A sparse matrix file that is none, or was made to do harm, is refused without any."""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import scipy.sparse

from dpcgan_fast.data import csr_files
from dpcgan_fast.data.csr_files import code_matrix_of, read_code_matrix
from tests.data.csr_archives import (
    ARRAYS,
    MATRIX,
    SENTINEL,
    arrays_of,
    header_of,
    npy,
    npy_with_header,
    refusal,
    same,
    write_arrays,
    write_members,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("csr") / "table.npz"


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
