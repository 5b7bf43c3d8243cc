"""Codes columns are judged as flags of their most frequent codes and a number of codes, and all codes by prevalence."""

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data import code_rows
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate import Metrics, code_distances, code_view, evaluate
from dpcgan_fast.evaluate.code_structure import REASONS
from dpcgan_fast.report import write_report
from tests.conftest import examples
from tests.evaluate.tables import COLUMNS, LABEL, patients, schema_of
from tests.report.pages import PRIVACY, Page, page

VOCABULARY = ("I10", "E11", "J45", "N18", "C50")
DX: dict[str, Any] = {"name": "dx", "type": "codes", "vocabulary": VOCABULARY, "max_codes": 3}
NUMBER = "dx: number of codes"
TEXT, LARGE_TEXT = pa.string(), pa.large_string()
KINDS = (
    pa.list_(TEXT),
    pa.large_list(TEXT),
    pa.list_(LARGE_TEXT),
    pa.large_list(pa.dictionary(pa.int32(), TEXT)),
    pa.list_(pa.dictionary(pa.int8(), LARGE_TEXT)),
)
Lists = Sequence[Sequence[str | None] | None]

cells = st.none() | st.lists(st.none() | st.sampled_from([*VOCABULARY, "unknown", "i10", ""]), max_size=8)
tables = st.lists(cells, max_size=12)


def codes_schema(columns: Sequence[dict[str, Any]] = (DX,), **more: Any) -> Schema:
    return Schema.from_dict({"unit": None, "columns": columns, **more})


def codes_table(lists: Lists, kind: pa.DataType = KINDS[0], cut: int = 0) -> pa.Table:
    """One column of lists, in two chunks of which the second is a slice of a longer array."""
    cut = min(cut, len(lists))
    longer = pa.array([["I10"], None, *lists[cut:], ["E11"]], kind)
    chunks = [pa.array(lists[:cut], kind), longer.slice(2, len(lists) - cut)]
    return pa.table({"dx": pa.chunked_array(chunks, kind)})


def known(lists: Lists) -> list[set[str]]:
    """The specification of a row's codes: a set, within the vocabulary."""
    return [set(cell or ()) & set(VOCABULARY) - {None} for cell in lists]


def ranked(lists: Lists) -> list[str]:
    """The vocabulary by falling frequency, ties in its own order."""
    return sorted(VOCABULARY, key=lambda code: -sum(code in row for row in known(lists)))


def small_blocks(rows: int):
    return mock.patch.object(code_rows, "_BLOCK_ROWS", rows)


# ---- the wide table


@settings(max_examples=examples(150))
@given(tables, tables, st.sampled_from(KINDS), st.integers(0, 12), st.integers(1, 5), st.integers(0, 6))
def test_a_wide_table_has_flags_of_the_most_frequent_codes_and_the_number_of_codes(test, lists, kind, cut, block, most):
    with small_blocks(block):
        view = code_view(codes_schema(), codes_table(test), most)
        assert view is not None
        wide = view.wide(codes_table(lists, kind, cut))
    chosen = [code for code in VOCABULARY if code in ranked(test)[:most]]
    rows = known(lists)
    assert wide.column_names == [*(f"dx: {code}" for code in chosen), NUMBER]
    for code in chosen:
        assert wide[f"dx: {code}"].to_pylist() == [int(code in row) for row in rows]
    assert wide[NUMBER].to_pylist() == [min(len(row), 3) for row in rows]


def test_unknown_codes_null_lists_duplicates_and_codes_beyond_the_cap():
    view = code_view(codes_schema(), codes_table([]), 2)
    assert view is not None
    wide = view.wide(codes_table([["zzz", "I10"], None, [], ["E11", "E11", None, "E11"], list(VOCABULARY)]))
    assert wide.to_pydict() == {"dx: I10": [1, 0, 0, 0, 1], "dx: E11": [0, 0, 0, 1, 1], NUMBER: [1, 0, 0, 1, 3]}


def test_dictionary_typed_and_plain_lists_are_the_same():
    lists = [["I10", "zzz"], None, ["C50", "E11", "C50"]]
    view = code_view(codes_schema(), codes_table(lists))
    assert view is not None
    first, *others = (view.wide(codes_table(lists, kind)) for kind in KINDS)
    assert first["dx: C50"].to_pylist() == [0, 0, 1]
    assert all(other.equals(first) for other in others)


