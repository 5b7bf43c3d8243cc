"""Public lists of codes, from text files beside a schema."""

from pathlib import Path
from typing import Any

from dpcgan_fast.data.cells import MISSING_TEXTS
from dpcgan_fast.errors import InputError

_LARGEST = 1 << 28  # bytes: ten million codes of a usual length


def checked_vocabulary(codes: tuple[str, ...], separator: str | None = None) -> None:
    """Raises ValueError unless all codes differ and each is a text that a cell can hold, among others or alone."""
    if len(set(codes)) != len(codes):
        raise ValueError("a code stands twice in the vocabulary")
    for number, code in enumerate(codes, start=1):
        if code != code.strip():
            raise ValueError(f"code {number} of the vocabulary has blanks around it")
        if code.lower() in MISSING_TEXTS:
            kind = "means a missing cell: rename it in the data and in the list" if code else "is empty"
            raise ValueError(f"code {number} of the vocabulary {kind}")
        if separator is not None and separator in code:
            raise ValueError('a code of the vocabulary holds the separator; set "separator" to null or another text')


def with_vocabularies(values: Any, folder: Path) -> Any:
    """A parsed schema with the codes in place of the path of each vocabulary; what is no such schema stays as it is.

    folder: where relative paths begin
    Raises InputError if a file cannot be read or holds no code.
    """
    columns = values.get("columns") if isinstance(values, dict) else None
    if not isinstance(columns, list):
        return values
    return {**values, "columns": [_with_vocabulary(column, folder) for column in columns]}


def _with_vocabulary(column: Any, folder: Path) -> Any:
    named = column.get("vocabulary") if isinstance(column, dict) else None
    if not isinstance(named, str) or named == "private":
        return column
    path = folder / named
    return {**column, "vocabulary": list(read_vocabulary(path, f"{path}, column {column.get('name')}"))}


def read_vocabulary(path: Path, where: str) -> tuple[str, ...]:
    """Codes of a UTF-8 text file, one a line, in its order; blank lines and blanks around a code do not count.

    where: what to name in an error
    Raises InputError if the file cannot be read, holds no code, or a code twice.
    """
    how = "Give the path of a UTF-8 text file with a code a line."
    try:
        if not path.is_file():
            raise InputError("The vocabulary is not a file", where, how)
        if path.stat().st_size > _LARGEST:
            raise InputError("The vocabulary is longer than any list of codes", where, how)
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("The vocabulary cannot be read", f"{where}: {type(error).__name__}", how) from None
    codes = tuple(code for line in lines if (code := line.strip()))
    if not codes:
        raise InputError("The vocabulary holds no code", where, how)
    try:
        checked_vocabulary(codes)
    except ValueError as error:
        raise InputError(f"The vocabulary does not fit: {error}", where, "Correct the list.") from None
    return codes
