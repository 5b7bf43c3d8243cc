"""Made-up tables of an audit: a canary has no name that the others lack, and is one unit."""

import numpy as np
import pyarrow as pa

from dpcgan_fast.auditing.made_up import MadeUpTables, with_every_name
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.synthesis import DPCGAN
from tests.synthesis.code_runs import quick_runs
from tests.tables import FEW_STEPS, make_table, schema_values

WARD = {"name": "ward", "type": "categorical", "categories": "private"}


def test_every_released_name_is_in_some_row():
    codes = {"name": "dx", "type": "codes", "vocabulary": "private", "max_codes": 4}
    sex = {"name": "sex", "type": "categorical", "categories": ["F", "M"]}
    open_lists = Schema.from_dict({"unit": None, "n_units": 100, "label": None, "columns": [WARD, codes, sex]})
    released = open_lists.with_released({}, {"ward": ("a", "b", "c")}, {"dx": tuple("abcdefghi")}, {})
    table = pa.table({"ward": ["a", "a"], "dx": [["a"], ["b", "c"]], "sex": ["F", "M"]})
    found = with_every_name(table, open_lists, released)
    assert found.schema == table.schema
    assert found.slice(0, 2).equals(table)
    assert found["ward"].to_pylist()[2:] == ["a", "b", "c"]
    assert found["dx"].to_pylist()[2:] == [list("abcd"), list("efgh"), ["i"]]
    assert found["sex"].to_pylist()[2:] == ["F", "M", "F"]
    public = open_lists.with_released({}, {"ward": ()}, {"dx": ()}, {})
    assert with_every_name(table, open_lists, public).equals(table)
    assert with_every_name(table, released, released).equals(table)


def test_a_canary_is_one_unit_of_several_rows_beside_units_of_one(tmp_path):
    values = schema_values(unit="patient", n_units=60, max_rows_per_unit=3)
    model = DPCGAN(Schema.from_dict(values), 20.0, 1e-3, device="cpu", **FEW_STEPS)
    with quick_runs():
        model.fit(make_table(patients=60), tmp_path / "run")
    tables = MadeUpTables.drawn(model, 5, 64, "audit")
    (base, base_ids), (whole, ids) = tables.of(2, included=False), tables.of(2, included=True)
    assert whole.num_rows == base.num_rows + 3
    assert np.bincount(ids).tolist() == [1] * base.num_rows + [3]
    assert whole["patient"].to_pylist() == ids.tolist()
    assert whole.slice(0, base.num_rows).equals(base)
    assert base_ids.tolist() == list(range(base.num_rows))
    assert not tables.of(1, included=True)[0].equals(whole)
