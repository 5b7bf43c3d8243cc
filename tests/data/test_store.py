"""A store that is damaged, edited or made for another schema is refused, and nothing of it is taken."""

import json
import random
import shutil

import pytest

from dpcgan_fast.data.records import read_records
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.store import read_store, sealed, unsealed
from dpcgan_fast.errors import InputError
from tests.data.preparations import ROWS, VOCABULARY, groups_of, make_schema, prepare, records_of, write_shards

SCHEMA = make_schema()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with groups_of(1 << 9):
        prepare(write_shards(folder / "table", [ROWS[:20], ROWS[20:]], "csv"), SCHEMA, folder / "store")
    return folder / "store"


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "store")


def refusal(store, schema=SCHEMA):
    """The text of the error that reading ends in; it names the store and quotes no cell."""
    with pytest.raises(InputError) as caught:
        read_store(store, schema)
    text = str(caught.value)
    assert "\n" not in text
    assert str(store) in text
    assert caught.value.__cause__ is None
    return text


# ---- damage


def test_every_flipped_bit_is_noticed(store):
    """In every file and every seventh byte of it, and then the store is read as before."""
    random.seed(3)
    paths = sorted(path for path in store.iterdir() if path.stat().st_size)
    assert len(paths) > 5
    for path in paths:
        content = path.read_bytes()
        for place in range(0, len(content), 7):
            damaged = bytearray(content)
            damaged[place] ^= 1 << random.randrange(8)
            path.write_bytes(damaged)
            refusal(store)
        path.write_bytes(content)
    assert len(records_of(read_store(store, SCHEMA), SCHEMA)) == 7


def test_files_cut_short_or_long_are_noticed(store):
    for path in sorted(store.iterdir()):
        content = path.read_bytes()
        for damaged in (b"", content[: len(content) // 2], content[:-1], content + b"0"):
            if damaged != content:
                path.write_bytes(damaged)
                refusal(store)
        path.write_bytes(content)


def test_missing_files_and_folders_in_their_place_are_noticed(store):
    for path in sorted(store.iterdir()):
        content = path.read_bytes()
        path.unlink()
        if path.name != "store.json":  # without it the folder is no store
            refusal(store)
        path.mkdir()
        refusal(store)
        path.rmdir()
        path.write_bytes(content)


def test_without_its_first_file_a_folder_is_no_store(store):
    (store / "store.json").unlink()
    with pytest.raises(InputError, match="neither CSV nor Parquet"):
        read_records(store, SCHEMA, str(store))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", "3", '"x"', "[[1, 2]]", "[" * 100_000, '{"version": 1', "\ufeff{}", '{"version": 9}'],
)
def test_store_json_that_is_something_else(store, text):
    (store / "store.json").write_text(text, encoding="utf-8")
    refusal(store)


def test_an_edited_number_is_noticed(store):
    text = (store / "store.json").read_text()
    (store / "store.json").write_text(text.replace('"rows": 7', '"rows": 6'))
    assert "cannot be read" in refusal(store)


@pytest.mark.parametrize("name", ["version", "facts", "rows", "parts", "files"])
@pytest.mark.parametrize("value", [None, -1, 10**30, "x", [], {}, [None], {"unit": "patient"}, 0.5])
def test_values_of_another_kind_are_refused_even_with_the_right_checksum(store, name, value):
    facts = unsealed((store / "store.json").read_text())
    (store / "store.json").write_text(sealed({**facts, name: value}))
    if (name, value) not in (("files", {}),):  # nothing to compare is no fault of its own
        refusal(store)


def test_a_seal_holds_what_json_can_say():
    facts = {"a": [1, None, {"b": "é\u2028"}], "c": -(2**60)}
    assert unsealed(sealed(facts)) == facts
    for text in (sealed(facts).replace("-1", "-2"), json.dumps(facts)):
        with pytest.raises((ValueError, KeyError)):
            unsealed(text)


def test_another_version_says_so(store):
    facts = unsealed((store / "store.json").read_text())
    (store / "store.json").write_text(sealed({**facts, "version": 2}))
    assert "of another version" in refusal(store)


# ---- another schema


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        (make_schema(vocabulary=VOCABULARY[:3]), "the codes differ (PATH, column dx)"),
        (make_schema(vocabulary=VOCABULARY[::-1]), "the codes differ (PATH, column dx)"),
        (make_schema(vocabulary="private"), "the codes differ (PATH, column dx)"),
        (make_schema(most=3), "the codes differ (PATH, column dx)"),
        (make_schema(unit=None), '"unit" differs (PATH)'),
        (make_schema(unit="case"), '"unit" differs (PATH)'),
        (make_schema(max_rows_per_unit=4), '"max_rows_per_unit" differs (PATH)'),
    ],
)
def test_a_store_of_another_schema_is_refused_by_name(whole, schema, what):
    assert what.replace("PATH", str(whole)) in refusal(whole, schema)


def test_a_column_that_the_store_lacks_is_named(tmp_path):
    source = write_shards(tmp_path / "table", [ROWS], "csv")
    prepare(source, make_schema(codes=["dx"], plain=["died"]), tmp_path / "store")
    assert "lacks a column of the schema" in refusal(tmp_path / "store", make_schema(codes=["dx"]))
    assert "column age" in refusal(tmp_path / "store", make_schema(codes=["dx"]))
    assert "column rx" in refusal(tmp_path / "store", make_schema(plain=["died"]))


def test_a_schema_may_name_less_and_change_what_the_store_does_not_depend_on(whole):
    fewer = make_schema(codes=["rx"], plain=["age"])
    wanted = {record[0]: (record[2], record[4]) for record in records_of(read_store(whole, SCHEMA), SCHEMA)}
    found = {record[0]: record[1:] for record in records_of(read_store(whole, fewer), fewer)}
    assert found == wanted
    values = SCHEMA.model_dump(mode="json")
    values["columns"][1]["bounds"] = [0, 50]
    labelled = SCHEMA.from_dict({**values, "label": "died", "n_units": 100})
    assert records_of(read_store(whole, labelled), labelled) == records_of(read_store(whole, SCHEMA), SCHEMA)


def test_a_store_that_is_not_finished_is_no_table(tmp_path):
    (tmp_path / "progress.json").write_text("{}")
    schema = Schema.from_dict({"unit": None, "columns": [{"name": "x", "type": "binary"}]})
    with pytest.raises(InputError, match=r"store is not finished .* Run the same `dpcgan prepare` again"):
        read_records(tmp_path, schema, "data")
