"""A table as evaluation compares it."""

from dataclasses import dataclass

import pyarrow as pa

from dpcgan_fast.data.public_cells import typed_table
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.code_columns import CodeView


@dataclass(frozen=True)
class Side:
    """A table to compare. narrow: as it is, with columns of codes; wide: every cell read, and flags in their place."""

    narrow: pa.Table
    wide: pa.Table

    @classmethod
    def of(cls, table: pa.Table, schema: Schema, view: CodeView | None, where: str) -> "Side":
        """Of a table of records with dates as days. Raises InputError if it does not fit the schema."""
        if view is None:
            return cls(table, typed_table(table, schema, where))
        return cls(table, typed_table(view.wide(table, where), view.schema, where))
