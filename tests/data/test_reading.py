"""Tables are read as they are, and whatever is wrong with them is said without quoting them."""

import gzip
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpcgan_fast.data.reading import read_table
from dpcgan_fast.errors import InputError
from tests.data.refusals import SENTINEL, file, refusal

# ---- what is read


def test_wanted_columns_come_in_the_order_asked_for_and_the_others_are_named(tmp_path):
    table, others = read_table(file(tmp_path, "a,b,c,d\n1,2,3,4\n5,,7,8\n"), ["c", "b"])
    assert table.to_pydict() == {"c": ["3", "7"], "b": ["2", ""]}
    assert others == ("a", "d")


def test_parquet_keeps_its_types_whatever_its_ending(tmp_path):
    table = pa.table({"num.co": [1, None], "num": [0.5, 1.5], "s": ["x", None]})
    pq.write_table(table, tmp_path / "table.bin")
    read, others = read_table(tmp_path / "table.bin", ["num", "num.co"])
    assert read.equals(table.select(["num", "num.co"]))
    assert others == ("s",)


def test_a_folder_of_files_is_one_table_in_the_order_of_their_names(tmp_path):
    file(tmp_path, "a,b\n3,x\n", "part-2.csv")
    file(tmp_path, gzip.compress(b"b;a\ny;1\nz;2\n"), "part-1.csv.gz")
    file(tmp_path, "", "_SUCCESS")
    file(tmp_path, "", ".part-2.csv.crc")
    table, others = read_table(tmp_path, ["b", "a"])
    assert table.to_pydict() == {"b": ["y", "z", "x"], "a": ["1", "2", "3"]}
    assert others == ()


def test_parquet_files_of_a_folder_may_differ_in_width_and_dictionaries(tmp_path):
    pq.write_table(
        pa.table({"a": pa.array([1], pa.int32()), "b": pa.array(["x"]).dictionary_encode()}), tmp_path / "1.pq"
    )
    pq.write_table(pa.table({"a": pa.array([None, 2.5]), "b": pa.array(["y", None])}), tmp_path / "2.parquet")
    table, _ = read_table(tmp_path, ["a", "b"])
    assert table.to_pydict() == {"a": [1.0, None, 2.5], "b": ["x", "y", None]}


def test_a_data_frame_is_read_even_with_cells_of_mixed_types():
    frame = pd.DataFrame({"a": [1, "x", None], "b": [1.5, None, 2.0], 3: [True, False, True]})
    table, others = read_table(frame, ["b", "a"])
    assert table["a"].to_pylist() == ["1", "x", None]
    assert table["b"].to_pylist() == [1.5, None, 2.0]
    assert others == ("3",)


def test_cells_of_an_object_column_become_text_one_by_one():
    import datetime

    cells = [1, 2.0, 0.1, True, np.bool_(False), np.int8(3), np.float32(0.5), "1.0", b"x", datetime.date(2020, 1, 2)]
    series = pd.Series([*cells, None, float("nan"), pd.NA, pd.NaT], dtype=object)
    column, _ = read_table(pd.DataFrame({"a": series}), ["a"])
    texts = ["1", "2", "0.1", "true", "false", "3", "0.5", "1.0", "x", "2020-01-02"]
    assert column["a"].to_pylist() == [*texts, None, None, None, None]


@pytest.mark.parametrize("dtype", ["int8", "UInt16", "float32", "Float64", "bool", "boolean"])
def test_columns_of_numbers_and_flags_keep_their_type(dtype):
    kind = read_table(pd.DataFrame({"a": pd.Series([0, 1], dtype=dtype)}), ["a"])[0].schema.types[0]
    assert pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def test_arrow_tables_and_other_arrow_streams_are_read():
    table = pa.table({"a": [1], "b": ["x"]})

    class Stream:
        def __arrow_c_stream__(self, requested_schema=None):
            return table.__arrow_c_stream__(requested_schema)

    assert read_table(table, ["b"])[0].to_pydict() == {"b": ["x"]}
    assert read_table(Stream(), ["b"])[0].to_pydict() == {"b": ["x"]}


def run_python(code, *arguments):
    """Output of a Python program in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pandas_is_not_needed():
    code = """
import sys
class NoPandas:
    def find_spec(self, name, *_):
        if name == "pandas":
            raise ImportError(name)
