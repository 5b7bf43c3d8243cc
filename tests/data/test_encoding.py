"""Encoding keeps what the schema can say, clips the rest, and depends on one row at a time."""

import math
import time
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.data.encoding import RecordCodec, table_columns
from dpcgan_fast.data.reading import read_table
from dpcgan_fast.data.schema import OTHER, Schema
from dpcgan_fast.errors import InputError

SENTINEL = "Zq8sentinel"

MIXED = {
    "unit": "id",
    "n_units": 10,
    "label": "died",
    "columns": [
        {"name": "age", "type": "numeric", "bounds": [0, 100], "integer": True, "missing": True},
        {"name": "died", "type": "binary"},
        {"name": "sex", "type": "categorical", "categories": ["F", "M"], "missing": True},
        {"name": "smoker", "type": "binary", "missing": True},
        {"name": "bmi", "type": "numeric", "bounds": [10, 60]},
        {"name": "drug", "type": "categorical", "categories": ["a", "b"], "unknown": "first"},
    ],
    "signals": [{"name": "ecg", "columns": ["s1", "s2"], "bounds": [-1, 1]}],
}


def codec(values=MIXED, joint=False):
    return RecordCodec(Schema.from_dict(values), joint)


def one_column(column, cells, **schema):
    """Records of a table of one column."""
    name = column["name"]
    coder = codec({"unit": None, "columns": [column], **schema})
    return coder, coder.encode(pa.table({name: cells}))


def mixed_table(**changes):
    columns = {
        "age": ["50", "", "200"],
        "died": ["0", "1", "1"],
        "sex": ["M", "x", "NA"],
        "smoker": ["1", "", "0"],
        "bmi": ["35", "", "5"],
        "drug": ["b", "", "x"],
        "s1": ["0", "", "9"],
        "s2": ["-1", "1", "0.5"],
        "other": ["1", "2", "3"],
    }
    return pa.table({**columns, **changes})


# ---- layout


def test_blocks_follow_the_schema_and_leave_the_label_out():
    assert codec().blocks == (
        Block("numeric", "age", 0, 1, guard=1),
        Block("absent", "age", 1, 1),
        Block("categorical", "sex", 2, 4),
        Block("categorical", "smoker", 6, 3),
        Block("numeric", "bmi", 9, 1),
        Block("categorical", "drug", 10, 2),
        Block("numeric", "s1", 12, 1),
        Block("numeric", "s2", 13, 1),
    )
    assert codec().width == 14
    assert (codec().n_classes, codec().class_names) == (2, ("0", "1"))


def test_a_joint_label_is_one_last_position():
    assert codec(joint=True).blocks[-1] == Block("binary", "died", 14, 1)
    label = {"name": "y", "type": "categorical", "categories": ["a", "b", "c"]}
    eeg = {"name": "eeg", "columns": ["X1", "...", "X178"], "bounds": [-1000, 1000]}
    joint = codec({"unit": None, "label": "y", "columns": [label], "signals": [eeg]}, joint=True)
    assert joint.width == 179
    assert joint.blocks[-1] == Block("numeric", "y", 178, 1)


def test_without_a_label_there_is_one_class_without_a_name():
    coder, encoded = one_column({"name": "x", "type": "binary"}, ["1"])
    assert (coder.n_classes, coder.class_names, encoded.labels) == (1, (), None)


def test_table_columns_are_the_unit_and_the_modelled_columns():
    assert table_columns(Schema.from_dict(MIXED)) == (
        "id", "age", "died", "sex", "smoker", "bmi", "drug", "s1", "s2",
    )  # fmt: skip


# ---- encoding


def test_records_of_a_mixed_table():
    encoded = codec().encode(mixed_table())
    assert encoded.records.dtype == np.float32
    assert encoded.labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(
        encoded.records,
        [
            [0.5, 0, 0, 1, 0, 0, 0, 1, 0, 0.5, 0, 1, 0.5, 0.0],
            [0.5, 1, 0, 0, 1, 0, 0, 0, 1, 0.5, 1, 0, 0.5, 1.0],  # missing cells: their place, or the public default
            [1.0, 0, 0, 0, 0, 1, 1, 0, 0, 0.0, 1, 0, 1.0, 0.75],  # out of bounds: clipped; unknown: as the schema says
        ],
    )


