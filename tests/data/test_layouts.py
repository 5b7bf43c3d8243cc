"""Synthetic records written as records, events or MEDS read back as the same records."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpcgan_fast.data.layouts import check_layout, open_sink
from dpcgan_fast.data.reading import read_table
from dpcgan_fast.data.records import read_records
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError

VOCABULARY = ["a", "b, c", "d//1"]
ALONE = {"name": "code", "type": "codes", "vocabulary": VOCABULARY}
AGE = {"name": "age", "type": "numeric", "bounds": [0, 110], "integer": True}
BATCHES = [[["a", "d//1"], []], [["b, c"], ["a"], [], ["a", "b, c", "d//1"]]]
CODES = [codes for batch in BATCHES for codes in batch]


def schema(*columns, unit="subject_id"):
    return Schema.from_dict({"unit": unit, "columns": list(columns)})


def written(path, layout, own, batches=BATCHES):
    kinds = {"code": pa.list_(pa.string()), "age": pa.int64()}
    arrow_schema = pa.schema([(column.name, kinds[column.name]) for column in own.columns])
    with open_sink(path, layout, own, arrow_schema) as sink:
        age = 0
        for batch in batches:
            cells = {"code": batch, "age": [age + i for i in range(len(batch))]}
            age += len(batch)
            sink.write(pa.table([pa.array(cells[f.name], f.type) for f in arrow_schema], schema=arrow_schema))
    return path


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.parquet"])
@pytest.mark.parametrize("layout", ["records", "events"])
def test_tables_read_back_as_the_same_records(tmp_path, name, layout):
    own = schema(AGE, ALONE)
    path = written(tmp_path / name, layout, own)
    assert own.unit is not None
    if layout == "records":
        own = own.model_copy(update={"unit": None})
    table, left = read_records(path, own, "data")
    assert left == ()
    assert [set(codes) for codes in table["code"].to_pylist()] == [set(codes) for codes in CODES]
    assert [int(age) for age in table["age"].to_pylist()] == list(range(6))


def test_events_have_a_row_a_code_in_the_order_of_the_schema(tmp_path):
    path = written(tmp_path / "out.csv", "events", schema(AGE, ALONE))
    assert path.read_text().splitlines() == [
        "subject_id,age,code", '1,0,"a"', '1,0,"d//1"', "2,1,", '3,2,"b, c"', '4,3,"a"', "5,4,", '6,5,"a"',
        '6,5,"b, c"', '6,5,"d//1"',
    ]  # fmt: skip


def test_a_csr_matrix_has_a_row_a_record_and_a_column_a_code(tmp_path):
    own = schema(ALONE, unit=None)
    path = written(tmp_path / "out.npz", "records", own)
    table, _ = read_records(path, own, "data")
    assert [set(codes) for codes in table["code"].to_pylist()] == [set(codes) for codes in CODES]


def test_meds_is_a_folder_of_the_standard(tmp_path):
    own = schema(ALONE)
    folder = written(tmp_path / "out", "meds", own)
    rows = pq.read_table(folder / "data" / "0.parquet")
    assert rows.schema.names == ["subject_id", "time", "code", "numeric_value"]
    assert rows["subject_id"].to_pylist() == [1, 1, 3, 4, 6, 6, 6]
    assert rows["time"].null_count == rows.num_rows
    assert "meds_version" in json.loads((folder / "metadata" / "dataset.json").read_text())
    table, left = read_records(folder, own, "data")
    assert left == ("time", "numeric_value")
    assert [set(codes) for codes in table["code"].to_pylist()] == [set(codes) for codes in CODES if codes]


def test_meds_folders_have_splits_whose_shards_may_have_the_same_names(tmp_path):
    for split, subject in (("train", 7), ("held_out", 8)):
        (tmp_path / "data" / split).mkdir(parents=True)
        table = pa.table({"subject_id": [subject, 7], "time": pa.nulls(2), "code": [f"in {split}", "both"]})
        pq.write_table(table, tmp_path / "data" / split / "0.parquet")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "codes.parquet").write_bytes(b"not read")
    table, _ = read_table(tmp_path, ["subject_id", "code"])
    assert sorted(zip(*table.to_pydict().values(), strict=True)) == [
        (7, "both"), (7, "both"), (7, "in train"), (8, "in held_out")
    ]  # fmt: skip


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    own = schema(ALONE)
    with pytest.raises(ZeroDivisionError), open_sink(tmp_path / "out", "meds", own, pa.schema([])):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


NO_SEPARATOR = {**ALONE, "separator": None}


@pytest.mark.parametrize(
    ("name", "layout", "own", "message"),
    [
        ("out.csv", "wide", schema(ALONE), r"no such layout .*\(layout wide\).*records, events, meds"),
        ("out.csv", "events", schema(AGE), "needs exactly one column of codes"),
        ("out.csv", "events", schema(ALONE, unit=None), "needs the name of the unit's column"),
        ("out.npz", "records", schema(ALONE, AGE), r"one column of codes and nothing else \(.*out.npz\)"),
        ("out.npz", "events", schema(ALONE), "one column of codes and nothing else"),
        ("out", "meds", schema(ALONE, AGE), "MEDS holds codes alone"),
        (".", "meds", schema(ALONE), "something at the output path already"),
        ("out.csv", "records", schema(NO_SEPARATOR), "cannot hold several codes without a separator"),
        ("out.xlsx", "records", schema(ALONE), "ending names no format"),
    ],
)
def test_what_cannot_be_written_is_refused_beforehand(tmp_path, name, layout, own, message):
    with pytest.raises(InputError, match=message):
        check_layout(tmp_path / name, layout, own)
