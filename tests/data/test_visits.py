"""Visits of a person as one record, and back: their order, their gaps, and that nobody's depends on anybody else."""

import datetime
import math

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
from dpcgan_fast.data.visits import in_order, long, widened
from dpcgan_fast.errors import InputError
from tests.conftest import examples
from tests.data.people_with_visits import COLUMNS, DATES, MOST, PEOPLE, records, rows_of, schema_of, table_of


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


def test_a_record_writes_a_visit_as_what_has_changed():
    """So that visits whose cells are drawn each by itself are like the ones before."""
    schema = schema_of(["sex", "year", "bili", "ward", "pain"], {"max_visits": 4})
    rows = [
        ("a", "F", str(year), bili, ward, pain)
        for year, (bili, ward, pain) in enumerate([("32", "y", "1"), ("32", "y", "1"), ("", "", "0"), ("64", "x", "0")])
    ]
    rows += [("b", "F", "0", "", "z", "0"), ("b", "F", "1", "16", "z", "0"), ("c", "F", "0", "64", "x", "0")]
    codec = RecordCodec(schema.as_records())
    read = records_of(table_of(rows, ("id", "sex", "year", "bili", "ward", "pain")), schema, "data")
    a, b, c = codec.encode(read).records
    at = {}
    for block in codec.blocks:
        at.setdefault(block.name, []).append(slice(block.start, block.stop))

    def of(record, name):
        return [record[part].tolist() for part in at[name]]

    assert of(a, "number of visits") == [[0], [0], [0]]
    assert [of(a, f"bili[{slot}]") for slot in (1, 2, 3, 4)] == [[[0.5], [0]], [[0.5], [0]], [[0.5], [1]], [[1], [0]]]
    y, as_before, missing, back = [0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]
    assert [of(a, f"ward[{slot}]")[0] for slot in (1, 2, 3, 4)] == [y, as_before, missing, back]
    assert [of(a, f"pain[{slot}]") for slot in (1, 2, 3, 4)] == [[[1]], [[0]], [[1]], [[0]]]
    assert of(b, "bili[1]") == [[0.25], [1]]  # what it turns out to be, though it is missing
    assert of(b, "bili[2]") == [[0.5], [0]]
    assert of(c, "number of visits") == [[1], [1], [1]]
    assert [of(c, f"{name}[2]") for name in ("bili", "ward", "pain")] == [[[0.5], [1]], [as_before], [[0]]]


def test_cells_drawn_each_by_itself_are_like_those_of_the_visit_before():
    """The cells of each visit are dealt out anew among all people: what a decoder does that has learned nothing."""
    rng = np.random.default_rng(0)
    people, visits = 4000, 4
    bili, ward, known = np.empty((people, visits)), np.empty((people, visits), int), rng.integers(1, 5, people)
    bili[:, 0], ward[:, 0] = rng.normal(size=people), rng.integers(0, 3, people)
    for slot in range(1, visits):
        bili[:, slot] = 0.9 * bili[:, slot - 1] + math.sqrt(1 - 0.81) * rng.normal(size=people)
        ward[:, slot] = np.where(rng.random(people) < 0.8, ward[:, slot - 1], rng.integers(0, 3, people))
    rows = [
        (str(who), "F", str(slot), str(32 + 6 * bili[who, slot]), "xyz"[ward[who, slot]])
        for who in range(people)
        for slot in range(known[who])
    ]
    schema = schema_of(["sex", "year", "bili", "ward"], {"max_visits": visits})
    codec = RecordCodec(schema.as_records())
    real = codec.encode(records_of(table_of(rows, ("id", "sex", "year", "bili", "ward")), schema, "data")).records
    records = real.copy()
    for block in codec.blocks:
        judged = np.ones(people, bool) if block.guard is None else real[:, block.guard] < 0.5
        part = real[judged, block.start : block.stop]
        records[:, block.start : block.stop] = part[rng.integers(0, len(part), people)]
    rows = long(codec.decode(records), schema)
    who, drawn, wards = rows["id"].to_numpy(), rows["bili"].to_numpy(), np.array(rows["ward"].to_pylist())
    later = np.flatnonzero(np.diff(who) == 0) + 1
    assert np.bincount(np.bincount(who)[1:])[1:] / people == pytest.approx([0.25] * visits, abs=0.03)
    assert np.corrcoef(drawn[later - 1], drawn[later])[0, 1] > 0.8
    assert drawn.std() == pytest.approx(6, rel=0.15)
    assert np.mean(wards[later] == wards[later - 1]) == pytest.approx(0.8 + 0.2 / 3, abs=0.02)