@pytest.mark.parametrize(
    ("unknown", "missing", "of_unknown", "of_missing"),
    [
        (OTHER, False, OTHER, OTHER),
        (OTHER, True, OTHER, None),
        ("first", False, "a", "a"),
        ("first", True, "a", None),
        ("missing", True, None, None),
    ],
)
def test_what_unknown_and_missing_categories_become(unknown, missing, of_unknown, of_missing):
    column = {"name": "x", "type": "categorical", "categories": ["a", "b"], "unknown": unknown, "missing": missing}
    coder, encoded = one_column(column, ["b", "z", ""])
    assert coder.decode(encoded.records)["x"].to_pylist() == ["b", of_unknown, of_missing]


def test_infinite_values_are_clipped_and_missing_flags_read_as_0():
    coder, encoded = one_column({"name": "x", "type": "numeric", "bounds": [-2, 2]}, ["inf", "-1e999", "1e999", ""])
    assert coder.decode(encoded.records)["x"].to_pylist() == [2.0, -2.0, 2.0, 0.0]
    coder, encoded = one_column({"name": "x", "type": "binary"}, ["", "1"])
    assert coder.decode(encoded.records)["x"].to_pylist() == [0, 1]


@pytest.mark.parametrize(
    ("label", "cells", "kept", "labels"),
    [
        ({"type": "binary"}, ["1", "", "0", "NA"], [True, False, True, False], [1, 0]),
        ({"type": "categorical", "categories": ["a", "b"]}, ["b", "z", "", "a"], [True, False, False, True], [1, 0]),
    ],
)
def test_rows_without_a_known_label_are_dropped(label, cells, kept, labels):
    columns = [{"name": "x", "type": "numeric", "bounds": [0, 3]}, {"name": "y", **label}]
    table = pa.table({"x": [0, 1, 2, 3], "y": cells})
    encoded = codec({"unit": None, "label": "y", "columns": columns}).encode(table)
    assert encoded.kept.tolist() == kept
    assert encoded.labels.tolist() == labels
    np.testing.assert_allclose(encoded.records[:, 0] * 3, np.flatnonzero(kept), rtol=1e-6)


def test_a_joint_label_is_its_class_index_over_the_last_one():
    label = {"name": "y", "type": "categorical", "categories": ["a", "b", "c"]}
    values = {"unit": None, "label": "y", "columns": [label, {"name": "x", "type": "binary"}]}
    coder = codec(values, joint=True)
    table = pa.table({"y": ["c", "a", "b"], "x": [1, 0, 1]})
    encoded = coder.encode(table)
    np.testing.assert_array_equal(encoded.records, [[1, 1], [0, 0], [1, 0.5]])
    assert encoded.labels.tolist() == [2, 0, 1]
    assert coder.decode(encoded.records).equals(table)
    assert coder.decode(encoded.records, np.array([0, 0, 0]))["y"].to_pylist() == ["a", "a", "a"]


def test_a_cell_that_is_no_number_is_refused_with_file_column_and_row():
    for column in ("age", "died", "smoker", "s2"):
        table = mixed_table(**{column: ["1", "0", SENTINEL]})
        with pytest.raises(InputError, match=rf"data.csv, column {column}, row 3\)") as caught:
            codec().encode(table, "data.csv")
        assert SENTINEL not in str(caught.value)


@pytest.mark.parametrize(
    "column",
    [
        {"name": "x", "type": "numeric", "bounds": "private"},
        {"name": "x", "type": "categorical", "categories": "private"},
        {"name": "x", "type": "numeric", "bounds": [0, 1], "scale": "rank", "quantiles": "private"},
    ],
)
def test_a_private_fact_must_have_been_paid_for(column):
    with pytest.raises(InputError, match=r"private.*column x"):
        codec({"unit": None, "columns": [column]})
    with pytest.raises(InputError, match=r"private.*signal s"):
        codec({"unit": None, "signals": [{"name": "s", "columns": ["a"], "bounds": "private"}]})


def test_a_schema_that_is_not_complete_is_refused():
    with pytest.raises(InputError, match="column x"):
        codec({"unit": None, "columns": [{"name": "x", "type": "numeric"}]})


# ---- decoding


