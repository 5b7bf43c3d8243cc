"""A table that does not fit into memory is refused before it is read, with the way to train on it all the same."""

import pandas as pd
import pyarrow as pa
import pytest

from dpcgan_fast.cli import run
from dpcgan_fast.data import memory, records
from dpcgan_fast.data.memory import available_memory, refuse_too_large
from dpcgan_fast.data.reading import open_source
from dpcgan_fast.data.records import read_records
from dpcgan_fast.errors import MachineError
from tests.data.preparations import COLUMNS, ROWS, make_schema, prepare, write_shards


@pytest.fixture
def little(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)


def unread(*_):
    raise AssertionError("the table was read")


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet"])
@pytest.mark.usefixtures("little")
def test_a_table_that_does_not_fit_is_refused_unread(tmp_path, monkeypatch, form):
    source = write_shards(tmp_path / "table", [ROWS * 10, ROWS * 10], form)
    monkeypatch.setattr(records, "read_opened", unread)
    for path in (source, source / f"part-0.{form}"):
        with pytest.raises(MachineError, match=r"takes more memory than is free .*`dpcgan prepare`"):
            read_records(path, make_schema(), str(path))


@pytest.mark.usefixtures("little")
def test_the_refusal_is_the_same_whatever_the_table_needs():
    """From a size that goes by the rows, their number can be told."""
    found = set()
    for needed in (1001, 1 << 31, 1 << 50):
        with pytest.raises(MachineError) as error:
            refuse_too_large(needed, "data")
        found.add(str(error.value))
    assert len(found) == 1


@pytest.mark.usefixtures("little")
def test_train_says_so_and_exits_as_for_a_machine_that_is_too_small(tmp_path, capsys):
    write_shards(tmp_path / "table", [ROWS * 10], "csv")
    (tmp_path / "schema.json").write_text(make_schema(codes=["dx"], plain=["died"], n_units=100).to_json())
    arguments = ["train", "table", "--schema", "schema.json", "--out", "run"]
    options = ["--epsilon", "3", "--delta", "1e-4"]
    assert run([str(tmp_path / a) if a in ("table", "schema.json", "run") else a for a in arguments] + options) == 5
    assert "dpcgan prepare" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("little")
def test_a_store_and_a_table_in_memory_are_read_whatever_is_free(tmp_path):
    source = write_shards(tmp_path / "table", [ROWS * 10], "csv")
    prepare(source, make_schema(), tmp_path / "store")
    frame = pd.DataFrame(ROWS * 10, columns=COLUMNS)
    for given in (tmp_path / "store", frame, pa.Table.from_pandas(frame)):
        assert read_records(given, make_schema(), "data")[0].num_rows == 7


def test_only_the_columns_that_the_schema_names_count(tmp_path):
    for form in ("csv", "parquet"):
        source = open_source(write_shards(tmp_path / form, [ROWS], form))
        assert 0 < source.size(["age"]) < source.size(COLUMNS)
        assert source.size(COLUMNS) < 200 * len(ROWS)


def test_what_fits_and_what_nobody_knows_are_no_reason_to_refuse(monkeypatch):
    for free in (1 << 20, None):
        monkeypatch.setattr(memory, "available_memory", lambda free=free: free)
        refuse_too_large(1 << 20, "data")


# ---- what is free


@pytest.mark.parametrize(
    ("most", "free"), [("max", 4096), ("9000", 9000 - 8000 + 700 + 50), ("900000", 4096), (None, 4096)]
)
def test_the_smaller_of_what_machine_and_container_leave(tmp_path, monkeypatch, most, free):
    """Pages of files count as used by a container, and make room when it needs it."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(memory, "_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    if most is not None:
        (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text("8000\n")
    (tmp_path / "memory.stat").write_text("anon 7250\ninactive_file 700\nactive_file 50\n")
    assert available_memory() == free


def test_on_a_machine_that_does_not_say_it_is_unknown(tmp_path, monkeypatch):
    for name in ("_MACHINE", "_CONTAINER"):
        monkeypatch.setattr(memory, name, tmp_path / "nowhere")
    assert available_memory() is None


def test_on_this_machine_it_is_known():
    free = available_memory()
    assert free is not None
    assert free > 1 << 20
