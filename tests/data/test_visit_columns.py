"""Bins of time, and columns by rank or of many categories, among visits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.records import records_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.visit_columns import slot_name
from dpcgan_fast.data.visits import long, wide, widened
from tests.conftest import examples
from tests.data.people_with_visits import AT_TIMES, BINS, PEOPLE, records, rows_of, schema_of, table_of


def in_bins(changes=None):
    values = schema_of(["sex", "year", "bili", "pain"]).model_dump(mode="json")
    values["columns"][1]["missing"] = False
    return Schema.from_dict({**values, "visits": {**values["visits"], **BINS, **(changes or {})}})


def test_rows_in_a_bin_of_time_are_one_visit_with_the_last_cells_at_the_first_time():
    rows = [
        ("a", "F", "0.5", "1", "0"), ("a", "F", "1.9", "3", ""), ("a", "F", "1", "2", "1"), ("a", "F", "4", "", "0"),
        ("a", "F", "6", "9", "1"), ("a", "F", "", "9", "1"), ("b", "M", "7", "9", "1"),
    ]  # fmt: skip
    found = records(table_of(rows, AT_TIMES), in_bins())
    none = {"year[1]": None, "bili[1]": None, "pain[1]": None, "year[2]": None, "bili[2]": None, "pain[2]": None,
            "year[3]": None, "bili[3]": None, "pain[3]": None}  # fmt: skip
    first, third = {"year[1]": 0.5, "bili[1]": 3, "pain[1]": 1}, {"year[3]": 0, "pain[3]": 0}
    assert found == {
        "a": {"sex": "F", "last bin": 3, **none, **first, **third},
        "b": {"sex": "M", "last bin": 1, **none},
    }
    assert records(table_of(rows[::-1], AT_TIMES), in_bins()) == {"b": found["b"], "a": found["a"]}
    again = records(table_of([(who, sex, str(float(year or "nan") + 3), *rest) for who, sex, year, *rest in rows],
                             AT_TIMES), in_bins({"from_first": True}))  # fmt: skip
    assert "year[1]" not in again["a"]
    assert (again["a"]["last bin"], again["a"]["year[2]"], again["b"]["bili[1]"]) == (3, 1.5, 9)


@settings(max_examples=examples(60))
@given(people=PEOPLE, from_first=st.booleans())
def test_rows_that_came_out_of_bins_are_in_the_same_bins(people, from_first):
    schema = in_bins({"from_first": from_first})
    rows = [(who, sex, year, bili, pain) for who, sex, year, bili, _, _, pain, _ in rows_of(people) if year != "NA"]
    read, codec = records_of(table_of(rows, AT_TIMES), schema, "data"), RecordCodec(schema.as_records())
    first = codec.encode(read).records
    again = codec.encode(widened(long(codec.decode(first), schema), schema, "data")).records
    times = [name for name in read.column_names if name.startswith("year")]
    somewhere = np.array([from_first or any(row[name] is not None for name in times) for row in read.to_pylist()], bool)
    assert len(again) == len(first)  # also who is in no bin has a visit, in the first one
    np.testing.assert_allclose(first[somewhere], again[somewhere], atol=1e-5)


def test_a_rank_scale_holds_at_every_visit_but_gaps_are_linear():
    values = schema_of(["sex", "year", "bili"]).model_dump(mode="json")
    ranked = {"scale": "rank", "quantiles": [0.5, 1, 2]}
    for column in values["columns"][1:]:
        column |= ranked
    schema = Schema.from_dict(values)
    by_name = {column.name: column for column in schema.as_records().columns}
    assert [by_name[slot_name("bili", slot)].quantiles for slot in (1, 2)] == [(0.5, 1, 2)] * 2
    first, gap = (by_name[slot_name("year", slot)] for slot in (1, 2))
    assert (first.scale, first.quantiles, gap.scale, gap.quantiles) == ("rank", (0.5, 1, 2), "linear", None)
    rows = [("p", "F", str(year), str(bili)) for year, bili in ((0, 0.25), (3, 1.5), (5, 4))]
    table = wide(table_of(rows, ("id", "sex", "year", "bili")), schema, "data")
    codec = RecordCodec(schema.as_records())
    again = codec.decode(codec.encode(table).records)
    assert [again[slot_name("bili", slot)][0].as_py() for slot in (1, 2, 3)] == pytest.approx([0.25, 1.5, 4], abs=1e-4)
    assert [again[slot_name("year", slot)][0].as_py() for slot in (1, 2, 3)] == pytest.approx([0, 3, 2], abs=1e-4)


def test_columns_of_many_categories_that_differ_between_visits_stand_and_are_read_as_any_other():
    """Only those of the person stand apart: what a record has of the others is whether they are as before."""
    names = [f"k{i}" for i in range(70)]
    values = schema_of(["sex", "year", "ward", "bili", "dx"]).model_dump(mode="json")
    for column in (values["columns"][0], values["columns"][2]):
        column["categories"] = names
    values["columns"][3] |= {"scale": "rank", "quantiles": [0.5, 1, 2]}
    schema = Schema.from_dict(values)
    codec = RecordCodec(schema.as_records())
    kinds = {block.name: block for block in codec.blocks if block.kind != "absent"}
    assert kinds["sex"].kind == "wide"
    assert list(kinds)[-4:] == ["sex", "dx[1]", "dx[2]", "dx[3]"]
    assert [(kinds[slot_name("ward", slot)].kind, kinds[slot_name("ward", slot)].width) for slot in (1, 2, 3)] == [
        ("categorical", 72)
    ] * 3
    visits = [("0", "k7", "0.25", "a"), ("1", "k7", "1.5", ""), ("4", "k69", "", "b|c")]
    table = table_of([("p", "k66", *visit) for visit in visits], ("id", "sex", "year", "ward", "bili", "dx"))
    records = codec.encode(wide(table, schema, "data")).records
    first, second, third = (kinds[slot_name("ward", slot)] for slot in (1, 2, 3))
    assert (records[0, first.start + 7], records[0, second.start], records[0, third.start + 69]) == (1, 1, 1)
    assert records[0, kinds["sex"].start + 66] == 1
    again = long(codec.decode(records), schema).to_pylist()
    assert [(row["sex"], row["year"], row["ward"], row["dx"]) for row in again] == [
        ("k66", 0, "k7", ["a"]), ("k66", 1, "k7", []), ("k66", 4, "k69", ["b", "c"]),
    ]  # fmt: skip
    assert [row["bili"] for row in again] == [pytest.approx(0.25, abs=1e-4), pytest.approx(1.5, abs=1e-4), None]


def test_times_in_bins_are_linear_whatever_the_scale_of_times():
    values = schema_of(["sex", "year", "bili"]).model_dump(mode="json")
    values["columns"][1] |= {"scale": "rank", "quantiles": [4, 8, 12], "missing": False}
    values["visits"] = {"time": "year", "columns": ["bili"], "bins": {"width": 2, "count": 3}}
    columns = {column.name: column for column in Schema.from_dict(values).as_records().columns}
    for column in (columns[slot_name("year", slot)] for slot in (1, 2, 3)):
        assert (column.scale, column.quantiles, column.bounds) == ("linear", None, (0, 2))
