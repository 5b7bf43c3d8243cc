"""CSV text: which dialects are read, and which rows and headers are refused."""

import bz2
import gzip

import pyarrow as pa
import pytest

from dpcgan_fast.data import csv_reading
from dpcgan_fast.data.reading import column_names, read_table
from tests.data.refusals import SENTINEL, file, refusal


def test_csv_cells_stay_text(tmp_path):
    table, _ = read_table(file(tmp_path, "a,b\n007,true\n1.50,NA\n"), ["a", "b"])
    assert table.schema.types == [pa.string(), pa.string()]
    assert table["a"].to_pylist() == ["007", "1.50"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_is_read_from_the_header(tmp_path, separator):
    text = f'a{separator}"b;x,y\tz"\n1{separator}2\n'
    assert column_names(file(tmp_path, text)) == ("a", "b;x,y\tz")
    assert read_table(tmp_path / "table.csv", ["a"])[0].to_pydict() == {"a": ["1"]}


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_csv_is_read(tmp_path, ending, compress):
    path = file(tmp_path, compress(b"a,b\n1,2\n"), f"table.csv{ending}")
    assert read_table(path, ["b"])[0].to_pydict() == {"b": ["2"]}


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa,b\n1,2\n",
        "a,b\r\n1,2\r\n",
        "a,b\r1,2\r",
        "\n\na,b\n\n1,2\n\n",
        "a,b\n1,2",
        '"a","b"\n"1","2"\n',
    ],
    ids=["byte order mark", "CRLF", "CR", "blank lines", "no last line break", "quoted"],
)
def test_common_dialects_are_read(tmp_path, text):
    assert read_table(file(tmp_path, text), ["a", "b"])[0].to_pydict() == {"a": ["1"], "b": ["2"]}


def test_quoted_cells_hold_separators_line_breaks_and_quotes(tmp_path):
    text = 'a,"b\nb"\n"1,5","x\ny ""z"""\n'
    assert read_table(file(tmp_path, text), ["a", "b\nb"])[0].to_pydict() == {"a": ["1,5"], "b\nb": ['x\ny "z"']}


def test_a_row_longer_than_a_block_is_read(tmp_path):
    path = file(tmp_path, "a,b\n1," + "x" * (csv_reading._BLOCK_SIZES[0] * 2) + "\n")
    assert read_table(path, ["a"])[0].to_pydict() == {"a": ["1"]}


@pytest.mark.parametrize("text", ["", "\n\n", "  \n"])
def test_an_empty_file_is_refused(tmp_path, text):
    assert "empty" in refusal(file(tmp_path, text))


@pytest.mark.parametrize("text", ["a,b", "a,b\n", "a,b\r\n\r\n"])
def test_a_header_without_rows_is_refused(tmp_path, text):
    assert "no rows" in refusal(file(tmp_path, text))


@pytest.mark.parametrize(("row", "count"), [(f"{SENTINEL}", 1), (f"1,{SENTINEL},3", 3), (f'"1,{SENTINEL}', 1)])
def test_a_ragged_row_is_refused_with_its_number_and_both_counts(tmp_path, row, count):
    text = refusal(file(tmp_path, "a,b\n" + "1,2\n" * 5 + "\n" + f"{row}\n"))
    assert f"has {count} cells where the header has 2" in text
    assert "row 6" in text


def test_the_number_of_a_ragged_row_is_found_behind_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_reading, "_BLOCK_SIZES", (1000,))
    assert "row 5001" in refusal(file(tmp_path, "a,b\n" + "1,2\n" * 5000 + f"{SENTINEL}\n"))


def test_a_row_longer_than_the_largest_block_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_reading, "_BLOCK_SIZES", (100, 1000))
    assert "longer than" in refusal(file(tmp_path, f'a,b\n1,2\n1,"{SENTINEL}\n' + "1,2\n" * 5000))


OPEN_QUOTES = {
    "to the end": ('1,2,3\n4,5,"6\n7,8,{0}\n9,10,11\n', "c", 2),
    "of one row": ('1,2,"3\n4,5,{0}"\n7,8,9\n', "c", 1),
    "to the quote of another cell": ('1,2,"3\n4,5,6\n{0},8,"9"\n', "c", 1),
    "in a column between others": ('1,2,3\n4,"5,6\n7,"8,{0}\n', "b", 2),
    "in the first column": ('"1,2,3\n"4,5,{0}\n', "a", 1),
    "of lines that end otherwise": ('1,2,"3\r4,5,{0}\r', "c", 1),
}


@pytest.mark.parametrize("wanted", [["a", "b", "c"], ["b", "a"]])
@pytest.mark.parametrize(("text", "column", "row"), OPEN_QUOTES.values(), ids=OPEN_QUOTES)
def test_an_open_quote_that_swallows_rows_is_refused(tmp_path, text, column, row, wanted):
    """Rows of the right length are left, also where the column is not wanted."""
    said = refusal(file(tmp_path, "a,b,c\n" + text.format(SENTINEL)), wanted)
    assert said.startswith("A cell holds further rows of the table")
    assert f"column {column}, row {row})" in said


def test_an_open_quote_before_an_empty_cell_is_refused_between_tabs(tmp_path):
    said = refusal(file(tmp_path, f'a\tb\tc\n1\t"\t\n2\t{SENTINEL}\t3\n4\t5"\t6\n'))
    assert said.startswith("A cell holds further rows of the table")


def test_the_row_of_an_open_quote_is_found_behind_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_reading, "_BLOCK_SIZES", (1000,))
    text = "a,b\n" + "1,2\n" * 5000 + f'1,"{SENTINEL}\n1,2\n1,2"\n'
    assert "column b, row 5001)" in refusal(file(tmp_path, text))


def test_cells_of_several_lines_are_cells_where_the_lines_are_no_rows(tmp_path):
    path = file(tmp_path, 'a,b,note\n1,2,"seen, and\nsent home\n"\n3,4,"\n\n"\n5,"6\n",\n')
    assert read_table(path, ["a", "b"])[0].to_pydict() == {"a": ["1", "3", "5"], "b": ["2", "4", "6\n"]}
    assert read_table(path, ["note"])[0]["note"].to_pylist() == ["seen, and\nsent home\n", "\n\n", ""]
    path = file(tmp_path, 'note,a,b\n"seen, and\nsent home",1,2\n')
    assert read_table(path, ["note"])[0]["note"].to_pylist() == ["seen, and\nsent home"]


def test_bytes_that_are_not_utf8_are_refused_with_column_and_row(tmp_path):
    text = refusal(file(tmp_path, b"a,b\n1,2\n1,caf\xc3\xa9\n1," + SENTINEL.encode() + b"\xe9\n"))
    assert "column b, row 3" in text


def test_bytes_that_are_not_utf8_in_other_columns_do_no_harm(tmp_path):
    assert read_table(file(tmp_path, b"a,b\n1,\xe9\n"), ["a"])[0].num_rows == 1


@pytest.mark.parametrize("content", [b"a,b\xe9\n1,2\n", "a,b\n1,2\n".encode("utf-16"), b"a\0,b\n1,2\n"])
def test_a_header_that_is_not_utf8_text_is_refused(tmp_path, content):
    assert "UTF-8" in refusal(file(tmp_path, content))


def test_a_header_with_an_open_quote_is_refused(tmp_path):
    assert "quotation mark" in refusal(file(tmp_path, f'"a,b,{SENTINEL}\n1,2\n'))
