"""Evaluation and baselines read cells as training reads them, and count them in the public cells of the schema."""

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data import public_cells
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.errors import InputError
from tests.evaluate.tables import COLUMNS, patients, schema_of


def numeric(**more: object) -> Column:
    return Column.model_validate({"name": "x", "type": "numeric", "bounds": (0, 10), **more})


def test_a_numeric_column_has_twenty_bins_of_equal_width_between_its_bounds():
    edges = public_cells.bin_edges(numeric())
    assert np.allclose(edges, np.linspace(0, 10, 21))


@pytest.mark.parametrize("bounds", [(0, 1), (0, 9), (0, 19), (0, 20), (0, 110), (-7.3, 41.9), (1, 1000)])
def test_every_bin_of_an_integer_column_has_a_whole_number_and_none_is_on_an_edge(bounds):
    edges = public_cells.bin_edges(numeric(bounds=bounds, integer=True))
    whole = np.arange(np.ceil(bounds[0]), np.floor(bounds[1]) + 1)
    counts, _ = np.histogram(whole, edges)
    assert counts.sum() == len(whole)
    assert counts.min() >= 1
    assert len(edges) - 1 == min(20, len(whole))
    assert not np.isin(edges, whole).any()


def test_values_out_of_bounds_and_missing_ones_have_cells():
    table = pa.table({"x": [-5.0, 0.0, 4.99, 10.0, 99.0, None]})
    assert public_cells.cells(table, numeric(missing=True)).tolist() == [0, 0, 9, 19, 19, 20]


def test_a_missing_cell_where_the_schema_has_none_reads_as_in_training():
    column_list = [
        {"name": "x", "type": "numeric", "bounds": [0, 10]},
        {"name": "flag", "type": "binary"},
        {"name": "kind", "type": "categorical", "categories": ["a", "b"]},
        {"name": "first", "type": "categorical", "categories": ["a", "b"], "unknown": "first"},
    ]
    schema = Schema.from_dict({"unit": None, "columns": column_list})
    table = pa.table({"x": [None, 2.5], "flag": [None, 1], "kind": [None, "zzz"], "first": [None, "zzz"]})
    codec = RecordCodec(schema)
    trained = codec.decode(codec.encode(table).records)
    read = public_cells.typed_table(table, schema, "the real test table")
    assert read.to_pylist() == trained.to_pylist()


def test_a_label_outside_its_classes_is_missing_and_never_another_class():
    schema = schema_of({"name": "kind", "type": "categorical", "categories": ["a", "b"], "unknown": "first"})
    label = public_cells.label_of(schema)
    assert label is not None
    assert public_cells.codes(pa.table({"kind": ["a", "b", "zzz", None]}), label).tolist() == [0, 1, 2, 2]


def test_reading_a_table_twice_changes_nothing():
    schema = schema_of()
    once = public_cells.typed_table(patients(50, 0), schema, "the real test table")
    assert public_cells.typed_table(once, schema, "the real test table").equals(once)


def test_a_cell_that_does_not_fit_is_an_error_that_names_table_column_and_row_but_not_the_cell():
    table = patients(3, 0).set_column(0, "age", pa.array(["31", "SENTINEL", "70"]))
    with pytest.raises(InputError, match=r"the synthetic table, column age, row 2") as caught:
        public_cells.typed_table(table, schema_of(), "the synthetic table")
    assert "SENTINEL" not in str(caught.value)


def test_a_table_without_a_column_of_the_schema_is_an_error():
    with pytest.raises(InputError, match="column bmi"):
        public_cells.typed_table(patients(3, 0).drop_columns(["bmi"]), schema_of(), "the real test table")


@pytest.mark.parametrize("fact", [{"bounds": "private"}, {"bounds": None}])
def test_bounds_that_are_not_known_are_an_error_that_names_the_column(fact):
    schema = schema_of(columns=[{**COLUMNS[0], **fact}])
    with pytest.raises(InputError, match="column age"):
        public_cells.modelled_columns(schema)


def test_a_sample_is_the_same_each_time_and_keeps_the_order():
    table = pa.table({"x": np.arange(1000)})
    first, second = (public_cells.sample_of(table, 100) for _ in range(2))
    assert first.equals(second)
    assert (np.diff(first["x"].to_numpy()) > 0).all()
    assert public_cells.sample_of(table, 1000) is table
