"""Maps of files: their pages can be let go of at any time, and nothing else can."""

import gc
from pathlib import Path

import numpy as np
import pytest

from dpcgan_fast.data import mapping
from dpcgan_fast.data.mapping import let_go, mapped
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.store import read_store, write_store_file
from dpcgan_fast.errors import InputError

SMAPS = Path("/proc/self/smaps")
VALUES = np.arange(1 << 20, dtype=np.int32)


@pytest.fixture
def path(tmp_path):
    VALUES.tofile(tmp_path / "values")
    return tmp_path / "values"


def test_values_stay_what_they_are(path):
    values = mapped(path, np.int32, len(VALUES))
    part = values[1000:2000]
    for held in (values, part):
        let_go(held)
        assert np.array_equal(values, VALUES)
        assert np.array_equal(part, VALUES[1000:2000])
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


@pytest.mark.skipif(not SMAPS.exists(), reason="only Linux tells")
def test_pages_leave_the_memory_of_the_process(path):
    def held() -> int:
        lines = SMAPS.read_text().split(str(path))[1].splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

    values = mapped(path, np.int32, len(VALUES))
    assert int(values.max()) == len(VALUES) - 1
    before = held()
    let_go(values[10:])
    assert held() < before // 10


def test_what_lies_in_no_map_is_left_alone(path):
    values = mapped(path, np.int32, len(VALUES))
    own = VALUES.copy()
    let_go(own)
    assert np.array_equal(own, values)
    del values
    gc.collect()
    assert not mapping._MAPS
    let_go(own)
    assert np.array_equal(own, VALUES)


def test_an_empty_file_is_no_values_and_a_short_one_an_error(tmp_path, path):
    (tmp_path / "empty").touch()
    assert len(mapped(tmp_path / "empty", np.int32, 0)) == 0
    with pytest.raises(ValueError, match="smaller"):
        mapped(path, np.int32, len(VALUES) + 1)
    with pytest.raises(ValueError, match="empty"):
        mapped(tmp_path / "empty", np.int32, 1)


@pytest.mark.parametrize("position", [-1, 2])
def test_a_store_with_a_code_that_has_no_name_is_refused(tmp_path, position):
    values = {"unit": None, "n_units": 1, "columns": [{"name": "dx", "type": "codes", "vocabulary": ["a", "b"]}]}
    schema = Schema.from_dict(values)
    np.array([0, 2], np.int64).tofile(tmp_path / "codes-0.starts")
    np.array([0, position], np.int32).tofile(tmp_path / "codes-0.positions")
    write_store_file(tmp_path, schema, 1, [], [["a", "b"]])
    with pytest.raises(InputError, match="a code has no name"):
        read_store(tmp_path, schema)
