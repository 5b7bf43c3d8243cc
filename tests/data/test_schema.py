import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError

SMALL = {
    "unit": None,
    "n_units": 100,
    "label": "died",
    "columns": [
        {"name": "age", "type": "numeric", "bounds": [0, 110], "integer": True},
        {"name": "sex", "type": "categorical", "categories": ["F", "M"]},
        {"name": "died", "type": "binary"},
    ],
}


def with_column(**changes):
    columns = [
        {**column, **changes} if column["name"] == changes.get("name") else column for column in SMALL["columns"]
    ]
    return {**SMALL, "columns": columns}


def test_json_text_gives_the_same_schema_back():
    schema = Schema.from_dict(SMALL)
    assert Schema.from_text(schema.to_json()) == schema


def test_a_range_of_signal_columns_is_written_out():
    signal = {"name": "eeg", "columns": ["X9", "...", "X12"], "bounds": [-1, 1]}
    schema = Schema.from_dict({"unit": None, "signals": [signal]})
    assert schema.column_names() == ("X9", "X10", "X11", "X12")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({**SMALL, "note": "x"}, "there is no such field"),
        ({**SMALL, "label": "height"}, r"not among the columns \(schema"),
        ({**SMALL, "label": "Died"}, r"the label 'Died' is not among the columns; did you mean 'died'\? \(schema"),
        ({**SMALL, "label": "age"}, "binary or categorical"),
        ({**SMALL, "unit": "age"}, "neither modelled nor sampled"),
        ({**SMALL, "max_rows_per_unit": 2}, "must be 1"),
        ({**SMALL, "columns": SMALL["columns"] * 2}, "named twice"),
        (with_column(name="age", bounds=[1, 1]), "two finite numbers"),
        (with_column(name="sex", unknown="missing"), "needs"),
        (with_column(name="sex", categories=["F", "F"]), "different names"),
        (with_column(name="sex", categories=[], unknown="first"), "at least one category"),
        (with_column(name="sex", categories=["F", "__other__"]), "must not be listed"),
        (with_column(name="died", rates=[0.5, 0.4]), "add up to 1"),
        ({"unit": None}, "at least one column"),
        ([], "an object is needed here"),
        ({**SMALL, "n_units": "many"}, r"a whole number is needed here \(schema, n_units\)"),
        ({**SMALL, "n_units": 0}, "the value must be greater than 0"),
        ({**SMALL, "label": 3}, "a text is needed here"),
        ({**SMALL, "constraints": [{"kind": "less"}]}, r"a field is missing \(schema, constraints.0.columns\)"),
        (with_column(name="age", bounds="priv"), r'a list is needed here, or "private" \(schema, column age bounds\)'),
        (with_column(name="age", bounds=[0]), 'a list of another length is needed here, or "private"'),
        (with_column(name="age", bounds=[0, "x"]), 'a number is needed here, or "private"'),
        (with_column(name="age", missing="perhaps"), "true or false is needed here"),
        (with_column(name="age", type="number"), "the value must be 'numeric', 'binary'"),
    ],
)
def test_a_schema_that_does_not_fit_is_refused_in_one_line(values, says):
    with pytest.raises(InputError, match=says) as caught:
        Schema.from_dict(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{", '{"unit": null, "unit": null}', "[" * 100_000, '{"n_units": ' + "9" * 5000 + "}"]
)
def test_text_that_is_no_schema_is_refused(text):
    with pytest.raises(InputError):
        Schema.from_text(text)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({**SMALL, "unit": "?"}, "unit"),
        (with_column(name="age", bounds=None), "column age"),
        (with_column(name="sex", categories=None), "column sex"),
    ],
)
def test_what_is_still_to_be_filled_in_is_named_with_both_remedies(values, names):
    with pytest.raises(InputError, match=names) as caught:
        Schema.from_dict(values).require_complete()
    assert names == "unit" or '"private"' in caught.value.how


def test_paid_facts_stand_in_the_place_of_private():
    schema = Schema.from_dict(
        {
            "unit": None,
            "columns": [
                {"name": "x", "type": "numeric", "bounds": "private", "scale": "rank", "quantiles": "private"},
                {"name": "c", "type": "categorical", "categories": "private"},
            ],
            "signals": [{"name": "s", "columns": ["s1"], "bounds": "private"}],
        }
    )
    released = schema.with_released({"x": (0.0, 1.0), "s": (-1.0, 1.0)}, {"c": ("a", "b")}, {}, {"x": (0.1, 0.2)})
    assert released.columns[0].bounds == (0.0, 1.0)
    assert released.columns[0].quantiles == (0.1, 0.2)
    assert released.columns[1].categories == ("a", "b")
    assert released.signals[0].bounds == (-1.0, 1.0)
    assert schema.columns[0].bounds == "private"


def test_a_schema_file_is_read(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(Schema.from_dict(SMALL).to_json())
    assert Schema.from_json(path) == Schema.from_dict(SMALL)


@pytest.mark.parametrize("content", [None, b"\xff", b"{"])
def test_a_schema_file_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"schema\.json"):
        Schema.from_json(path)


def test_an_error_names_the_column_and_codes_may_be_whole_numbers():
    column = {"name": "height", "type": "numeric", "bounds": [2, 1]}
    with pytest.raises(InputError, match="column height"):
        Schema.from_dict({"unit": None, "columns": [column]})
    sex = {"name": "sex", "type": "categorical", "categories": [1, 2]}
    schema = Schema.from_dict({"unit": None, "columns": [sex]})
    assert schema.columns[0].categories == ("1", "2")


@pytest.mark.parametrize(("changes", "message"), [
    ({"quantiles": [1, 2]}, "quantiles belong to"),
    ({"scale": "log", "quantiles": "private"}, "quantiles belong to"),
    ({"scale": "rank", "quantiles": []}, "quantiles must be"),
    ({"scale": "rank", "quantiles": [2, 1]}, "quantiles must be"),
    ({"scale": "rank", "quantiles": [1, 11]}, "quantiles must be"),
    ({"scale": "rank", "quantiles": [-1, 1]}, "quantiles must be"),
    ({"scale": "rank", "quantiles": [1, float("inf")], "bounds": None}, "quantiles must be"),
    ({"scale": "rank", "quantiles": [1, 2], "bounds": "private"}, "public quantiles need public bounds"),
    ({"scale": "rank", "quantiles": [1], "type": "date"}, "only a numeric column has a scale"),
])  # fmt: skip
def test_quantiles_that_do_not_fit_are_refused(changes, message):
    column = {"name": "x", "type": "numeric", "bounds": [0, 10], **changes}
    with pytest.raises(InputError, match=message):
        Schema.from_dict({"unit": None, "columns": [column]})


def test_quantiles_of_a_rank_scale_must_be_decided():
    column = {"name": "x", "type": "numeric", "bounds": [0, 10], "scale": "rank"}
    with pytest.raises(InputError, match=r"quantiles are still to be filled in \(schema, column x\)"):
        Schema.from_dict({"unit": None, "columns": [column]}).require_complete()
    for quantiles in ("private", [0, 0, 10]):
        Schema.from_dict({"unit": None, "columns": [{**column, "quantiles": quantiles}]}).require_complete()