def test_what_lies_beneath_a_null_list_does_not_count():
    lists = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4], pa.int32()), pa.array(["I10", "E11", "I10", "J45"]), mask=pa.array([False, True, False])
    )
    view = code_view(codes_schema(), pa.table({"dx": lists}))
    assert view is not None
    wide = view.wide(pa.table({"dx": lists}))
    assert wide.select(["dx: I10", "dx: E11", "dx: J45"]).to_pylist() == [
        {"dx: I10": 1, "dx: E11": 0, "dx: J45": 0},
        {"dx: I10": 0, "dx: E11": 0, "dx: J45": 0},
        {"dx: I10": 0, "dx: E11": 0, "dx: J45": 1},
    ]


@pytest.mark.parametrize("column", [pa.nulls(2), pa.array([[], None], pa.list_(pa.null()))])
def test_a_column_in_which_no_row_has_a_code_may_have_no_type(column):
    view = code_view(codes_schema(), pa.table({"dx": column}))
    assert view is not None
    wide = view.wide(pa.table({"dx": column}))
    assert wide.num_columns == 6
    assert all(wide[name].to_pylist() == [0, 0] for name in wide.column_names)


def test_new_columns_stand_where_the_old_one_stood_and_others_are_kept():
    px = {"name": "px", "type": "codes", "vocabulary": ["a"]}
    schema = codes_schema([COLUMNS[0], DX, COLUMNS[3], px], unit="person", max_rows_per_unit=2)
    table = pa.table({"person": [7], "px": [["a"]], "smoker": [1], "dx": [["C50"]], "age": [30], "extra": ["x"]})
    view = code_view(schema, table, 1)
    assert view is not None
    assert view.schema.column_names() == ("age", "dx: C50", NUMBER, "smoker", "px: a", "px: number of codes")
    assert (view.schema.unit, view.schema.max_rows_per_unit) == ("person", 2)
    assert view.wide(table).to_pydict() == {
        "person": [7], "px: a": [1], "px: number of codes": [1], "smoker": [1], "dx: C50": [1], NUMBER: [1],
        "age": [30], "extra": ["x"],
    }  # fmt: skip


def test_the_schema_of_the_wide_table_names_types_and_bounds():
    view = code_view(codes_schema(), codes_table([]), 1)
    assert view is not None
    flag, number = view.schema.columns
    assert (flag.type, flag.missing) == ("binary", False)
    assert (number.type, number.bounds, number.integer, number.missing) == ("numeric", (0, 3), True, False)


def test_an_empty_vocabulary_leaves_the_number_alone():
    schema = codes_schema([{**DX, "vocabulary": []}])
    table = codes_table([["I10"], None])
    view = code_view(schema, table)
    assert view is not None
    assert view.wide(table).to_pydict() == {NUMBER: [0, 0]}
    assert code_distances(table, table, view) == {"dx": dict.fromkeys(("mae", "max_abs", "r", "pairs_mae", *REASONS))}


def test_a_schema_without_codes_columns_has_no_view():
    assert code_view(schema_of(), patients(5, 0)) is None


def test_memory_does_not_grow_with_rows_times_vocabulary():
    rows, codes, held = 20_000, 10_000, 20
    vocabulary = [f"C{code}" for code in range(codes)]
    places = np.random.default_rng(0).integers(0, codes, rows * held, np.int32)
    entries = pa.DictionaryArray.from_arrays(pa.array(places), pa.array(vocabulary))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, rows * held + 1, held), pa.int32()), entries)
    table, schema = pa.table({"dx": lists}), codes_schema([{**DX, "vocabulary": vocabulary}])
    tracemalloc.start()
    try:
        view = code_view(schema, table)
        assert view is not None
        assert view.wide(table).num_columns == 201
        code_distances(table, table, view)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < rows * codes / 4  # bytes


# ---- what does not fit


@pytest.mark.parametrize("name", ["dx: I10", "dx: C50", NUMBER])
def test_a_column_with_the_name_of_a_codes_flag_is_an_error_whether_or_not_the_code_is_chosen(name):
    table = codes_table([["I10"]])
    with pytest.raises(InputError, match=f"schema, column {name}"):
        code_view(codes_schema([DX, {"name": name, "type": "binary"}]), table, 1)
    with pytest.raises(InputError, match=f"schema, column {name}"):
        code_view(codes_schema(unit=name), table, 1)
    view = code_view(codes_schema(), table, 1)
    assert view is not None
    with pytest.raises(InputError, match=f"the training table, column {name}"):
        view.wide(table.append_column(name, pa.array([1])), "the training table")