def test_decoded_tables_have_the_schemas_columns_and_types():
    encoded = codec().encode(mixed_table())
    table = codec().decode(encoded.records, encoded.labels)
    assert table.schema.equals(codec().arrow_schema)
    assert {field.name: str(field.type) for field in table.schema} == {
        "age": "int64", "died": "int64", "sex": "string", "smoker": "int64", "bmi": "double", "drug": "string",
        "s1": "double", "s2": "double",
    }  # fmt: skip
    assert table.to_pydict() == {
        "age": [50, None, 100], "died": [0, 1, 1], "sex": ["M", OTHER, None], "smoker": [1, None, 0],
        "bmi": [35.0, 35.0, 10.0], "drug": ["b", "a", "a"], "s1": [0.0, 0.0, 1.0], "s2": [-1.0, 1.0, 0.5],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "first", "last"),
    [([0.5, 3.5], 1, 3), ([0.2, 0.8], 0, 0), ([-1e300, 1e300], -(2**53), 2**53), ([-3, -1], -3, -1)],
)
def test_whole_numbers_stay_inside_the_bounds(bounds, first, last):
    """Bounds that hold no whole number, which paid bounds may be, give the nearest one rather than an error."""
    coder = codec({"unit": None, "columns": [{"name": "x", "type": "numeric", "bounds": bounds, "integer": True}]})
    decoded = coder.decode(np.array([[0.0], [1.0]], np.float32))["x"].to_pylist()
    assert decoded == [first, last]


@pytest.mark.parametrize("bounds", [[-1.7e308, 1.7e308], [0, 5e-324], [1, np.nextafter(1, 2)]])
def test_extreme_bounds_give_records_in_the_unit_interval(bounds):
    column = {"name": "x", "type": "numeric", "bounds": bounds}
    coder, encoded = one_column(column, [*bounds, np.inf, -np.inf, None])
    np.testing.assert_array_equal(encoded.records[:, 0], [0, 1, 1, 0, 0.5])
    assert coder.decode(encoded.records)["x"].to_pylist()[:2] == bounds


def test_numbers_by_rank_have_room_by_their_share_of_the_rows():
    column = {"name": "x", "type": "numeric", "bounds": [0, 100], "scale": "rank", "quantiles": [1, 2, 10]}
    coder, encoded = one_column({**column, "missing": True}, [-5, 0, 0.5, 1, 2, 10, 55, 100, 900, None])
    np.testing.assert_allclose(encoded.records[:, 0], [0, 0, 0.125, 0.25, 0.5, 0.75, 0.875, 1, 1, 0.5])
    decoded = coder.decode(encoded.records)["x"].to_pylist()
    assert decoded == pytest.approx([0, 0, 0.5, 1, 2, 10, 55, 100, 100, None])


def test_columns_of_many_categories_stand_after_all_others():
    many = {"type": "categorical", "categories": [f"k{i}" for i in range(64)]}
    columns = [
        {"name": "wide", **many},
        {"name": "a", "type": "binary"},
        {"name": "just not", **many, "unknown": "first"},
        {"name": "dx", "type": "codes", "vocabulary": ["q"]},
    ]
    coder = codec({"unit": None, "columns": columns})
    assert [(block.kind, block.name, block.start, block.width) for block in coder.blocks] == [
        ("binary", "a", 0, 1), ("categorical", "just not", 1, 64), ("wide", "wide", 65, 65), ("codes", "dx", 130, 1),
    ]  # fmt: skip
    cells = pa.table({"wide": ["k3", "else"], "a": [1, 0], "just not": ["k1", "k0"], "dx": [["q"], []]})
    again = coder.decode(coder.encode(cells).records)
    assert again.column_names == ["wide", "a", "just not", "dx"]
    assert again["wide"].to_pylist() == ["k3", "__other__"]
    assert again["just not"].to_pylist() == ["k1", "k0"]


def test_decoding_checks_shapes_and_labels():
    encoded = codec().encode(mixed_table())
    with pytest.raises(ValueError, match="shape"):
        codec().decode(encoded.records[:, 1:], encoded.labels)
    with pytest.raises(ValueError, match="labels"):
        codec().decode(encoded.records)
    with pytest.raises(ValueError, match="labels from 0 to 1"):
        codec().decode(encoded.records, np.array([0, 1, 2]))


def test_a_table_without_rows_encodes_and_decodes():
    table = mixed_table().slice(0, 0)
    encoded = codec().encode(table)
    assert encoded.records.shape == (0, 14)
    assert codec().decode(encoded.records, encoded.labels).num_rows == 0


