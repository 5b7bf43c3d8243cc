"""What a cell means: numbers, flags and categories out of columns of any type.

Text and typed columns read alike, so that a table gives the same records from a CSV file as from a Parquet file.
"""

import contextlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpcgan_fast.errors import InputError

compute: Any = pc  # its functions are made when it is imported, unseen by type checkers

# Texts that stand for a missing cell, in any case and with blanks around them; so do nulls and floating-point NaN.
MISSING_TEXTS = frozenset({"", "na", "n/a", "nan", "null"})
_LONGEST_MISSING = max(map(len, MISSING_TEXTS))

MOST_EXACT = 2.0**53  # whole numbers from here on have no float64 of their own
MISSING = -1
UNKNOWN = -2

# Further words in columns of numbers and flags. A "?" is how many public data sets mark a missing cell; a category list
# may contain it, a column of numbers cannot.
_NUMBER_WORDS: Mapping[str, float] = {"true": 1.0, "false": 0.0, "?": np.nan}
_FLAG_WORDS: Mapping[str, str] = {"true": "1", "false": "0"}  # and what they match in a list of categories
_INTEGRAL = re.compile(r"([+-]?[0-9]+)\.0+")
_NOT_A_NUMBER = 'Correct the cell, leave it empty if the value is missing, or make the column "categorical".'


def numeric_values(column: pa.ChunkedArray | pa.Array, where: str) -> np.ndarray:
    """Numbers of a column, float64 (N,): NaN where a cell is missing, infinite where the cell says so or overflows.

    Takes numbers, texts of numbers, and booleans as 0 and 1. `where` (file and column) is for the error.
    Raises InputError, which names the row, if a cell is text but no number, or if the column's type is no number.
    """
    return _checked_numbers(column, where, "A cell is not a number")


def binary_values(column: pa.ChunkedArray | pa.Array, where: str) -> np.ndarray:
    """Flags of a column, int64 (N,): 0, 1, or MISSING.

    Takes what `numeric_values` takes; a number other than 0 and 1 is a value out of bounds and becomes the nearest of
    the two (1 from one half on).
    """
    numbers = _checked_numbers(column, where, "A cell is not 0, 1, true or false")
    return np.where(np.isnan(numbers), MISSING, np.nan_to_num(numbers) >= 0.5).astype(np.int64)


def category_codes(
    column: pa.ChunkedArray | pa.Array, categories: Sequence[str], where: str = "categorical column"
) -> np.ndarray:
    """Index of each cell's category in the list, int64 (N,); MISSING if it has none, UNKNOWN if it is not in the list.

    Blanks around a text do not count. Whole numbers match with and without decimals ("1" and "1.0"); booleans, and the
    words true and false in any case, match "0" and "1" as well as "false" and "true". A listed category is never
    missing, even if it reads "NA".
    Raises InputError if the column is of a nested type.
    """
    exact = {category: i for i, category in reversed(list(enumerate(categories)))}
    loose = {_canonical(category): i for i, category in reversed(list(enumerate(categories)))}
    folded = {text.lower(): i for text, i in loose.items()}

    def code(value: object) -> int:
        text = cell_text(value)
        index = exact.get(text, loose.get(_canonical(text)))
        if index is not None:
            return index
        word = text.strip().lower()
        if word in _FLAG_WORDS:
            return folded.get(word, folded.get(_FLAG_WORDS[word], UNKNOWN))
        return MISSING if word in MISSING_TEXTS else UNKNOWN

    values, codes = distinct(column, where)
    of_value = np.array([*(code(value) for value in values), MISSING], dtype=np.int64)
    return of_value[codes]  # a null has code -1, the last entry


def cell_text(value: object) -> str:
    """A cell that is present as text that means the same: whole numbers without decimals, booleans as true and false.

    It depends on the value alone, so that a cell's text is the same whatever type the other cells give its column.
    """
    if isinstance(value, str):  # most are
        return value
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        return _number_text(float(value))
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def canonical_text(value: object) -> str:
    """The one name of a value: 1, 1.0, "1.0" and " 1 " are all "1"."""
    return _canonical(cell_text(value))


