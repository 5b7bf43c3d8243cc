"""Output files appear whole, or not at all."""

import errno
import gzip
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpcgan_fast.data import writing
from dpcgan_fast.data.reading import read_table
from dpcgan_fast.data.writing import TableWriter
from dpcgan_fast.errors import InputError, MachineError
from tests.data.disks import small_disk

TABLE = pa.table(
    {
        "text": ["plain", None, 'a,"b"\nc', "="],
        "number, odd name": [0.1, None, 1 / 3, 1e-300],
        "whole": [1, None, -(2**53), 0],
    }
)


def names(folder):
    return [path.name for path in folder.iterdir()]


def write(path, *batches):
    with TableWriter(path, TABLE.schema) as writer:
        for batch in batches:
            writer.write(batch)


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "OUT.CSV", "out.parquet"])
def test_batches_read_back_as_one_table(tmp_path, name):
    write(tmp_path / name, TABLE.slice(0, 1), TABLE.slice(1))
    table, _ = read_table(tmp_path / name, TABLE.column_names)
    text = [None if cell in ("", None) else cell for cell in table["text"].to_pylist()]
    assert text == TABLE["text"].to_pylist()
    for column in TABLE.column_names[1:]:
        numbers = [None if cell in ("", None) else float(cell) for cell in table[column].to_pylist()]
        assert numbers == TABLE[column].to_pylist()
    assert names(tmp_path) == [name]


def test_parquet_keeps_types(tmp_path):
    write(tmp_path / "out.parquet", TABLE)
    assert pq.read_table(tmp_path / "out.parquet").equals(TABLE)


def test_parquet_packs_whole_numbers_and_has_dictionaries_of_texts_alone(tmp_path):
    table = TABLE.append_column("codes", pa.array([["a", "b"], [], None, ["a"]]))
    with TableWriter(tmp_path / "out.parquet", table.schema) as writer:
        writer.write(table)
    group = pq.ParquetFile(tmp_path / "out.parquet").metadata.row_group(0)
    columns = {column.path_in_schema: column for column in (group.column(i) for i in range(group.num_columns))}
    with_dictionary = {path for path, column in columns.items() if column.has_dictionary_page}
    assert with_dictionary == {"text", "codes.list.element"}
    assert "DELTA_BINARY_PACKED" in columns["whole"].encodings
    assert "UNCOMPRESSED" not in {column.compression for column in columns.values()}
    assert pq.read_table(tmp_path / "out.parquet").equals(table)


def test_csv_text(tmp_path):
    write(tmp_path / "out.csv.gz", TABLE.slice(0, 2))
    assert gzip.decompress((tmp_path / "out.csv.gz").read_bytes()).decode() == (
        'text,"number, odd name",whole\n"plain",0.1,1\n,,\n'
    )


def test_the_same_batches_give_the_same_bytes(tmp_path):
    for name in ("one.csv.gz", "two.csv.gz"):
        write(tmp_path / name, TABLE)
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()


def test_no_batches_give_a_header(tmp_path):
    write(tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == 'text,"number, odd name",whole\n'


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.parquet"])
def test_an_error_leaves_what_stood_there(tmp_path, name):
    (tmp_path / name).write_text("before")
    with pytest.raises(KeyboardInterrupt), TableWriter(tmp_path / name, TABLE.schema) as writer:  # noqa: PT012
        writer.write(TABLE)
        raise KeyboardInterrupt
    assert (tmp_path / name).read_text() == "before"
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.parquet"])
def test_a_full_disk_is_the_machines_error_and_leaves_nothing(tmp_path, name):
    noise = pa.table({"x": [os.urandom(50).hex() for _ in range(20000)]})
    with (
        pytest.raises(MachineError, match="full") as caught,
        small_disk(100_000),
        TableWriter(tmp_path / name, noise.schema) as writer,
    ):
        writer.write(noise)
    assert caught.value.exit_code == 5
    assert names(tmp_path) == []


def test_a_device_error_is_the_machines_error(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "planted")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MachineError):
        write(tmp_path / "out.csv", TABLE)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out", "out.xlsx", "out.tsv", "out.csv.zip", "out.npz", "none/out.csv"])
def test_names_that_cannot_be_written_are_refused_before_anything_is(tmp_path, name):
    with pytest.raises(InputError) as caught:
        TableWriter(tmp_path / name, TABLE.schema)
    assert name.startswith("none") or ".csv, .csv.gz, .parquet" in caught.value.how


def test_a_folder_in_the_place_of_the_output_is_refused(tmp_path):
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(InputError, match="folder"):
        TableWriter(tmp_path / "out.csv", TABLE.schema)


def test_a_batch_of_other_columns_is_refused(tmp_path):
    with pytest.raises(ValueError, match="columns and types"):
        write(tmp_path / "out.csv", TABLE.select(["whole"]))
    assert names(tmp_path) == []


def test_small_batches_are_gathered_to_row_groups(tmp_path, monkeypatch):
    batch = pa.table({"a": list(range(100))})
    monkeypatch.setattr(writing, "_ROW_GROUP", 3 * batch.nbytes)
    with TableWriter(tmp_path / "t.parquet", batch.schema) as writer:
        for _ in range(7):
            writer.write(batch)
    with pq.ParquetFile(tmp_path / "t.parquet") as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        assert sizes == [300, 300, 100]
        assert file.read()["a"].to_pylist() == list(range(100)) * 7


def test_a_last_row_group_that_cannot_be_written_leaves_no_file(tmp_path, monkeypatch):
    batch = pa.table({"a": [1, 2]})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write():
        with TableWriter(tmp_path / "t.parquet", batch.schema) as writer:
            writer.write(batch)
            monkeypatch.setattr(pq.ParquetWriter, "write_table", full)

    with pytest.raises(MachineError):
        write()
    assert list(tmp_path.iterdir()) == []
