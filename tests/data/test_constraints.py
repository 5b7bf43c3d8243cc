"""What a schema states between columns and between codes holds in every row that is drawn."""

import pyarrow as pa
import pytest

from dpcgan_fast.data.constraints import satisfied, with_implied_codes
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.synthesis import DPCGAN
from tests.tables import FEW_STEPS, make_table, schema_values

LOW = {"name": "low", "type": "numeric", "bounds": [0, 200]}
HIGH = {"name": "high", "type": "numeric", "bounds": [0, 200]}
CODES = {"name": "dx", "type": "codes", "vocabulary": ["a", "b", "c", "d"]}


def schema(*constraints, columns=(LOW, HIGH, CODES)):
    return Schema.from_dict({"unit": None, "columns": list(columns), "constraints": list(constraints)})


@pytest.mark.parametrize(
    ("kind", "holds"), [("less", [True, False, False, True]), ("at_most", [True, True, False, True])]
)
def test_orders_hold_or_not_and_missing_cells_are_in_any(kind, holds):
    table = pa.table({"low": [1.0, 2.0, 3.0, None], "high": [2.0, 2.0, 2.0, 0.0]})
    assert satisfied(table, schema({"kind": kind, "columns": ["low", "high"]})).to_pylist() == holds


def test_implied_codes_are_added_along_chains():
    rules = [
        {"kind": "implies", "columns": ["dx"], "code": code, "implied": implied} for code, implied in ("cd", "ab", "bc")
    ]
    lists = [["a"], ["b"], ["c"], ["d"], []]
    table = pa.table({"dx": pa.array(lists, pa.list_(pa.string()))})
    closed = with_implied_codes(table, schema(*rules))
    assert closed["dx"].to_pylist() == [["a", "b", "c", "d"], ["b", "c", "d"], ["c", "d"], ["d"], []]
    assert closed.schema == table.schema


def test_a_code_that_a_private_vocabulary_did_not_find_implies_nothing():
    own = schema({"kind": "implies", "columns": ["dx"], "code": "a", "implied": "rare"})
    table = pa.table({"dx": pa.array([["a"]], pa.list_(pa.string()))})
    assert with_implied_codes(table, own)["dx"].to_pylist() == [["a"]]


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"kind": "less", "columns": ["low"]}, 'constraint "less" needs two numeric or two date columns'),
        ({"kind": "less", "columns": ["low", "low"]}, 'constraint "less" needs two'),
        ({"kind": "less", "columns": ["low", "dx"]}, 'constraint "less" needs two'),
        ({"kind": "at_most", "columns": ["low", "nothing"]}, "names a column 'nothing' that is not there"),
        ({"kind": "implies", "columns": ["low"], "code": "a", "implied": "b"}, '"implies" needs one column of codes'),
        ({"kind": "implies", "columns": ["dx"], "code": "a"}, '"implies" needs one column of codes'),
        ({"kind": "more", "columns": ["low", "high"]}, "constraints"),
    ],
)
def test_a_constraint_that_says_nothing_is_refused(constraint, message):
    with pytest.raises(InputError, match=message):
        schema(constraint)


def test_a_rule_on_a_code_that_a_public_vocabulary_lacks_is_refused_before_training(tmp_path):
    own = schema({"kind": "implies", "columns": ["dx"], "code": "a", "implied": "nothing"})
    with pytest.raises(InputError, match=r"names a code that the vocabulary lacks \(schema, column dx\)"):
        DPCGAN(own, 3.0, 1e-4, device="cpu", **FEW_STEPS).fit(pa.table({"low": [1.0]}), tmp_path / "run")


def test_every_row_that_is_drawn_keeps_to_the_constraints(tmp_path):
    columns = schema_values()["columns"]
    columns[1] = {**columns[1], "bounds": [0, 110]}
    table = make_table().append_column("dx", pa.array([["a", "b"] if i % 3 else ["c"] for i in range(400)]))
    own = Schema.from_dict({
        **schema_values(columns=[*columns, CODES]),
        "constraints": [
            {"kind": "less", "columns": ["age", "sodium"]},
            {"kind": "implies", "columns": ["dx"], "code": "a", "implied": "d"},
        ],
    })  # fmt: skip
    model = DPCGAN(own, 3.0, 1e-4, device="cpu", **FEW_STEPS).fit(table, tmp_path / "run")
    drawn = model.sample(3000)
    assert drawn.num_rows == 3000
    assert all(
        age < sodium
        for age, sodium in zip(*(drawn[n].to_pylist() for n in ("age", "sodium")), strict=True)
        if sodium is not None
    )
    assert all("d" in codes for codes in drawn["dx"].to_pylist() if "a" in codes)
    assert any("a" in codes for codes in drawn["dx"].to_pylist())
