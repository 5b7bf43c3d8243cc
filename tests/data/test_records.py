"""Tables of events: all rows of a unit are one record, in whatever order and file they stand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data.records import one_row_a_record, read_records
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from tests.conftest import examples


def schema(unit="patient", rows=1, **codes):
    columns = [
        {"name": "died", "type": "binary"},
        {"name": "age", "type": "numeric", "bounds": [0, 110]},
        {"name": "dx", "type": "codes", "vocabulary": ["a", "b", "c"], **codes},
    ]
    return Schema.from_dict({"unit": unit, "max_rows_per_unit": rows, "label": "died", "columns": columns})


def events(rows):
    columns = {"patient": pa.string(), "died": pa.string(), "age": pa.string(), "dx": pa.string()}
    cells = zip(*rows, strict=True) if rows else [[]] * 4
    return pa.table({name: pa.array(list(own), kind) for (name, kind), own in zip(columns.items(), cells, strict=True)})


def records(table, **changes):
    merged = one_row_a_record(table, schema(**changes), "data").to_pylist()
    return {row["patient"]: (row["died"], row["age"], set(row["dx"])) for row in merged}


def test_a_patient_has_the_codes_of_all_rows_and_the_first_cell_that_is_not_missing():
    table = events([
        ("p1", "", "70", "a"), ("p2", "0", "NA", "b"), ("p1", "1", "71", "c"), ("p1", "0", "72", "a"),
        ("p2", "1", "", ""),
    ])  # fmt: skip
    assert records(table) == {"p1": ("1", "70", {"a", "c"}), "p2": ("0", "NA", {"b"})}


def test_a_patient_without_any_code_is_a_record():
    assert records(events([("p1", "1", "70", ""), ("p2", "0", "60", "a")])) == {
        "p1": ("1", "70", set()), "p2": ("0", "60", {"a"})
    }  # fmt: skip


def test_more_rows_of_a_unit_than_the_cap_are_left_out():
    table = events([("p1", "1", "70", code) for code in "abc"] + [("p2", "0", "60", "c")])
    assert records(table, rows=2) == {"p1": ("1", "70", {"a", "b"}), "p2": ("0", "60", {"c"})}


def test_without_a_unit_every_row_is_a_record():
    merged = one_row_a_record(events([("p1", "1", "70", "a|b"), ("p1", "0", "60", "b")]), schema(unit=None), "data")
    assert [set(codes) for codes in merged["dx"].to_pylist()] == [{"a", "b"}, {"b"}]


def test_a_table_without_codes_stays_as_it_is():
    plain = Schema.from_dict({"unit": "patient", "columns": [{"name": "died", "type": "binary"}]})
    table = events([("p1", "1", "70", "a"), ("p1", "0", "60", "b")])
    assert one_row_a_record(table, plain, "data") is table


@settings(max_examples=examples(60))
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["p1", "p2", " p3"]), st.just("1"), st.just("50"), st.sampled_from("abcd")),
        min_size=1,
    ),
    data=st.data(),
)
def test_codes_do_not_depend_on_the_order_of_rows_nor_on_other_patients(rows, data):
    whole = records(events(rows))
    assert {unit: codes for unit, (*_, codes) in records(events(data.draw(st.permutations(rows)))).items()} == {
        unit: codes for unit, (*_, codes) in whole.items()
    }
    one = rows[0][0]
    assert records(events([row for row in rows if row[0] == one]))[one] == whole[one]


def test_a_missing_id_is_an_error_that_names_the_row():
    with pytest.raises(InputError, match=r"unit id is missing \(data, column patient, row 2\)"):
        records(events([("p1", "1", "70", "a"), ("", "1", "70", "a")]))


def test_lists_and_texts_are_read_alike(tmp_path):
    """A column of lists in Parquet, the same with separators in CSV, and a row a code in either."""
    lists = pa.table({"patient": ["x", "y"], "died": [0, 1], "age": [3.5, None], "dx": [["b", "a", "b"], []]})
    pq.write_table(lists, tmp_path / "lists.parquet")
    (tmp_path / "cells.csv").write_text("patient,died,age,dx\nx,0,3.5,b|a\ny,1,,\n")
    (tmp_path / "events.csv").write_text("patient,died,age,dx\nx,0,3.5,b\ny,1,,\nx,,,a\n")
    for name in ("lists.parquet", "cells.csv", "events.csv"):
        table, left = read_records(tmp_path / name, schema(), "data")
        assert left == ()
        assert [set(codes) for codes in table["dx"].to_pylist()] == [{"a", "b"}, set()]
        assert [float(cell or "nan") for cell in table["age"].to_pylist()] == pytest.approx([3.5, np.nan], nan_ok=True)