def test_flags_of_two_codes_columns_with_one_name_are_an_error():
    columns = [{**DX, "vocabulary": ["b: c"]}, {**DX, "name": "dx: b", "vocabulary": ["c"]}]
    with pytest.raises(InputError, match="column dx: b: c"):
        code_view(codes_schema(columns), codes_table([]))


def test_nested_cells_are_an_error_that_does_not_quote_them():
    with pytest.raises(InputError, match=r"not lists of single values \(the real test table, column dx\)") as caught:
        code_view(codes_schema(), pa.table({"dx": [[["SENTINEL"]]]}))
    assert "SENTINEL" not in str(caught.value)


def test_cells_are_read_as_training_reads_them():
    """Text with a separator, a single code, blanks around one, a number."""
    schema = codes_schema([{**DX, "vocabulary": ["a", "b", "7"]}])
    view = code_view(schema, pa.table({"dx": ["a|b", " b ", "x"]}))
    assert view is not None
    assert view.wide(pa.table({"dx": ["a|b", " b ", "x"]}))[NUMBER].to_pylist() == [2, 1, 0]
    assert view.wide(pa.table({"dx": [7, 8]}))["dx: 7"].to_pylist() == [1, 0]


def test_a_table_without_the_codes_column_is_an_error():
    view = code_view(codes_schema(), codes_table([]))
    assert view is not None
    with pytest.raises(InputError, match="the synthetic table, column dx"):
        view.wide(pa.table({"age": [1]}), "the synthetic table")


@pytest.mark.parametrize("vocabulary", [None, "private", "codes.txt"])
def test_a_vocabulary_that_is_not_known_is_an_error_that_names_the_column(vocabulary):
    with pytest.raises(InputError, match="column dx"):
        code_view(codes_schema([{**DX, "vocabulary": vocabulary}]), codes_table([["I10"]]))


# ---- evaluation end to end

SICK = codes_schema([COLUMNS[0], DX, LABEL], label="died")


def sick(rows: int, seed: int) -> pa.Table:
    """Patients who die if and only if they have N18; nothing else says so."""
    rng = np.random.default_rng(seed)
    held = rng.random((rows, len(VOCABULARY))) < (0.6, 0.3, 0.2, 0.4, 0.05)
    lists = [[code for code, has in zip(VOCABULARY, row, strict=True) if has] for row in held]
    return pa.table({"age": rng.integers(20, 95, rows), "dx": lists, "died": held[:, 3].astype(int)})


def torn(table: pa.Table) -> pa.Table:
    """Every row with the codes of the row before it."""
    lists = table["dx"].to_pylist()
    return table.set_column(1, "dx", pa.array([lists[-1], *lists[:-1]]))


SYNTHETIC, TEST, TRAIN = sick(300, 1), sick(250, 2), sick(350, 3)


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return evaluate(SYNTHETIC, TEST, SICK, train=TRAIN, privacy=PRIVACY)


def test_classifiers_and_distances_see_the_codes(metrics):
    columns = ["age", *(f"dx: {code}" for code in VOCABULARY), NUMBER, "died"]
    assert list(metrics.marginal_tv) == columns
    assert metrics.tstr["gb"]["auroc"] > 0.99
    assert metrics.trtr["gb"]["auroc"] > 0.99
    assert list(metrics.baseline["marginal_tv"]) == list(metrics.floor["marginal_tv"]) == columns


def test_codes_of_other_rows_teach_nothing_though_every_prevalence_is_right(metrics):
    worse = evaluate(torn(SYNTHETIC), TEST, SICK, privacy=PRIVACY)
    assert worse.tstr is not None
    assert worse.tstr["gb"]["auroc"] < 0.65
    own, torn_apart = metrics.codes["dx"], worse.codes["dx"]
    assert torn_apart == own, "also pairs of codes: whole sets moved"
    assert worse.correlation_mae > 1.3 * metrics.correlation_mae


def test_metrics_hold_the_prevalence_errors_of_synthetic_and_of_real_training_rows(metrics):
    values = json.loads(metrics.to_json())
    view = code_view(SICK, TEST)
    assert view is not None
    assert values["codes"] == code_distances(SYNTHETIC, TEST, view)
    assert values["floor"]["codes"] == code_distances(TRAIN, TEST, view)
    assert values["baseline"]["codes"]["dx"].keys() == values["codes"]["dx"].keys()
    assert 0 < values["codes"]["dx"]["max_abs"] < 0.1
    assert 0.9 < values["codes"]["dx"]["r"] < 1


