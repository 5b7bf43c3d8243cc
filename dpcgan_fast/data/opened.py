"""A table whose column names are known and whose cells are still unread."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from dpcgan_fast.errors import InputError

UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError)  # what parsers raise for a damaged file


@dataclass(frozen=True)
class Opened:
    """A source of rows. The functions take names of columns that it has.

    where:   what to call it in an error
    names:   its columns, in order
    read:    the whole table, of these columns in that order
    types:   the types of these columns, without dictionaries
    batches: the rows in order, in tables of `types` and of bounded size
    size:    about how many bytes these columns take in memory
    """

    where: str
    names: tuple[str, ...]
    read: Callable[[list[str]], pa.Table]
    types: Callable[[list[str]], pa.Schema]
    batches: Callable[[list[str]], Iterator[pa.Table]]
    size: Callable[[list[str]], int]


def opened_table(where: str, names: tuple[str, ...], read: Callable[[list[str]], pa.Table]) -> Opened:
    """A table that is in memory: its only batch is the whole, and it takes no more."""

    def batches(wanted: list[str]) -> Iterator[pa.Table]:
        yield without_dictionaries(read(wanted))

    return Opened(where, names, read, lambda wanted: plain_types(read(wanted).schema), batches, lambda _: 0)


def plain_types(schema: pa.Schema) -> pa.Schema:
    """The types of the values of dictionaries in place of these, and no metadata."""
    fields = [(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema]
    return pa.schema(fields)


def without_dictionaries(table: pa.Table) -> pa.Table:
    """Plain columns, without metadata, so that those of two files fit."""
    return table.cast(plain_types(table.schema))


def refuse_repeated_names(opened: Opened) -> None:
    """Says which columns by position: the first line of a file without a header is a person's row."""
    first: dict[str, int] = {}
    for position, name in enumerate(opened.names, start=1):
        if name in first:
            where = f"{opened.where}, columns {first[name]} and {position}"
            raise InputError("Two columns have the same name", where, "Give each column a name of its own.")
        first[name] = position
