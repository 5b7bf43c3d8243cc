"""Every example schema is complete and reads the file that it is for."""

from pathlib import Path

import numpy as np
import pytest

from dpcgan_fast.data.datasets import data_folder, dataset_path
from dpcgan_fast.data.encoding import RecordCodec, table_columns
from dpcgan_fast.data.reading import read_table
from dpcgan_fast.data.records import read_records
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.units import UnitIndex, unit_ids

FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = {  # rows, width of a record, classes, units
    "epileptic_seizure": (11500, 178, 5, 11500),
    "cardio": (70000, 16, 2, 70000),
    "cervical_cancer": (858, None, 2, 858),
    "pbc2": (1945, None, 3, 312),
}


def test_every_example_has_a_test():
    assert {path.stem for path in FOLDER.glob("*.json")} == {*EXAMPLES, "mimic_iv_demo", "pbc2_visits"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_complete(name):
    schema = Schema.from_json(FOLDER / f"{name}.json")
    schema.require_complete()
    assert schema.n_units
    assert schema.label
    RecordCodec(schema)


@pytest.mark.skipif(data_folder() is None, reason="no folder with the public data sets")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_reads_its_file(name):
    rows, width, classes, units = EXAMPLES[name]
    schema = Schema.from_json(FOLDER / f"{name}.json")
    table, _ = read_table(dataset_path(name), table_columns(schema))
    codec = RecordCodec(schema)
    encoded = codec.encode(table)
    assert encoded.kept.all()
    assert encoded.records.shape == (rows, width or codec.width)
    assert codec.n_classes == classes
    assert np.isfinite(encoded.records).all()
    decoded = codec.decode(encoded.records, encoded.labels)
    assert decoded.column_names == list(schema.column_names())
    index = UnitIndex.from_ids(unit_ids(table, schema), encoded.kept, schema.max_rows_per_unit)
    assert index.n_units == units
    assert np.diff(index.starts).max() <= schema.max_rows_per_unit
    # Every listed category occurs, and none is unknown: the lists are the data sets' published codings.
    for column in schema.columns:
        if column.type == "categorical":
            found = {str(cell) for cell in decoded[column.name].to_pylist() if cell is not None}
            assert found == set(column.categories), column.name


def test_the_published_nets_record_is_178_samples_and_the_label():
    assert RecordCodec(Schema.from_json(FOLDER / "epileptic_seizure.json"), joint=True).width == 179


@pytest.mark.skipif(data_folder() is None, reason="no folder with the public data sets")
def test_the_visits_of_pbc2_are_a_record_a_patient():
    schema = Schema.from_json(FOLDER / "pbc2_visits.json")
    schema.require_complete()
    table, left = read_records(dataset_path("pbc2"), schema, "data")
    assert left == ("years", "status2")
    encoded = RecordCodec(schema.as_records()).encode(table)
    assert encoded.kept.all()
    assert len(encoded.dense) == 312
    assert max(table["number of visits"].to_pylist()) == 8


@pytest.mark.skipif(data_folder() is None, reason="no folder with the public data sets")
def test_the_events_of_the_mimic_demo_are_a_record_a_patient():
    schema = Schema.from_json(FOLDER / "mimic_iv_demo.json")
    schema.require_complete()
    table, left = read_records(dataset_path("mimic_iv_demo_diagnoses"), schema, "data")
    assert table.num_rows == 100
    assert left == ("hospitalization_id", "admission_dttm")
    assert len({code for codes in table["code"].to_pylist() for code in codes}) == 1595
