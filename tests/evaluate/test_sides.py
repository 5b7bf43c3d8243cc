"""Tables as evaluation compares them."""

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.sides import Comparison
from tests.evaluate.tables import patients, schema_of, with_column
from tests.tables import make_visits, visits_values


def test_visits_are_compared_as_records_and_records_as_they_are():
    """Baselines draw records, and a table of rows has visits."""
    comparison = Comparison.with_real(make_visits(), Schema.from_dict(visits_values()))
    records = comparison.real.narrow
    assert records.num_rows < make_visits().num_rows
    assert {"number of visits", "year[2]"} <= set(records.column_names)
    assert comparison.side(records, "baseline").wide.equals(comparison.real.wide)
    assert comparison.side(make_visits(), "the synthetic table", synthetic=True).wide.equals(comparison.real.wide)


def test_cells_of_text_are_read():
    table = patients(40, 0)
    comparison = Comparison.with_real(table, schema_of())
    texts = with_column(table, "age", [str(age) for age in table["age"].to_pylist()])
    assert comparison.side(texts, "the synthetic table").wide.equals(comparison.real.wide)
    assert comparison.wide == comparison.narrow
