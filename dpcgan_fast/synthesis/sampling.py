"""Synthetic tables from a run, in batches, so that a table may be larger than memory."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from dpcgan_fast.baselines import FittedBaseline
from dpcgan_fast.data.cells import compute
from dpcgan_fast.data.constraints import satisfied, with_implied_codes
from dpcgan_fast.data.dates import parsed_date
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.schema import OTHER, Schema
from dpcgan_fast.data.visits import in_order, long, long_fields
from dpcgan_fast.errors import InputError
from dpcgan_fast.models import Networks, sample_records
from dpcgan_fast.synthesis.side_by_side import side_by_side
from dpcgan_fast.synthesis.statistics import drawn_table

BATCH_ROWS = 16384
# Of records of codes more, as long as they cannot have more codes than this together: within a block numbers of codes
# are even, and pairs of codes mended. Of 40,000 made-up patients at epsilon 100 a twelfth fewer implications were
# violated than in blocks of 16,384, in one run.
_CODE_ROWS, _BLOCK_CODES = 65536, 1 << 22
_BATCH_FLOATS = 1 << 23  # of wide records fewer are drawn at once
_SEEDS = 2**32  # that torch's generator of the CPU tells apart
_MOST_THREADS = 8  # more would make rows faster than a file takes them, and hold as many more blocks of them
_MOST_TRIES = 100  # batches after which rows that are asked for and too rare are given up
_RAREST = 10_000  # rows drawn for one that is asked for


@dataclass(frozen=True)
class Sampler:
    """Draws rows from a run's statistics, or else from its networks.

    codec:       of records
    rates:       (K,) class rates for rows whose label is not asked for
    conditional: whether the label is a condition of the networks; otherwise it is drawn with the record
    visits:      the schema of the rows that records are turned into, if it has visits
    statistics:  where rows are drawn from, None if they are drawn from the networks
    """

    networks: Networks
    codec: RecordCodec
    rates: torch.Tensor
    conditional: bool
    visits: Schema | None = None
    statistics: FittedBaseline | None = None

    @property
    def schema(self) -> Schema:
        """The schema of the rows."""
        return self.codec.schema if self.visits is None else self.visits

    @property
    def arrow_schema(self) -> pa.Schema:
        """Columns and types of the rows."""
        return self.codec.arrow_schema if self.visits is None else long_fields(self.visits)

    @property
    def _block_rows(self) -> int:
        """Rows that are drawn at once: a rule of schema and networks, on which the rows of a seed depend."""
        if self.statistics is None:
            width = self.codec.width
        elif codes := self.codec.schema.codes_columns():
            most = sum(column.max_codes for column in codes)
            return max(BATCH_ROWS, min(_CODE_ROWS, _BLOCK_CODES // most))
        else:
            width = len(self.codec.schema.column_names())
        return max(1, min(BATCH_ROWS, _BATCH_FLOATS // width))

    def batches(self, rows: int, where: Mapping[str, object], randomness: torch.Generator) -> Iterator[pa.Table]:
        """Tables with `rows` rows in all, or with visits the rows of so many people, numbered from 1.

        where: values that columns must have, by column name; numbers, or names of categories. A label that is a
               condition of the networks has it by construction, all else by rejection

        Raises InputError for a column or value that the schema does not have, or that differs between visits, or if
        such rows are so rare that drawing them would take for ever.
        """
        if rows < 1:
            raise InputError("The number of rows must be at least 1", f"n {rows}", "Give a positive whole number.")
        conditions = self._checked(where)
        label = self.codec.schema.label
        fixed = str(conditions.pop(label)) if self.conditional and label in conditions else None
        selective = bool(conditions) or any(rule.kind != "implies" for rule in self.schema.constraints)
        batch = self._block_rows
        sizes = repeat(batch) if selective else (min(batch, rows - first) for first in range(0, rows, batch))
        first_seed = int(torch.randint(_SEEDS, (), generator=randomness, device=randomness.device))
        plans = ((size, (first_seed + block) % _SEEDS) for block, size in enumerate(sizes))  # no two blocks are alike
        threads = min(torch.get_num_threads(), _MOST_THREADS) if randomness.device.type == "cpu" else 1
        tables = side_by_side(lambda plan: self._block(*plan, fixed, conditions), plans, threads)
        missing, drawn = rows, 0
        with closing(tables):
            for table in tables:
                table = table.slice(0, missing)
                first = rows - missing + 1
                missing -= table.num_rows
                drawn += batch
                if missing and drawn >= _MOST_TRIES * batch and (rows - missing) * _RAREST < drawn:
                    found = f"{rows - missing} such rows" if rows > missing else "no such row"
                    raise InputError(
                        f"Too rare: {found} came up among {drawn} synthetic ones",
                        f"where {', '.join(conditions)}" if conditions else "constraints of the schema",
                        "Ask for fewer rows, or for something less rare.",
                    )
                if table.num_rows:
                    yield table if self.visits is None else long(table, self.visits, first)
                if missing == 0:
                    return

    def _block(self, rows: int, seed: int, label: str | None, conditions: Mapping[str, object]) -> pa.Table:
        """Of so many rows those that meet the conditions and the constraints."""
        schema = self.codec.schema
        table = self._draw(rows, label, torch.Generator(self.rates.device).manual_seed(seed))
        table = with_implied_codes(table, schema)
        table = table.filter(satisfied(table, schema)) if schema.constraints else table
        for name, value in conditions.items():
            table = table.filter(_meets(table[name], value))
        if self.visits is not None and self.visits.constraints:
            table = table.filter(in_order(table, self.visits))
        return table

    def _draw(self, rows: int, label: str | None, randomness: torch.Generator) -> pa.Table:
        if self.statistics is not None:
            index = None if label is None else self.codec.class_names.index(label)
            return drawn_table(self.statistics, self.codec, rows, index, randomness.initial_seed())
        classes = self.codec.n_classes if self.conditional else 0
        device = self.rates.device
        if classes == 0:
            labels, one_hot = None, torch.zeros(rows, 0, device=device)
        else:
            if label is None:
                drawn = torch.multinomial(self.rates, rows, replacement=True, generator=randomness)
            else:
                drawn = torch.full((rows,), self.codec.class_names.index(label), device=device)
            labels, one_hot = drawn, F.one_hot(drawn, classes).float()
        records = sample_records(self.networks, one_hot, randomness)
        if labels is None or self.codec.schema.label is None:
            return self.codec.decode(records.cpu().numpy())
        return self.codec.decode(records.cpu().numpy(), labels.cpu().numpy())

    def _check_possible(self, name: str, value: object) -> None:
        """Refuses a value that no synthetic row can have, before any is drawn."""
        column = next((c for c in self.codec.schema.columns if c.name == name), None)
        bounds = column.bounds if column else next(s.bounds for s in self.codec.schema.signals if name in s.columns)
        if column is not None and column.type == "codes":
            if _text(value) not in (column.vocabulary or ()):
                raise InputError("The column has no such code", f"where {name}", "Give a code of its vocabulary.")
        elif column is not None and column.type not in ("numeric", "date"):
            names = column.classes() + ((OTHER,) if column.type == "categorical" and column.unknown == OTHER else ())
            if _text(value) not in names:
                raise InputError("The column has no such category", f"where {name}", f"Choose from {', '.join(names)}.")
        elif column is not None and column.type == "date":
            if parsed_date(str(value)) is None:
                raise InputError("The value is not a date", f"where {name}", "Write it as 2024-12-31.")
        elif not _in_bounds(value, bounds):
            raise InputError("The value is outside the column's bounds", f"where {name}", "Give one inside them.")

    def _checked(self, where: Mapping[str, object]) -> dict[str, object]:
        """Conditions as values of the decoded table's types; the label's as the name of its class."""
        types = {field.name: field.type for field in self.codec.arrow_schema}
        checked: dict[str, object] = {}
        of_rows = self.schema.column_names()
        for name, value in where.items():
            if self.visits is not None and self.visits.visits is not None and self.visits.visits.differs(name):
                how = "Give a column that is the same at all visits."
                raise InputError(
                    "The column differs between visits, and a condition is on people", f"where {name}", how
                )
            if name not in of_rows:
                raise InputError("There is no such column", f"where {name}", "Give a column of the schema.")
            if self.conditional and name == self.codec.schema.label:
                if _text(value) not in self.codec.class_names:
                    how = f"Choose one of {', '.join(self.codec.class_names)}."
                    raise InputError("The label has no such class", f"where {name}", how)
                checked[name] = _text(value)
                continue
            self._check_possible(name, value)
            try:
                kind = types[name].value_type if pa.types.is_list(types[name]) else types[name]
                checked[name] = pa.scalar(_plain(value, kind), kind, from_pandas=False)
            except (ValueError, TypeError, pa.ArrowInvalid):
                raise InputError("The value does not fit the column", f"where {name}", "Give a number.") from None
        return checked


def _meets(column: pa.ChunkedArray, value: object) -> pa.Array:
    """Which cells are equal to the value, or hold it if they are lists."""
    if not pa.types.is_list(column.type):
        return compute.equal(column, value)
    holding = np.zeros(len(column), bool)
    entries = compute.list_flatten(column)
    holding[compute.list_parent_indices(column).filter(compute.equal(entries, value)).to_numpy()] = True
    return pa.array(holding)


def _plain(value: object, kind: pa.DataType) -> object:
    """A value as what makes a scalar of a type. Raises ValueError for a text that is no number."""
    if pa.types.is_date(kind):
        return parsed_date(str(value))
    return _text(value) if pa.types.is_string(kind) else float(str(value))


def _in_bounds(value: object, bounds: object) -> bool:
    try:
        number = float(str(value))
    except ValueError:
        return True  # no number at all, which is said elsewhere
    return not isinstance(bounds, tuple) or bounds[0] <= number <= bounds[1]


def _text(value: object) -> str:
    """A value as the text of a category: 1, 1.0 and True are "1"."""
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)