sys.meta_path.insert(0, NoPandas())
import pyarrow
from dpcgan_fast.data import datasets, draft, encoding, reading, units, writing
print(reading.read_table(pyarrow.table({"a": [1]}), ["a"])[0].num_rows, "pandas" in sys.modules)
"""
    assert run_python(code) == "1 False\n"


# ---- what is refused


@pytest.mark.parametrize(
    ("names", "asks"),
    [
        (["age", "died"], "Did you mean age? "),
        (["weight", "Ages"], "Did you mean Ages? "),
        (["patient", "died"], ""),
        (["agę\n", "died"], ""),
    ],
)
def test_a_column_that_is_not_there_is_asked_for_by_the_name_most_like_it(names, asks):
    """Others are not named: of a file without a header they would be cells."""
    table = pa.table({name: [1] for name in names})
    with pytest.raises(InputError) as caught:
        read_table(table, ["Age"])
    assert caught.value.how == f"{asks}Correct the name in the schema, or take the column out of it."
    with pytest.raises(InputError) as caught:
        read_table(table, ["Age", *names])
    assert "Did you mean" not in caught.value.how, "it is another column of the schema"


def test_a_missing_file_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.csv")


def test_a_folder_without_data_files_is_refused(tmp_path):
    file(tmp_path, "", "_SUCCESS")
    assert "holds no data file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["README.md", "inner", "table.npz"])
def test_a_folder_with_anything_else_is_refused_by_name(tmp_path, name):
    file(tmp_path, "a,b\n1,2\n", "1.csv")
    if name == "inner":
        (tmp_path / name).mkdir()
    else:
        file(tmp_path, SENTINEL, name)
    assert f"neither CSV nor Parquet ({tmp_path / name})" in refusal(tmp_path)


@pytest.mark.parametrize("ending", ["csv.gz", "parquet"])
def test_one_table_in_two_forms_is_refused_since_its_people_would_count_twice(tmp_path, ending):
    file(tmp_path, "a,b\n1,2\n", "table.csv")
    file(tmp_path, "not looked into", f"table.{ending}")
    assert f"has the name of table.csv but for the ending, and may hold the same rows ({tmp_path}/table." in refusal(
        tmp_path
    )


def test_a_folder_of_both_kinds_of_files_is_refused(tmp_path):
    file(tmp_path, "a,b\n1,2\n", "1.csv")
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "2.parquet")
    assert f"holds both CSV and Parquet files ({tmp_path})" in refusal(tmp_path)


def test_files_of_a_folder_with_other_columns_are_refused_by_name_alone(tmp_path):
    file(tmp_path, "a,b\n1,2\n", "1.csv")
    file(tmp_path, f"a,{SENTINEL}\n1,2\n", "2.csv")
    assert f"A file has other columns than 1.csv ({tmp_path / '2.csv'})" in refusal(tmp_path)


def test_a_column_that_is_text_in_one_file_and_numbers_in_another_is_refused_by_name(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [1], "b": [SENTINEL]}), tmp_path / "2.parquet")
    assert f"different types in the files of a folder ({tmp_path}, column b)" in refusal(tmp_path)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("source", [pd.DataFrame({"a": [], "b": []}), pa.table({"a": pa.array([]), "b": pa.array([])})])
def test_tables_in_memory_without_rows_are_refused(source):
    assert "no rows" in refusal(source)


def test_repeated_names_are_refused_by_position(tmp_path):
    """The names themselves may be a person's row, in a file without a header."""
    assert "columns 2 and 4" in refusal(file(tmp_path, f"a,{SENTINEL},b,{SENTINEL}\n1,2,3,4\n"))
    frame = pd.DataFrame([[1, 2]], columns=["a", "a"])
    assert "columns 1 and 2" in refusal(frame)
    assert "columns 1 and 2" in refusal(pa.Table.from_arrays([pa.array([1])] * 2, ["a", "a"]))


def test_a_wanted_column_that_the_data_lack_is_named(tmp_path):
    path = file(tmp_path, f"a,{SENTINEL}\n1,2\n")
    assert "column b)" in refusal(path)
    assert "column b and 2 more)" in refusal(path, ["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.csv.gz", SENTINEL.encode()),
        ("table.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 1000, mtime=0)[:-20]),
        ("table.csv.gz", gzip.compress(os.urandom(100_000))[:-20000]),
        ("table.csv.bz2", SENTINEL.encode()),
        ("table.parquet", SENTINEL.encode()),
        ("table.parquet", b"PAR1" + SENTINEL.encode() * 10 + b"PAR1"),
        ("table.csv", b"PAR1"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content):
    refusal(file(tmp_path, content, name))


def test_parquet_with_flipped_bits_is_refused_or_read_but_never_crashes(tmp_path):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"a": [SENTINEL + str(i) for i in range(300)], "b": list(range(300))}), path)
    code = """
import resource, sys
from pathlib import Path
from dpcgan_fast.data.reading import read_table
from dpcgan_fast.errors import DpcganError
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
path = Path(sys.argv[1])
whole = path.read_bytes()
for position in range(4, len(whole), 37):
    damaged = bytearray(whole)
    damaged[position] ^= 1 << (position % 8)
    path.write_bytes(damaged)
    try:
        read_table(path, ["a", "b"])
    except DpcganError as error:
        print(error)
"""
    said = run_python(code, str(path))
    assert "cannot be read" in said
    assert SENTINEL not in said


@pytest.mark.parametrize("cell", [[SENTINEL], {SENTINEL: 1}, (SENTINEL,), np.array([1, 2])])
def test_a_cell_of_a_data_frame_that_is_not_a_single_value_is_refused_with_its_row(cell):
    assert "column b, row 2" in refusal(pd.DataFrame({"a": [1, 2], "b": pd.Series(["x", cell], dtype=object)}))


def test_data_of_another_type_are_refused():
    assert "list" in refusal([SENTINEL])


def test_files_whose_whole_numbers_do_not_fit_into_the_floats_of_others_are_refused(tmp_path):
    pq.write_table(pa.table({"a": pa.array([2**60 + 1])}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": pa.array([0.5])}), tmp_path / "2.parquet")
    assert "Write the files again" in refusal(tmp_path, ["a"])