def test_copies_are_rows_with_the_same_codes():
    schema = codes_schema([COLUMNS[0], DX])
    rows = evaluate(TRAIN, TEST, schema, train=TRAIN, privacy=PRIVACY).copies
    others = evaluate(torn(TRAIN), TEST, schema, train=TRAIN, privacy=PRIVACY).copies
    assert rows is not None
    assert others is not None
    assert rows["synthetic"] == 1
    assert others["synthetic"] < 0.5


def test_figures_are_those_of_the_wide_table_written_by_hand():
    def by_hand(table: pa.Table) -> pa.Table:
        lists = table["dx"].to_pylist()
        flags = {f"dx: {code}": [int(code in row) for row in lists] for code in VOCABULARY}
        return pa.table({"age": table["age"], **flags, NUMBER: [min(3, len(row)) for row in lists]})

    flags = [{"name": f"dx: {code}", "type": "binary"} for code in VOCABULARY]
    number = {"name": NUMBER, "type": "numeric", "bounds": [0, 3], "integer": True}
    found, expected = (
        evaluate(change(SYNTHETIC), change(TEST), codes_schema([COLUMNS[0], *columns]), privacy=PRIVACY).to_dict()
        for change, columns in ((lambda table: table, [DX]), (by_hand, [*flags, number]))
    )
    of_codes = ("codes", "notes", "verdict", "outside_schema")
    assert [found.pop(key) for key in of_codes] != [expected.pop(key) for key in of_codes]
    assert found == expected


def test_without_a_training_table_codes_are_judged_and_the_floor_is_null():
    found = evaluate(SYNTHETIC, TEST, codes_schema([COLUMNS[0], DX]), privacy=PRIVACY)
    assert found.floor is None
    assert found.codes["dx"]["r"] is not None


@pytest.mark.parametrize(("most", "words"), [(200, "look at all:"), (2, "look at the 2 most frequent among")])
def test_the_notes_say_how_many_codes_the_figures_look_at(most, words):
    view = code_view(SICK, TEST, most)
    assert view is not None
    note, _ = view.notes()
    assert note.startswith(f"Of the 5 codes of column dx, the figures {words}")


def test_the_notes_of_the_view_are_among_those_of_the_metrics(metrics):
    assert sum(note.startswith("Of the 5 codes of column dx") for note in metrics.notes) == 1


def test_a_schema_without_codes_has_no_figures_for_them():
    found = evaluate(patients(60, 1), patients(60, 2), schema_of(label=None), train=patients(60, 3), privacy=PRIVACY)
    assert found.codes == {}
    assert found.floor is not None
    assert "codes" not in found.floor


# ---- the report


def test_the_report_compares_prevalences_and_shows_codes_as_columns(metrics, tmp_path):
    path = write_report(tmp_path, metrics, SYNTHETIC, TEST, SICK, PRIVACY, "card")
    shown = Page(path.read_text())
    own, real, other = (source["dx"] for source in (metrics.codes, metrics.floor["codes"], metrics.baseline["codes"]))
    assert (
        "Codes of dx: largest prevalence error share of rows with a code, against real test rows "
        f"{own['max_abs']:.1%} {real['max_abs']:.1%} {other['max_abs']:.1%} 0.0%"
    ) in shown.text
    assert f"with real test rows {own['r']:.3f} {real['r']:.3f} {other['r']:.3f} 1.000" in shown.text
    assert "With the codes of dx it " in shown.text
    assert "300 synthetic rows of 3 columns" in shown.text
    assert "Of the 5 codes of column dx" in shown.text
    assert any("dx: N18" in alt for _, alt in shown.images)


def test_the_report_of_a_table_without_codes_does_not_speak_of_them():
    assert "Codes of" not in page(train=None, schema=schema_of(label=None)).text


@pytest.mark.parametrize(
    ("lists", "said"),
    [([["a", "b"], []], "100.0% of the codes"), ([["a", "x", "y;z"]], "WARNING: only 33.3% of"), ([[]], None)],
)
def test_notes_say_how_many_real_codes_the_vocabulary_knows(lists, said):
    schema = Schema.from_dict({"unit": None, "columns": [{"name": "dx", "type": "codes", "vocabulary": ["a", "b"]}]})
    view = code_view(schema, pa.table({"dx": pa.array(lists, pa.list_(pa.string()))}))
    notes = [note for note in view.notes() if "in the vocabulary of dx" in note]
    assert [note.startswith(said) for note in notes] == ([True] if said else [])
