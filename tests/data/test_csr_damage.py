"""A sparse matrix file that was damaged gives the matrix it held, another sound one, or an error."""

import zipfile

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data.csr_files import read_code_matrix
from dpcgan_fast.errors import InputError, MachineError
from tests.conftest import examples
from tests.data.csr_archives import (
    ARRAYS,
    MATRIX,
    SENTINEL,
    refusal,
    same,
    write_arrays,
    write_members,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("csr") / "table.npz"


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
