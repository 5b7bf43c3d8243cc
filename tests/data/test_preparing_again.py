"""What stands at the output path: work that was damaged meanwhile is never gone on with, and finished work is kept."""

import json

import pytest

from dpcgan_fast.cli import run
from dpcgan_fast.data.preparing import is_prepared
from dpcgan_fast.data.spools import bucket_places
from dpcgan_fast.errors import InputError, StoppedError
from tests.data.preparations import ROWS, VOCABULARY, content, groups_of, make_schema, prepare, write_shards

SMALL = 1 << 7
SCHEMA = make_schema(vocabulary="private")


def stopped_after(source, out, calls):
    """A store that was stopped after so many groups of rows and buckets; its files."""
    left = iter([False] * (calls - 1) + [True])
    with pytest.raises(StoppedError):
        prepare(source, SCHEMA, out, lambda: next(left))
    return content(out)


@pytest.fixture
def source(tmp_path):
    return write_shards(tmp_path / "table", [ROWS[:14], ROWS[14:27], ROWS[27:]], "csv")


# ---- damaged work


@pytest.mark.parametrize("damage", ["a byte", "the end", "all of it"])
@pytest.mark.parametrize("kind", ["spool-00001", "columns-00000.arrow", "codes-0.starts", "codes-1.positions"])
def test_a_file_that_is_damaged_between_two_calls_is_found_and_the_next_call_starts_again(
    tmp_path, source, kind, damage
):
    out = tmp_path / "store"
    with groups_of(SMALL):
        prepare(source, SCHEMA, tmp_path / "whole")
        begun = stopped_after(source, out, 9 if kind.startswith(("codes", "columns")) else 4)[kind]
        middle = len(begun) // 2
        if damage == "all of it":
            (out / kind).unlink()
        else:
            flipped = begun[:middle] + bytes([begun[middle] ^ 0x10]) + begun[middle + 1 :]
            (out / kind).write_bytes(flipped if damage == "a byte" else begun[:-1])
        with pytest.raises(InputError, match=rf"is damaged: .*{kind}\). Run the same command again"):
            prepare(source, SCHEMA, out)
        assert not out.exists()
        prepare(source, SCHEMA, out)
    assert content(out) == content(tmp_path / "whole")


@pytest.mark.parametrize("bucket", range(3))
def test_every_byte_of_a_bucket_of_a_spool_is_covered(tmp_path, source, bucket):
    """Also those that Arrow would read as another valid cell, and where the buckets begin."""
    with groups_of(SMALL):
        begun = stopped_after(source, tmp_path / "begun", 4)
        buckets = json.loads(begun["progress.json"])["buckets"]
        first, end = bucket_places(tmp_path / "begun" / "spool-00001", buckets).tolist()[bucket : bucket + 2]
        last = len(begun["spool-00001"]) - 1
        for place in {first, (first + end) // 2, end - 5, end - 1, last - 8 * (bucket + 1), last}:
            out = tmp_path / f"store-{place}"
            spool = bytearray(stopped_after(source, out, 4)["spool-00001"])
            spool[place] ^= 1
            (out / "spool-00001").write_bytes(spool)
            with pytest.raises(InputError, match=r"a checksum does not match \(.*spool-00001\)"):
                prepare(source, SCHEMA, out)


# ---- finished work


def arguments(tmp_path, schema=SCHEMA):
    (tmp_path / "schema.json").write_text(schema.to_json())
    return ["prepare", *(str(tmp_path / name) for name in ("table",)), "--schema", str(tmp_path / "schema.json"),
            "--out", str(tmp_path / "store")]  # fmt: skip


def test_the_same_command_again_says_that_nothing_is_left_to_do(tmp_path, source, capsys):
    schema = make_schema(vocabulary=VOCABULARY)
    assert run(arguments(tmp_path, schema)) == 0
    before = content(tmp_path / "store")
    capsys.readouterr()
    assert run(arguments(tmp_path, schema)) == 0
    said = capsys.readouterr()
    assert "Nothing is left to do" in said.err
    assert said.out == f"store: {tmp_path / 'store'}\n"
    assert content(tmp_path / "store") == before
    assert is_prepared(source, schema, tmp_path / "store")


@pytest.mark.parametrize("change", ["schema", "columns", "table", "store"])
def test_a_store_of_anything_else_is_no_reason_to_do_nothing(tmp_path, source, capsys, change):
    assert run(arguments(tmp_path)) == 0
    schema = SCHEMA
    if change == "schema":
        schema = make_schema(vocabulary="private", most=3)
    elif change == "columns":
        schema = make_schema(vocabulary="private", plain=["died"])
    elif change == "table":
        with (source / "part-2.csv").open("a") as file:
            file.write("p1,1,,a,r1\r\n")
    else:
        (tmp_path / "store" / "store.json").write_text("{}")
    assert run(arguments(tmp_path, schema)) == 2
    assert "There is a store at the output path already" in capsys.readouterr().err


def test_a_store_is_no_table_to_prepare(tmp_path, source, capsys):
    assert run(arguments(tmp_path)) == 0
    again = [str(tmp_path / "store") if word == str(source) else word for word in arguments(tmp_path)]
    again[again.index("--out") + 1] = str(tmp_path / "again")
    assert run(again) == 2
    assert "The data are in a store already" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
