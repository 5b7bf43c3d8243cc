"""Public lists of codes, in the schema or beside it."""

import json

import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError


def values(vocabulary, **changes):
    return {"unit": None, "columns": [{"name": "dx", "type": "codes", "vocabulary": vocabulary, **changes}]}


def test_a_path_begins_at_the_schema_and_the_codes_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "codes.txt").write_text("\ufeffa\n\n b \nd e\n")
    (tmp_path / "schema.json").write_text(json.dumps(values("codes.txt")))
    monkeypatch.chdir("/")
    schema = Schema.from_json(tmp_path / "schema.json")
    assert schema.columns[0].vocabulary == ("a", "b", "d e")
    assert Schema.from_text(schema.to_json()) == schema


def test_a_list_may_stand_in_the_schema_and_codes_may_be_numbers():
    assert Schema.from_dict(values([4019, "25000"])).columns[0].vocabulary == ("4019", "25000")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"vocabulary is not a file \(.*codes.txt, column dx\)"),
        (b"", "holds no code"),
        (b" \n\n", "holds no code"),
        (b"a\nb\na\n", "a code stands twice"),
        (b"a\nNA\n", "means a missing cell"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_list_of_codes_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "codes.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Schema.from_dict(values("codes.txt"), folder=tmp_path)


@pytest.mark.parametrize(
    ("vocabulary", "changes", "message"),
    [
        (["a", "a"], {}, "a code stands twice in the vocabulary"),
        (["a "], {}, "blanks around it"),
        (["a|b"], {}, "holds the separator"),
        (["a"], {"separator": ""}, "separator"),
        (["a"], {"max_codes": 0}, "max_codes"),
    ],
)
def test_a_list_that_cells_cannot_hold_is_refused(vocabulary, changes, message):
    with pytest.raises(InputError, match=message):
        Schema.from_dict(values(vocabulary, **changes))


def test_another_separator_lets_a_code_hold_the_usual_one():
    assert Schema.from_dict(values(["a|b"], separator=None)).columns[0].vocabulary == ("a|b",)


def test_a_vocabulary_must_be_filled_in():
    with pytest.raises(InputError, match=r"codes are still to be filled in \(schema, column dx, vocabulary\)"):
        Schema.from_dict(values(None)).require_complete()
    Schema.from_dict(values("private")).require_complete()