def category_names(
    column: pa.ChunkedArray | pa.Array, where: str, reserved: Collection[str] = ()
) -> tuple[list[str], np.ndarray]:
    """Canonical names in a column, each once, and each cell's index into them, int64 (N,); MISSING where there is none.

    reserved: names that stand for something else, whose cells have none
    Raises InputError if the column is of a nested type.
    """
    values, codes = distinct(column, where)
    index: dict[str, int] = {}

    def code(name: str) -> int:
        return MISSING if name in reserved or name.lower() in MISSING_TEXTS else index.setdefault(name, len(index))

    of_value = [code(canonical_text(value)) for value in values]
    return list(index), np.array([*of_value, MISSING], dtype=np.int64)[codes]


def refuse_rounded(values: Iterable[object], what: str, where: str) -> None:
    """Raises InputError if names are floating-point numbers too large to tell neighbours apart.

    One missing cell can make a column of whole numbers one of floats, and would then fuse the names of others.
    """
    if any(isinstance(value, float) and abs(value) >= MOST_EXACT for value in values):
        how = "Read them as whole numbers or as text."
        raise InputError(f"{what} are floating-point numbers that may stand for several", where, how)


def distinct(column: pa.ChunkedArray | pa.Array, where: str) -> tuple[list[object], np.ndarray]:
    """Distinct values of a column in the order in which they appear, and each cell's index into them, int64 (N,).

    A null has index -1. Values that are neither text, number nor boolean come as text.
    Raises InputError if the column is of a nested type.
    """
    values, codes = _encoded(column, where)
    return values.to_pylist(), codes


def numbered(column: pa.ChunkedArray | pa.Array, where: str) -> np.ndarray:
    """Each cell's index into the distinct values of a column, int64 (N,), as from `distinct`, without the values."""
    return _encoded(column, where)[1]


def _encoded(column: pa.ChunkedArray | pa.Array, where: str) -> tuple[pa.Array, np.ndarray]:
    try:
        encoded = cast(pa.ChunkedArray, plain(column).dictionary_encode()).unify_dictionaries()
        if encoded.num_chunks == 0:
            return pa.array([], pa.string()), np.empty(0, np.int64)
        values = encoded.chunk(0).dictionary
        kind = values.type
        if not (_is_text(kind) or _is_number(kind)) or pa.types.is_decimal(kind):
            values = values.cast(pa.string())
    except pa.ArrowException:
        raise InputError("The column's cells are not single values", where, "Leave the column out.") from None
    indices = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return values, np.concatenate(indices).astype(np.int64)


