"""Visits of a person as one record, and back: their order, their gaps, and that nobody's depends on anybody else."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data.datasets import data_folder, dataset_path
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.preparing import prepare
from dpcgan_fast.data.records import read_records, records_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.visits import in_order, long, wide, widened
from dpcgan_fast.errors import InputError
from tests.conftest import examples

MOST = 3
COLUMNS = {
    "sex": {"type": "categorical", "categories": ["F", "M"], "unknown": "first"},
    "year": {"type": "numeric", "bounds": [0, 16], "missing": True},
    "bili": {"type": "numeric", "bounds": [0, 64], "missing": True},
    "ward": {"type": "categorical", "categories": ["x", "y", "z"], "missing": True},
    "grade": {"type": "ordinal", "categories": ["1", "2", "3"]},
    "pain": {"type": "binary"},
    "dx": {"type": "codes", "vocabulary": ["a", "b", "c"]},
}


def schema_of(columns=None, visits=None, **changes):
    chosen = {name: dict(COLUMNS[name]) for name in columns or COLUMNS}
    differing = [name for name in chosen if name not in ("sex", "year")]
    return Schema.from_dict({
        "unit": "id",
        "columns": [{"name": name, **values} for name, values in chosen.items()],
        "visits": {"time": "year", "max_visits": MOST, "columns": differing, **(visits or {})},
        **changes,
    })  # fmt: skip


def table_of(rows, names=("id", "sex", "year", "bili", "ward", "grade", "pain", "dx")):
    """Rows of texts, as a CSV file gives them."""
    columns = list(zip(*rows, strict=True)) if rows else [[] for _ in names]
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})


def records(table, schema):
    return {row.pop("id"): row for row in records_of(table, schema, "data").to_pylist()}


NUMBER = st.integers(0, 16).map(lambda quarter: str(quarter / 4))
VISIT = st.tuples(
    st.one_of(NUMBER, st.just("NA")),
    st.one_of(NUMBER, st.just("")),
    st.sampled_from(["x", "y", "z", ""]),
    st.sampled_from("123"),
    st.sampled_from("01"),
    st.sampled_from(["", "a", "a|b", "c|b"]),
)
PEOPLE = st.dictionaries(
    st.sampled_from(["p1", "p2", "p3", "p4"]),
    st.tuples(st.sampled_from("FM"), st.lists(VISIT, min_size=1, max_size=5)),
    min_size=1,
)


def rows_of(people):
    return [(who, sex, *visit) for who, (sex, visits) in people.items() for visit in visits]


def by_time(visit):
    return (visit[0] == "NA", float(visit[0]) if visit[0] != "NA" else 0.0)


@settings(max_examples=examples(80))
@given(people=PEOPLE, data=st.data())
def test_visits_come_back_in_order_whatever_the_order_of_rows(people, data):
    schema = schema_of()
    table = table_of(data.draw(st.permutations(rows_of(people))))
    read = records_of(table, schema, "data")
    codec = RecordCodec(schema.as_records())
    back = long(codec.decode(codec.encode(read).records), schema)
    names = read["id"].to_pylist()
    assert back.column_names == ["id", *schema.column_names()]
    found = {name: [] for name in names}
    for row in back.to_pylist():
        found[names[row["id"] - 1]].append(row)
    for who, (sex, visits) in people.items():
        times = sorted(float(visit[0]) for visit in visits if visit[0] != "NA")
        kept = (times + [None] * len(visits))[: min(len(visits), MOST)]
        assert [row["year"] for row in found[who]] == pytest.approx(kept)
        assert {row["sex"] for row in found[who]} == {sex}
        if len(visits) <= MOST:
            expected = sorted(map(_cells, visits), key=repr)
            cells = [(r["year"], r["bili"], r["ward"], r["grade"], r["pain"], frozenset(r["dx"])) for r in found[who]]
            rounded = [tuple(round(c, 4) if isinstance(c, float) else c for c in cell) for cell in cells]
            assert sorted(rounded, key=repr) == expected


def _cells(visit):
    year, bili, ward, grade, pain, dx = visit
    numbers = [float(text) if text not in ("", "NA") else None for text in (year, bili)]
    return (*numbers, ward or None, grade, int(pain), frozenset(dx.split("|")) - {""})


@settings(max_examples=examples(60))
@given(people=PEOPLE, data=st.data())
def test_a_record_depends_on_its_own_rows_alone_and_not_on_their_order(people, data):
    schema = schema_of()
    whole = records(table_of(data.draw(st.permutations(rows_of(people)))), schema)
    for who in people:
        alone = records(table_of(rows_of({who: people[who]})), schema)[who]
        assert {k: _comparable(v) for k, v in whole[who].items()} == {k: _comparable(v) for k, v in alone.items()}


def _comparable(cell):
    return frozenset(cell) if isinstance(cell, list) else cell


@settings(max_examples=examples(60))
@given(people=PEOPLE)
def test_rows_that_came_out_of_records_make_the_same_records(people):
    schema = schema_of()
    codec = RecordCodec(schema.as_records())
    first = codec.encode(records_of(table_of(rows_of(people)), schema, "data")).records
    again = codec.encode(widened(long(codec.decode(first), schema), schema, "data")).records
    np.testing.assert_allclose(first, again, atol=1e-6)


def test_the_record_is_static_cells_then_the_number_of_visits_then_visit_by_visit():
    names = schema_of(["sex", "year", "bili"], {"max_visits": 2}).as_records().column_names()
    assert names == ("sex", "number of visits", "year[1]", "bili[1]", "year[2]", "bili[2]")


def test_gaps_caps_and_static_cells():
    rows = [
        ("a", "", "5", "3"), ("b", "M", "1", "9"), ("a", "F", "2", "1"), ("a", "M", "2.5", "2"), ("a", "F", "9", "4"),
    ]  # fmt: skip
    schema = schema_of(["sex", "year", "bili"])
    found = records(table_of(rows, ("id", "sex", "year", "bili")), schema)
    assert found == {
        "a": {
            "sex": "F", "number of visits": 3, "year[1]": 2, "bili[1]": 1, "year[2]": 0.5, "bili[2]": 2, "year[3]": 2.5,
            "bili[3]": 3,
        },
        "b": {
            "sex": "M", "number of visits": 1, "year[1]": 1, "bili[1]": 9, "year[2]": None, "bili[2]": None,
            "year[3]": None, "bili[3]": None,
        },
    }  # fmt: skip


def test_times_are_clipped_before_gaps_are_taken():
    schema = schema_of(["sex", "year", "bili"])
    found = records(table_of([("a", "F", "-5", "1"), ("a", "F", "3", "1")], ("id", "sex", "year", "bili")), schema)
    assert (found["a"]["year[1]"], found["a"]["year[2]"]) == (0, 3)


def test_a_public_longest_gap_bounds_the_gaps():
    schema = schema_of(["sex", "year", "bili"], {"max_gap": 2}).as_records()
    assert {c.name: c.bounds for c in schema.columns if c.name in ("year[1]", "year[2]")} == {
        "year[1]": (0, 16), "year[2]": (0, 2)
    }  # fmt: skip


DATES = {
    "unit": "id",
    "columns": [
        {"name": "birth", "type": "date", "bounds": ["1900-01-01", "2000-12-31"]},
        {"name": "admit", "type": "date", "bounds": ["2010-01-01", "2020-12-31"]},
        {"name": "leave", "type": "date", "origin": "admit", "bounds": [0, 100]},
        {"name": "first_fall", "type": "date", "origin": "birth", "bounds": [0, 40000], "missing": True},
    ],
    "visits": {"time": "admit", "max_visits": 3, "columns": ["leave"]},
}


def test_dates_gaps_in_whole_days_and_dates_counted_from_others():
    schema = Schema.from_dict(DATES)
    rows = [
        ("a", "1950-02-01", "2012-03-05", "2012-03-09", "2011-01-01"),
        ("a", "1950-02-01", "2011-03-05", "2011-03-05", ""),
        ("b", "1960-02-01", "2015-01-01", "2015-02-01", ""),
    ]
    read = records_of(table_of(rows, ("id", "birth", "admit", "leave", "first_fall")), schema, "data")
    assert read["admit[2]"].to_pylist() == [366, None]
    codec = RecordCodec(schema.as_records())
    back = long(codec.decode(codec.encode(read).records), schema)
    assert back.schema.field("leave").type == pa.date32()
    day = datetime.date.fromisoformat
    assert [tuple(row.values()) for row in back.to_pylist()] == [
        (1, day("1950-02-01"), day("2011-03-05"), day("2011-03-05"), day("2011-01-01")),
        (1, day("1950-02-01"), day("2012-03-05"), day("2012-03-09"), day("2011-01-01")),
        (2, day("1960-02-01"), day("2015-01-01"), day("2015-02-01"), None),
    ]
    assert widened(back, schema, "data").drop_columns("id").equals(read.drop_columns("id"))


def test_rows_of_one_key_are_one_visit_with_the_codes_of_all():
    schema = schema_of(["sex", "year", "bili", "dx"], {"key": "stay", "columns": ["bili", "dx"]})
    names = ("id", "stay", "sex", "year", "bili", "dx")
    rows = [
        ("a", "7", "F", "4", "", "a"), ("a", "9", "F", "1", "5", "b"), ("a", "7.0", "F", "3", "6", "c"),
        ("b", "7", "M", "2", "", ""), ("a", "9", "", "1", "8", "b"),
    ]  # fmt: skip
    found = records(table_of(rows, names), schema)
    a = found["a"]
    assert (a["number of visits"], a["year[1]"], a["year[2]"], a["year[3]"]) == (2, 1, 2, None)
    assert [set(a[f"dx[{slot}]"]) for slot in (1, 2, 3)] == [{"b"}, {"a", "c"}, set()]
    assert (a["bili[1]"], a["bili[2]"]) == (5, 6)
    assert found["b"]["number of visits"] == 1
    shuffled = records(table_of(rows[::-1], names), schema)
    assert {k: _comparable(v) for k, v in shuffled["a"].items()} == {k: _comparable(v) for k, v in a.items()}
    assert not widened(long_of(table_of(rows, names), schema), schema, "x", synthetic=True)["dx[1]"].null_count


def long_of(table, schema):
    codec = RecordCodec(schema.as_records())
    return long(codec.decode(codec.encode(records_of(table, schema, "data")).records), schema)


def test_a_cell_that_must_be_there_is_that_of_the_visit_before():
    """Nets may leave out a cell of a visit that there is."""
    schema = schema_of(["sex", "year", "grade"], {"max_visits": 3})
    decoded = pa.table({
        "sex": ["F"], "number of visits": [3], "year[1]": [2.0], "year[2]": pa.array([None], pa.float64()),
        "year[3]": [15.0], "grade[1]": ["2"], "grade[2]": pa.array([None], pa.string()), "grade[3]": ["3"],
    })  # fmt: skip
    rows = long(decoded, schema).to_pylist()
    assert [(row["year"], row["grade"]) for row in rows] == [(2, "2"), (16, "3"), (None, "2")]
    columns = [{"name": name, **COLUMNS[name], "missing": False} for name in ("sex", "year", "grade")]
    always = Schema.from_dict({"unit": "id", "columns": columns, "visits": schema.visits.model_dump()})
    assert [(r["year"], r["grade"]) for r in long(decoded, always).to_pylist()] == [(2, "2"), (2, "2"), (16, "3")]


def test_orders_hold_at_every_visit_and_the_time_is_the_visits_own():
    rules = [{"kind": "less", "columns": ["bili", "year"]}]
    schema = schema_of(["sex", "year", "bili"], constraints=rules)
    decoded = pa.table({
        "sex": ["F", "F", "F"], "number of visits": [2, 2, 1], "year[1]": [2.0, 2, 2], "bili[1]": [1.0, 1, 1],
        "year[2]": [2.0, 2, 2], "bili[2]": [3.5, 4.5, 4.5], "year[3]": [0.0, 0, 0], "bili[3]": [9.0, 9, 9],
    })  # fmt: skip
    assert in_order(decoded, schema).to_pylist() == [True, False, True]
    assert schema.as_records().constraints == ()


def test_implied_codes_are_implied_at_every_visit():
    rules = [{"kind": "implies", "columns": ["dx"], "code": "a", "implied": "b"}]
    constraints = schema_of(constraints=rules).as_records().constraints
    assert [rule.columns for rule in constraints] == [("dx[1]",), ("dx[2]",), ("dx[3]",)]


def test_an_unreadable_cell_is_named_by_its_row_in_the_table():
    rows = [("a", "F", "1", "2"), ("a", "F", "2", "two")]
    with pytest.raises(InputError, match=r"A cell is not a number \(data, column bili, row 2\)"):
        records(table_of(rows, ("id", "sex", "year", "bili")), schema_of(["sex", "year", "bili"]))


def test_a_table_without_the_unit_is_refused():
    with pytest.raises(InputError, match=r"lacks a column \(data, column id\)"):
        wide(table_of([("F", "1", "2")], ("sex", "year", "bili")), schema_of(["sex", "year", "bili"]), "data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": None}, "visits need the name of the column that identifies a person"),
        ({"max_rows_per_unit": 4}, "visits have a cap of their own"),
        ({"label": "pain"}, "label 'pain' must be the same at all visits"),
        ({"visits": {"time": "sex"}}, "time of visits 'sex' must be a numeric or date column"),
        ({"visits": {"columns": ["nothing"]}}, "column 'nothing' of visits is not among the columns"),
        ({"visits": {"max_visits": 1}}, "greater than or equal to 2"),
        ({"visits": {"key": "id"}}, "key of visits must not be the unit's column"),
        ({"visits": {"every": 3}}, "there is no such field"),
    ],
)
def test_visits_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        schema_of(**changes)


def test_private_facts_of_visits_are_refused_with_the_remedy():
    values = schema_of(["sex", "year", "bili"]).model_dump(mode="json")
    values["columns"][2]["bounds"] = "private"
    with pytest.raises(InputError, match=r"column 'bili' differs between visits, so that its bounds must be public"):
        Schema.from_dict(values)
    values["columns"][2]["bounds"] = None  # a draft: said when training begins
    with pytest.raises(InputError, match=r"The bounds are still to be filled in \(schema, column bili\)"):
        Schema.from_dict(values).require_complete()


def test_a_name_of_a_record_is_taken():
    values = schema_of(["sex", "year", "bili"]).model_dump(mode="json")
    values["columns"][0]["name"] = "bili[2]"
    with pytest.raises(InputError, match=r"rename the column 'bili\[2\]'"):
        Schema.from_dict(values)


def test_a_static_date_cannot_be_counted_from_one_that_differs():
    values = {**DATES, "visits": {"time": "admit", "max_visits": 3, "columns": []}}
    with pytest.raises(InputError, match="column 'leave' has an origin that differs between visits"):
        Schema.from_dict(values)


class Silent:
    def start(self, phase, total, done): ...

    def advance(self, done): ...


@settings(max_examples=examples(15))
@given(people=PEOPLE, data=st.data())
def test_a_store_holds_the_same_records(people, data, tmp_path_factory):
    schema = schema_of()
    folder = tmp_path_factory.mktemp("store")
    rows = data.draw(st.permutations(rows_of(people)))
    lines = [",".join(row) for row in [("id", *schema.column_names()), *rows]]
    (folder / "visits.csv").write_text("\n".join(lines) + "\n")
    prepare(folder / "visits.csv", schema, folder / "store", Silent(), lambda: False)
    stored, straight = (read_records(folder / name, schema, "data")[0] for name in ("store", "visits.csv"))
    of_store, of_file = ({row.pop("id"): {k: _comparable(v) for k, v in row.items()} for row in table.to_pylist()}
                         for table in (stored, straight))  # fmt: skip
    assert of_store == of_file
    fewer = schema.model_copy(update={"visits": schema.visits.model_copy(update={"max_visits": 2})})
    with pytest.raises(InputError, match='made for another schema: "visits" differs'):
        read_records(folder / "store", fewer, "data")


@pytest.mark.skipif(data_folder() is None, reason="no folder with the public data sets")
def test_admissions_of_the_mimic_demo_are_visits():
    columns = [
        {"name": "sex_category", "type": "categorical", "categories": ["Female", "Male"]},
        {"name": "admission_dttm", "type": "date", "bounds": ["2100-01-01", "2220-12-31"]},
        {"name": "code", "type": "codes", "vocabulary": ["ICD9CM/5723", "ICD9CM/5715"], "separator": None},
    ]
    visits = {"time": "admission_dttm", "max_visits": 4, "columns": ["code"], "key": "hospitalization_id"}
    schema = Schema.from_dict({"unit": "patient_id", "columns": columns, "visits": visits})
    table, left = read_records(dataset_path("mimic_iv_demo_diagnoses"), schema, "data")
    assert table.num_rows == 100
    assert left == ("age_at_admission", "died")
    assert max(table["number of visits"].to_pylist()) == 4
    first = {str(row["patient_id"]): row for row in table.to_pylist()}["10000032"]
    assert {"ICD9CM/5723", "ICD9CM/5715"} <= set(first["code[1]"])
    assert all(gap is None or gap >= 0 for gap in table["admission_dttm[2]"].to_pylist())