# ---- properties over random schemas and tables

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)


@st.composite
def columns(draw, name):
    kind = draw(st.sampled_from(["numeric", "integer", "binary", "categorical"]))
    missing = draw(st.booleans())
    base = {"name": name, "missing": missing}
    if kind == "binary":
        return {**base, "type": "binary"}, st.sampled_from([0, 1, None])
    if kind == "categorical":
        names = draw(st.lists(texts.filter(lambda t: t != OTHER), min_size=1, max_size=4, unique=True))
        unknown = draw(st.sampled_from([OTHER, "first", *(["missing"] if missing else [])]))
        return {**base, "type": "categorical", "categories": names, "unknown": unknown}, st.sampled_from([*names, None])
    lower = draw(st.integers(-(10**5), 10**5))
    upper = lower + draw(st.integers(1, 10**5))
    cells = st.integers if kind == "integer" else st.floats
    inside = cells(lower, upper)
    outside = st.sampled_from([lower - 1, upper + 7, math.inf, -math.inf] if kind == "numeric" else [lower - 3])
    return (
        {**base, "type": "numeric", "bounds": [lower, upper], "integer": kind == "integer"},
        inside | outside | st.none(),
    )


@st.composite
def schemas_and_rows(draw):
    drawn = [draw(columns(f"c{i}")) for i in range(draw(st.integers(1, 5)))]
    label = draw(st.sampled_from([None, "binary", "categorical"]))
    specs = [spec for spec, _ in drawn]
    cells = [strategy for _, strategy in drawn]
    if label == "binary":
        specs.insert(0, {"name": "y", "type": "binary"})
        cells.insert(0, st.sampled_from([0, 1]))
    elif label == "categorical":
        specs.append({"name": "y", "type": "categorical", "categories": ["p", "q", "r"]})
        cells.append(st.sampled_from(["p", "q", "r"]))
    values = {"unit": None, "label": label and "y", "columns": specs}
    return values, draw(st.lists(st.tuples(*cells), min_size=1, max_size=8))


def expected(spec, cell):
    """What a cell comes back as: the specification, for one cell."""
    if spec["type"] == "numeric":
        lower, upper = spec["bounds"]
        if cell is None:
            middle = (lower + upper) / 2
            return None if spec["missing"] else round(middle) if spec["integer"] else middle
        return min(max(cell, lower), upper)
    if cell is not None:
        return cell
    if spec.get("missing"):
        return None
    if spec["type"] == "binary":
        return 0
    return OTHER if spec["unknown"] == OTHER else spec["categories"][0]


def arrow_table(specs, rows):
    kinds = {"numeric": pa.float64(), "binary": pa.int64(), "categorical": pa.string()}
    return pa.table(
        {spec["name"]: pa.array([row[i] for row in rows], kinds[spec["type"]]) for i, spec in enumerate(specs)}
    )


@given(schemas_and_rows(), st.booleans())
@settings(max_examples=200)
def test_cells_come_back_as_the_schema_says(drawn, joint):
    values, rows = drawn
    coder = codec(values, joint)
    encoded = coder.encode(arrow_table(values["columns"], rows))
    assert encoded.records.shape == (len(rows), coder.width)
    assert encoded.records.min(initial=0) >= 0
    assert encoded.records.max(initial=0) <= 1
    assert encoded.kept.all()
    decoded = coder.decode(encoded.records, None if joint else encoded.labels)
    for i, spec in enumerate(values["columns"]):
        found = decoded[spec["name"]].to_pylist()
        wanted = [expected(spec, row[i]) for row in rows]
        if spec["type"] == "numeric" and not spec["integer"]:
            wanted = [w if w is None else pytest.approx(w, abs=1e-6 * np.ptp(spec["bounds"])) for w in wanted]
        assert found == wanted


