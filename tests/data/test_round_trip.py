"""Tables of every type of column come back from records and from files as they were: names, order, types and cells."""

import datetime
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data.dates import with_days
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.layouts import open_sink
from dpcgan_fast.data.records import one_row_a_record, read_records
from dpcgan_fast.data.schema import OTHER, Schema
from tests.conftest import examples

NAMES = ["a", "b c", "10", "Zürich", "x,y", '"']
FIRST, LAST = datetime.date(1900, 1, 1), datetime.date(2100, 1, 1)


@st.composite
def columns(draw):
    """A column of the schema, and a strategy for its cells."""
    kind = draw(st.sampled_from(["numeric", "integer", "binary", "categorical", "ordinal", "date", "codes"]))
    missing = draw(st.booleans())
    if kind in ("numeric", "integer"):
        lower = draw(st.integers(-1000, 1000))
        upper = lower + draw(st.integers(1, 3000))
        cells = st.integers(lower, upper) if kind == "integer" else st.floats(lower, upper)
        column = {"type": "numeric", "bounds": [lower, upper], "integer": kind == "integer"}
        column["scale"] = draw(st.sampled_from(["linear", "log", "rank"]))
        if column["scale"] == "rank":
            column["quantiles"] = sorted(draw(st.lists(st.integers(lower, upper), min_size=1, max_size=9)))
    elif kind == "binary":
        column, cells = {"type": "binary"}, st.integers(0, 1)
    elif kind == "date":
        first = draw(st.dates(FIRST, LAST))
        last = first + datetime.timedelta(days=draw(st.integers(1, 9000)))
        column, cells = {"type": "date", "bounds": [first.isoformat(), last.isoformat()]}, st.dates(first, last)
    elif kind == "codes":
        chosen = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
        missing = False
        column, cells = {"type": "codes", "vocabulary": chosen}, st.lists(st.sampled_from(chosen), unique=True)
    else:
        chosen = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
        column, cells = {"type": kind, "categories": chosen}, st.sampled_from(chosen)
        if kind == "categorical" and draw(st.booleans()):
            column["unknown"] = "first"
    return {**column, **({"missing": True} if missing else {})}, st.none() | cells if missing else cells


@st.composite
def tables(draw):
    """A schema, and a table of what its columns allow."""
    chosen = draw(st.lists(columns(), min_size=1, max_size=5))
    rows = draw(st.integers(1, 6))
    schema = Schema.from_dict({"unit": None, "columns": [{"name": f"c{i}", **c} for i, (c, _) in enumerate(chosen)]})
    types = RecordCodec(schema).arrow_schema
    cells = [draw(st.lists(own, min_size=rows, max_size=rows)) for _, own in chosen]
    arrays = [pa.array(own, field.type) for own, field in zip(cells, types, strict=True)]
    return schema, pa.Table.from_arrays(arrays, schema=types)


def same(got, expected, schema):
    assert got.schema.equals(expected.schema)
    for column in schema.columns:
        one, other = got[column.name].to_pylist(), expected[column.name].to_pylist()
        if column.type == "codes":
            assert [set(codes) for codes in one] == [set(codes) for codes in other]
        elif column.type == "numeric" and not column.integer:
            tolerance = 1e-6 * (column.bounds[1] - column.bounds[0])
            assert one == pytest.approx(other, abs=tolerance, nan_ok=True)
        else:
            assert one == other


@settings(max_examples=examples(1000))
@given(case=tables(), ending=st.sampled_from([".csv", ".csv.gz", ".parquet"]))
def test_a_table_comes_back_from_records_and_from_a_file(case, ending):
    schema, table = case
    codec = RecordCodec(schema)

    def through_records(records):
        return codec.decode(codec.encode(with_days(one_row_a_record(records, schema, "data"), schema, "data")).records)

    same(through_records(table), table, schema)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table{ending}"
        with open_sink(path, "records", schema, codec.arrow_schema) as sink:
            sink.write(table)
        read, left = read_records(path, schema, "data")
    assert left == ()
    same(codec.decode(codec.encode(read).records), table, schema)


@settings(max_examples=examples(200))
@given(case=tables(), data=st.data())
def test_any_record_gives_cells_that_the_schema_allows(case, data):
    schema, _ = case
    codec = RecordCodec(schema)
    records = np.array(
        data.draw(
            st.lists(st.lists(st.floats(-0.5, 1.5), min_size=codec.width, max_size=codec.width), min_size=1, max_size=4)
        )
    )
    table = codec.decode(records.astype(np.float32))
    for column in schema.columns:
        cells = [cell for cell in table[column.name].to_pylist() if cell is not None]
        if column.type == "date":
            cells = [(cell - datetime.date(1970, 1, 1)).days for cell in cells]
        if column.bounds is not None:
            assert all(column.bounds[0] <= cell <= column.bounds[1] for cell in cells)
        elif column.type == "codes":
            assert all(set(codes) <= set(column.vocabulary) for codes in cells)
        elif column.type in ("categorical", "ordinal"):
            assert set(cells) <= {*column.categories, *([OTHER] if column.unknown == OTHER else [])}
        if not column.missing:
            assert len(cells) == len(records)
