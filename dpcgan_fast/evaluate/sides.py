"""Tables as evaluation compares them."""

from dataclasses import dataclass

import pyarrow as pa

from dpcgan_fast.data.dates import with_days
from dpcgan_fast.data.public_cells import typed_table
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.visits import widened
from dpcgan_fast.evaluate.code_columns import CodeView, code_view


@dataclass(frozen=True)
class Side:
    """A table to compare, of records.

    narrow: dates as days, columns of codes as they are; wide: every cell read, and flags in place of codes
    """

    narrow: pa.Table
    wide: pa.Table


@dataclass(frozen=True)
class Comparison:
    """The real test rows, and how other tables are made comparable with them.

    given:  the run's schema, with released values in place of "private" ones
    narrow: schema of the narrow tables
    view:   which codes are looked at, by the test rows; None without columns of codes
    real:   the test rows
    """

    given: Schema
    narrow: Schema
    view: CodeView | None
    real: Side

    @classmethod
    def with_real(cls, test: pa.Table, schema: Schema) -> "Comparison":
        """Of test rows and the run's schema. Raises InputError if they do not fit each other."""
        records = schema.as_records()
        narrow = _narrow(test, schema, records, "the real test table")
        view = code_view(records, narrow)
        return cls(schema, records, view, _side(narrow, records, view, "the real test table"))

    @property
    def wide(self) -> Schema:
        """Schema of the wide tables."""
        return self.narrow if self.view is None else self.view.schema

    def side(self, table: pa.Table, where: str, *, synthetic: bool = False) -> Side:
        """Of a table of rows or of records. Raises InputError, which names `where`, if it does not fit the schema.

        synthetic: see `widened`
        """
        narrow = _narrow(table, self.given, self.narrow, where, synthetic=synthetic)
        return _side(narrow, self.narrow, self.view, where)


def _narrow(table: pa.Table, schema: Schema, records: Schema, where: str, *, synthetic: bool = False) -> pa.Table:
    return with_days(widened(table, schema, where, synthetic=synthetic), records, where)


def _side(narrow: pa.Table, records: Schema, view: CodeView | None, where: str) -> Side:
    if view is None:
        return Side(narrow, typed_table(narrow, records, where))
    return Side(narrow, typed_table(view.wide(narrow, where), view.schema, where))