def bytes_of(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all texts, uint8, and where each text begins, and the end, int64 (N + 1,)."""
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return np.empty(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    starts = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return np.frombuffer(data, np.uint8)[starts[0] : starts[-1]], starts - starts[0]


def written_one_way(column: pa.ChunkedArray) -> bool:
    """Whether values of a column that differ also mean different things: whole numbers, or texts without blanks and
    decimals, with which a text may be another way to write a value; texts need not be looked at one by one then.
    """
    return pa.types.is_integer(column.type) or (
        pa.types.is_string(column.type) and all(map(_plain_ascii, column.chunks))
    )


def _plain_ascii(texts: pa.StringArray) -> bool:
    """Whether all characters are printable ASCII, none a blank or a point; other characters may be blanks too."""
    text, _ = bytes_of(texts)
    return not ((text <= ord(" ")) | (text == ord(".")) | (text > ord("~"))).any()


def parse_numbers(column: pa.ChunkedArray | pa.Array, words: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a column, float64 (N,), NaN where missing; and which cells are neither missing nor numbers, bool (N,).

    words: lower-case texts that stand for a number, beside the texts of numbers themselves
    """
    column = plain(column)
    count = len(column)
    if pa.types.is_null(column.type):
        return np.full(count, np.nan), np.zeros(count, bool)
    if _is_number(column.type):
        return column.cast(pa.float64(), safe=False).to_numpy(), np.zeros(count, bool)
    if _is_text(column.type):
        return _parse_texts(column, words)
    return np.full(count, np.nan), np.ones(count, bool)


def is_missing(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Which cells are missing, bool (N,): nulls, NaN, and texts that say so."""
    column = plain(column)
    missing = column.is_null(nan_is_null=True).to_numpy()
    if pa.types.is_string(column.type):
        rows = np.flatnonzero(np.concatenate([np.empty(0, bool), *map(_may_say_missing, column.chunks)]))
        missing[rows] |= _says_missing(column.take(pa.array(rows))).fill_null(False).to_numpy()
    elif _is_text(column.type):
        missing |= _says_missing(column).fill_null(False).to_numpy()
    return missing


def _may_say_missing(texts: pa.StringArray) -> np.ndarray:
    """Which texts are as short as the longest that says so, or may have blanks around them, bool (N,)."""
    text, starts = bytes_of(texts)
    if not len(text):
        return np.ones(len(texts), bool)
    blank = (text <= ord(" ")) | (text > ord("~"))
    first, last = starts[:-1], starts[1:] - 1
    return (last - first < _LONGEST_MISSING) | blank[np.minimum(first, len(text) - 1)] | blank[last]


def _says_missing(column: pa.ChunkedArray) -> pa.ChunkedArray:
    folded = compute.utf8_lower(compute.utf8_trim_whitespace(column))
    return compute.is_in(folded, value_set=pa.array(sorted(MISSING_TEXTS), column.type))


def _parse_texts(column: pa.ChunkedArray, words: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    trimmed = compute.utf8_trim_whitespace(column)
    cells = compute.if_else(_says_missing(trimmed), pa.scalar(None, column.type), trimmed)
    # What a cell means is `_number`'s to say. Arrow is quicker, but gives up on all if one is no number to it, and then
    # its forms of NaN, such as "nan(ab)", would be read in another way.
    with contextlib.suppress(pa.ArrowInvalid):
        numbers = cells.cast(pa.float64()).to_numpy()
        if np.isnan(numbers).sum() == cells.null_count:
            return numbers, np.zeros(len(column), bool)
    values, codes = distinct(cells, "")
    parsed = [_number(cast(str, value), words) for value in values]
    is_number = np.array([*(number is not None for number in parsed), True])
    numbers = np.array([*(np.nan if number is None else number for number in parsed), np.nan])
    return numbers[codes], ~is_number[codes]


def _number(text: str, words: Mapping[str, float]) -> float | None:
    """The number that a text stands for, or None; an overflow is infinite."""
    known = words.get(text.lower())
    if known is not None or "_" in text:  # float() takes 1_000, which no table means as a number
        return known
    try:
        return float(text)
    except ValueError:
        return None


def _checked_numbers(column: pa.ChunkedArray | pa.Array, where: str, what: str) -> np.ndarray:
    kind = plain(column).type
    if not (_is_text(kind) or _is_number(kind) or pa.types.is_null(kind)):
        how = 'Convert the column to numbers, or make it "categorical".'
        raise InputError("The column's type is not a number", where, how)
    numbers, wrong = parse_numbers(column, _NUMBER_WORDS)
    if wrong.any():
        raise InputError(what, f"{where}, row {int(wrong.argmax()) + 1}", _NOT_A_NUMBER)
    return numbers


def plain(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    """A chunked column without dictionary encoding, views or extension types."""
    chunked = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    if isinstance(chunked.type, pa.BaseExtensionType):
        chunked = chunked.cast(chunked.type.storage_type)
    if pa.types.is_dictionary(chunked.type):
        chunked = chunked.cast(chunked.type.value_type)
    if pa.types.is_string_view(chunked.type):
        try:
            chunked = chunked.cast(pa.large_string())
        except pa.ArrowNotImplementedError:  # pyarrow 17
            chunked = pa.chunked_array([pa.array(chunked.to_pylist(), pa.large_string())])
    return chunked


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )


def _number_text(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)


def _canonical(text: str) -> str:
    stripped = text.strip()
    integral = _INTEGRAL.fullmatch(stripped)
    return integral[1] if integral else stripped
