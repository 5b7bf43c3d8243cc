"""A schema with visits of all kinds of columns, and rows of made-up people for it."""

import pyarrow as pa
from hypothesis import strategies as st

from dpcgan_fast.data.records import records_of
from dpcgan_fast.data.schema import Schema

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
        "visits": {"time": "year", "max_visits": MOST, "columns": differing, "key": None, **(visits or {})},
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


BINS = {"max_visits": None, "bins": {"width": 2, "count": 3}}
AT_TIMES = ("id", "sex", "year", "bili", "pain")

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