def test_times_counted_from_the_first_visit():
    columns = [{"name": name, **COLUMNS[name], "missing": False} for name in ("year", "bili")]
    schema = Schema.from_dict({"unit": "id", "columns": columns, "visits": {
        "time": "year", "max_visits": 3, "columns": ["bili"], "from_first": True}})  # fmt: skip
    rows = [("a", "54.5", "1"), ("a", "52", "2"), ("a", "70", "3"), ("b", "90", "4")]
    read = records_of(table_of(rows, ("id", "year", "bili")), schema, "data")
    assert read.drop_columns("id").to_pylist() == [
        {"number of visits": 3, "bili[1]": 2, "year[2]": 2.5, "bili[2]": 1, "year[3]": 13.5, "bili[3]": 3},
        {"number of visits": 1, "bili[1]": 4, "year[2]": None, "bili[2]": None, "year[3]": None, "bili[3]": None},
    ]
    codec = RecordCodec(schema.as_records())
    back = long(codec.decode(codec.encode(read).records), schema)
    assert back["year"].to_pylist() == pytest.approx([0, 2.5, 16, 0])
    assert [time for time in back["year"].to_pylist() if time == 0] == [0, 0]


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


def test_a_time_that_is_missing_stands_last_and_times_end_at_their_bound():
    schema = schema_of(["sex", "year", "grade"], {"max_visits": 3})
    decoded = pa.table({
        "sex": ["F"], "number of visits": [3], "year[1]": [2.0], "year[2]": pa.array([None], pa.float64()),
        "year[3]": [15.0], "grade[1]": ["2"], "grade[2]": ["1"], "grade[3]": ["3"],
    })  # fmt: skip
    rows = long(decoded, schema).to_pylist()
    assert [(row["year"], row["grade"]) for row in rows] == [(2, "2"), (16, "3"), (None, "1")]


@settings(max_examples=examples(40))
@given(seed=st.integers(0, 2**32 - 1), bins=st.booleans(), from_first=st.booleans())
def test_any_record_is_a_person_with_visits_that_the_schema_allows(seed, bins, from_first):
    """Whatever is drawn: times in order and within bounds, no cell missing that must not be."""
    columns = ["sex", "bili", "ward", "grade", "pain"]
    values = schema_of(["year", *columns]).model_dump(mode="json")
    values["visits"]["from_first"] = from_first
    for column in values["columns"]:
        column |= {"missing": False, "unknown": "first"}
    if bins:
        values["visits"] |= {"max_visits": None, "bins": {"width": 5, "count": 3}}
    schema = Schema.from_dict(values)
    codec = RecordCodec(schema.as_records())
    records = np.random.default_rng(seed).random((20, codec.width))
    records[:10] = records[:10].round()
    rows = long(codec.decode(records), schema)
    assert set(rows["id"].to_pylist()) == set(range(1, 21))
    assert all(not rows[name].null_count for name in rows.column_names)
    for person in range(1, 21):
        own = [row for row in rows.to_pylist() if row["id"] == person]
        times = [row["year"] for row in own]
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] <= 16
        assert times[0] == 0 or not from_first
        assert all(0 <= row["bili"] <= 64 for row in own)
        if bins:
            assert len({int(time // 5) for time in times}) == len(times)


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


def test_rows_of_equal_time_are_read_whatever_numbers_their_categories_are():
    """Large numbers as floats are refused as keys; whether other people's rows tie must not decide about a column."""
    schema = schema_of(["year", "ward"])
    cells = {"year": [1.0, 2.0, 2.0], "ward": [1e17, 2.0, 3.0]}
    for ids in ([1, 1, 2], [1, 1, 1]):
        records = records_of(pa.table({"id": ids, **cells}), schema, "data")
        assert records.num_rows == len(set(ids))
