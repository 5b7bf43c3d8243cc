"""Tables of made-up people, for the audit of a run: a few who are always there, and one who may be."""

import secrets
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from dpcgan_fast.data.dates import with_days
from dpcgan_fast.data.schema import PRIVATE, Column, Schema
from dpcgan_fast.synthesis.api import DPCGAN, load_sampler
from dpcgan_fast.synthesis.run_folder import RunFolder

BASE_ROWS, _MOST_ROWS = 64, 4  # of the table beside a canary, but for names that it lacks; and of a canary


@dataclass(frozen=True)
class MadeUpTables:
    """Records of people who are always there, and of canaries.

    base:     each a unit of its own. They have every name that a canary can have in a column whose list is private:
              a new name would be told by the threshold of such a list, whose delta no likelihood ratio shows
    canaries: of all canaries, `rows` of each
    unit:     name of the unit's column, None if every record is a unit
    """

    base: pa.Table
    canaries: pa.Table
    rows: int
    unit: str | None

    @classmethod
    def drawn(cls, model: DPCGAN, canaries: int, base_rows: int, where: str) -> "MadeUpTables":
        """Of the run's own synthetic records, which its claim covers: so they have the run's categories and codes.

        model: of a finished run; where: for errors
        """
        schema = model.schema
        sampler = replace(load_sampler(RunFolder.open(model.folder), model.settings, torch.device("cpu")), visits=None)
        unit = None if schema.merges_rows else schema.unit
        rows = 1 if unit is None else min(schema.max_rows_per_unit, _MOST_ROWS)
        randomness = torch.Generator().manual_seed(secrets.randbits(63))
        drawn = pa.concat_tables(sampler.batches(base_rows + canaries * rows, {}, randomness))
        drawn = with_days(drawn, schema.as_records(), where)
        base = with_every_name(drawn.slice(0, base_rows), schema.as_records(), sampler.codec.schema)
        return cls(base, drawn.slice(base_rows), rows, unit)

    def of(self, canary: int, included: bool) -> tuple[pa.Table, np.ndarray | None]:
        """The table with a canary or without it, and the unit of each record."""
        rows = self.canaries.slice(canary * self.rows, self.rows if included else 0)
        table = pa.concat_tables([self.base, rows]).combine_chunks()
        if self.unit is None:
            return table, None
        ids = np.minimum(np.arange(table.num_rows), self.base.num_rows)
        return table.append_column(self.unit, pa.array(ids)), ids


def with_every_name(table: pa.Table, schema: Schema, released: Schema) -> pa.Table:
    """The table and some rows of it again, which have all released names of the columns whose lists are private.

    schema: of records, as the user wrote it; released: the same with what was released
    """
    known = {column.name: column for column in released.columns}
    names = {column.name: _cells(column, known[column.name]) for column in schema.columns}
    names = {name: cells for name, cells in names.items() if cells}
    more = max((len(cells) for cells in names.values()), default=0)
    again = table.take(pa.array(np.arange(more) % table.num_rows))
    for name, cells in names.items():
        field = table.schema.field(name)
        own = pa.array([cells[row % len(cells)] for row in range(more)], field.type)
        again = again.set_column(again.column_names.index(name), field, own)
    return pa.concat_tables([table, again])


def _cells(column: Column, released: Column) -> list[str] | list[list[str]]:
    """Cells that have all released names between them; none if the column's list is public."""
    if column.categories == PRIVATE:
        return list(released.categories or ())
    if column.vocabulary == PRIVATE:
        codes = list(released.vocabulary or ())
        return [codes[first : first + column.max_codes] for first in range(0, len(codes), column.max_codes)]
    return []