@given(schemas_and_rows(), st.data())
@settings(max_examples=200)
def test_any_record_decodes_to_cells_that_the_schema_allows(drawn, data):
    values, _ = drawn
    coder = codec(values)
    floats = st.floats(width=32)
    row = st.lists(floats, min_size=coder.width, max_size=coder.width)
    records = np.array(data.draw(st.lists(row, min_size=1, max_size=4)), np.float32).reshape(-1, coder.width)
    labels = np.zeros(len(records), np.int64) if values["label"] else None
    table = coder.decode(records, labels)
    for spec in values["columns"]:
        for cell in table[spec["name"]].to_pylist():
            if cell is None:
                assert spec["missing"]
            elif spec["type"] == "numeric":
                assert spec["bounds"][0] <= cell <= spec["bounds"][1]
            elif spec["type"] == "binary":
                assert cell in (0, 1)
            else:
                assert cell in (*spec["categories"], OTHER)
    again = coder.decode(coder.encode(table).records, labels)
    for spec in values["columns"]:
        if spec["type"] != "numeric":
            assert again[spec["name"]].equals(table[spec["name"]])


@given(schemas_and_rows())
def test_a_rows_record_does_not_depend_on_other_rows(drawn):
    values, rows = drawn
    coder = codec(values)
    together = coder.encode(arrow_table(values["columns"], rows)).records
    alone = [coder.encode(arrow_table(values["columns"], [row])).records for row in rows]
    np.testing.assert_array_equal(together, np.concatenate(alone))


ODD_CELLS = ("x", "?", True, 7, 0.25, None, 2**70, Decimal("1.50"), pd.Timestamp("2020-01-02"))
COLUMN_CELLS = {
    "int64": [0, 1, 1], "float64": [0.0, 1.0, 0.1], "float32": [0.0, 1.0, 0.1], "bool": [False, True, True],
    "boolean": [False, True, None], "Int64": [0, 1, None], "category": ["0", "1", "0.1"], "string": ["0", "1.0", "0.1"],
    "datetime64[ns]": ["2020-01-02", "2020-01-03", "NaT"], "object": [True, 1.0, "0"],
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD_CELLS, ids=lambda cell: type(cell).__name__)
@pytest.mark.parametrize("dtype", COLUMN_CELLS)
@pytest.mark.parametrize("source", ["frame", "csv"])
def test_one_odd_row_changes_no_other_rows_record(tmp_path, source, dtype, odd):
    """It may change the type of a DataFrame's whole column, and with it what every cell is to pandas."""
    stamps = ["2020-01-02 00:00:00", "2020-01-03 00:00:00"]
    lists = (["0", "1"], ["false", "true"], ["0.0", "1.0", "0.1"], ["0.10000000149011612"], stamps)
    common = {"type": "categorical", "missing": True}
    specs = [{"name": f"c{i}", "categories": names, **common} for i, names in enumerate(lists)]
    frame = pd.DataFrame(dict.fromkeys((spec["name"] for spec in specs), pd.Series(COLUMN_CELLS[dtype], dtype=dtype)))
    frames = [frame, pd.concat([frame, pd.DataFrame({name: pd.Series([odd], dtype=object) for name in frame})])]
    if dtype != "datetime64[ns]" and odd in ("?", True, 7, 0.25, None, 2**70, Decimal("1.50")):
        specs.append({"name": "n", "type": "numeric", "bounds": [0, 2], "missing": True})
        frames = [part.assign(n=part["c0"]) for part in frames]
    if source == "csv":
        rows = ["" if pd.isna(cell) else str(cell) for cell in (*COLUMN_CELLS[dtype], odd)]
        lines = [",".join([row] * len(specs)) for row in rows]
        header = ",".join(spec["name"] for spec in specs)
        frames = [tmp_path / "0.csv", tmp_path / "1.csv"]
        for path, kept in zip(frames, (lines[:-1], lines), strict=True):
            path.write_text("\n".join([header, *kept]) + "\n")
    coder = codec({"unit": None, "columns": specs})
    whole, more = (coder.encode(read_table(part, coder.schema.column_names())[0]).records for part in frames)
    np.testing.assert_array_equal(whole, more[:-1])


@pytest.mark.parametrize("typed", [True, False], ids=["floats", "texts"])
def test_large_tables_encode_in_under_a_second(typed):
    numbers = np.random.default_rng(0).normal(size=(70_000, 12)).round(3)
    cells = [pa.array(column) for column in numbers.T]
    table = pa.table({f"c{i}": c if typed else c.cast(pa.string()) for i, c in enumerate(cells)})
    values = [{"name": f"c{i}", "type": "numeric", "bounds": [-4, 4], "missing": True} for i in range(12)]
    coder = codec({"unit": None, "columns": values})
    started = time.perf_counter()
    coder.encode(table)
    assert time.perf_counter() - started < 1
