"""The schema file: what a table's columns are, and every public fact that the privacy claim rests on.

Bounds, category lists, label rates and the number of units are either written here by the user, and then public, or
marked `"private"`, and then paid for. Nothing is read from the data without being paid for.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from dpcgan_fast.data.names import did_you_mean
from dpcgan_fast.data.schema_errors import schema_message
from dpcgan_fast.data.schema_parts import OTHER as OTHER
from dpcgan_fast.data.schema_parts import PRIVATE, Bounds, Column, Constraint, Signal, Strict, Visits
from dpcgan_fast.data.visit_columns import check_visits, record_columns, record_constraints
from dpcgan_fast.data.vocabulary import with_vocabularies
from dpcgan_fast.errors import InputError

UNDECIDED_UNIT = "?"
LEAST_SIGNAL = 32  # samples of a signal that has networks of its own


class Schema(Strict):
    """A table's schema; `Schema.from_json` reads it, `require_complete` says what is still to be filled in.

    unit:              column whose value names the person, None if every row is a person, "?" if undecided
    n_units:           public number of units, or None: then only a paid noisy count enters the divisor
    max_rows_per_unit: rows of a unit beyond this public cap are not used
    label:             column that the model is conditional on, or None
    constraints:       what holds in every synthetic record
    visits:            which columns differ between the visits of a person, None if a person has none
    """

    version: Literal[1] = 1
    unit: str | None
    n_units: Annotated[int, Field(gt=0)] | None = None
    max_rows_per_unit: Annotated[int, Field(ge=1)] = 1
    label: str | None = None
    columns: tuple[Column, ...] = ()
    signals: tuple[Signal, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    visits: Visits | None = None

    _of_rows: "Schema | None" = PrivateAttr(None)  # of a schema of records with visits: that of their rows

    @model_validator(mode="after")
    def _consistent(self) -> "Schema":
        names = list(self.column_names())
        repeated = {name for name in names if names.count(name) > 1} if len(set(names)) != len(names) else set()
        if repeated:
            raise ValueError(f"column {sorted(repeated)[0]!r} is named twice")
        if not names:
            raise ValueError("there must be at least one column or signal")
        if self.unit in names:
            raise ValueError(f"the unit column {self.unit!r} must not be listed: it is neither modelled nor sampled")
        if self.unit is None and self.max_rows_per_unit != 1:
            raise ValueError("max_rows_per_unit must be 1 where every row is a unit of its own")
        if self.label is not None:
            label = self.label_column()
            if label is None:
                question = _question(self.label, (column.name for column in self.columns))
                raise ValueError(f"the label {self.label!r} is not among the columns{question}")
            if label.type not in ("binary", "categorical"):
                raise ValueError(f"the label {self.label!r} must be binary or categorical")
            if label.type == "binary" or isinstance(label.categories, tuple):
                classes = label.classes()
                if len(classes) < 2:
                    raise ValueError(f"the label {self.label!r} has one category; it needs at least two")
                if label.rates is not None and len(label.rates) != len(classes):
                    raise ValueError(f"the label {self.label!r} needs one rate for each of its {len(classes)} classes")
                if not set(label.positive or ()) <= set(classes):
                    raise ValueError(f"the label {self.label!r} has a positive class that is not among its classes")
        for column in self.columns:
            if column.name != self.label and (column.rates is not None or column.positive is not None):
                raise ValueError(f"column {column.name!r} is not the label, so rates and positive do not belong there")
        self._check_origins()
        self._check_constraints()
        if self.visits is not None:
            self._check_visits(self.visits)
        return self

    def _check_origins(self) -> None:
        absolute = {column.name for column in self.columns if column.type == "date" and column.origin is None}
        for column in self.columns:
            if column.origin is not None and column.origin not in absolute:
                raise ValueError(f"column {column.name!r} needs for its origin a date column that has none itself")

    def _check_constraints(self) -> None:
        types = {column.name: column.type for column in self.columns}
        types |= {name: "numeric" for signal in self.signals for name in signal.columns}
        for rule in self.constraints:
            unknown = [name for name in rule.columns if name not in types]
            if unknown:
                question = _question(unknown[0], types)
                raise ValueError(f"a constraint names a column {unknown[0]!r} that is not there{question}")
            kinds = [types[name] for name in rule.columns]
            if rule.kind == "implies":
                if kinds != ["codes"] or not rule.code or not rule.implied:
                    raise ValueError('a constraint "implies" needs one column of codes, a code, and an implied one')
            elif kinds not in (["numeric"] * 2, ["date"] * 2) or rule.columns[0] == rule.columns[1]:
                raise ValueError(f'a constraint "{rule.kind}" needs two numeric or two date columns')

    def _check_visits(self, visits: Visits) -> None:
        if self.unit is None:
            raise ValueError("visits need the name of the column that identifies a person, in unit")
        if visits.key == self.unit:
            raise ValueError("the key of visits must not be the unit's column")
        if self.max_rows_per_unit != 1:
            raise ValueError("visits have a cap of their own: leave max_rows_per_unit out")
        samples = {name for signal in self.signals for name in signal.columns}
        check_visits(visits, self.columns, {self.unit, *samples}, self.label)

    @classmethod
    def from_json(cls, path: str | Path) -> "Schema":
        """Reads a schema file. Raises InputError if it is missing, is not JSON, or does not fit."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError("The schema file does not exist", str(path), "Make one with `dpcgan schema`.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("The schema file cannot be read", f"{path}: {type(error).__name__}", _CHECK) from None
        return cls.from_text(text, str(path), path.parent)

    @classmethod
    def from_text(cls, text: str, where: str = "schema", folder: Path = Path()) -> "Schema":
        """Parses the JSON text of a schema, whose paths begin at `folder`. Raises InputError if it does not fit."""
        try:
            values = json.loads(text, object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            what = "The schema is not valid JSON"
            decoding = isinstance(error, json.JSONDecodeError)
            line = f", line {error.lineno}, column {error.colno}" if decoding else f": {error}"
            how = "Correct it there or just before: commas stand between entries, brackets and quotes are closed."
            raise InputError(what, f"{where}{line}", how) from None
        return cls.from_dict(values, where, folder)

    @classmethod
    def from_dict(cls, values: Any, where: str = "schema", folder: Path = Path()) -> "Schema":
        """Checks a parsed schema, whose paths begin at `folder`. Raises InputError if it does not fit."""
        values = with_vocabularies(values, folder)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False, include_input=False)
            place = _place(errors[0]["loc"], values)
            what = f"The schema does not fit: {schema_message(errors)}"
            raise InputError(what, f"{where}{place and f', {place}'}", _CHECK) from None

    def to_json(self) -> str:
        """The schema as JSON text; `Schema.from_text` gives it back."""
        return json.dumps(self.model_dump(mode="json", exclude_none=False), indent=1, ensure_ascii=False)

    def column_names(self) -> tuple[str, ...]:
        """Names of all modelled table columns: columns, then the columns of each signal."""
        return tuple(c.name for c in self.columns) + tuple(name for s in self.signals for name in s.columns)

    def codes_columns(self) -> tuple[Column, ...]:
        """The columns of type codes, in order."""
        return tuple(column for column in self.columns if column.type == "codes")

    def has_private_lists(self) -> bool:
        """Whether a list of categories or codes is "private", so that how long records are is not known yet."""
        return any(PRIVATE in (column.categories, column.vocabulary) for column in self.columns)

    @property
    def is_one_signal(self) -> bool:
        """Whether a record is one signal of at least `LEAST_SIGNAL` samples, with a label at most beside it."""
        alone = all(column.name == self.label for column in self.columns) and self.visits is None
        return alone and len(self.signals) == 1 and len(self.signals[0].columns) >= LEAST_SIGNAL

    @property
    def merges_rows(self) -> bool:
        """Whether all rows of a unit are one record: so where there are columns of codes, or visits."""
        return self.unit is not None and (bool(self.codes_columns()) or self.visits is not None)

    def as_records(self) -> "Schema":
        """The schema of records, which hold all visits of a person side by side; without visits the schema itself.

        The columns are those of `record_columns`; `visits.wide` makes such a table.
        """
        if self.visits is None:
            return self
        columns = record_columns(self.visits, self.columns)
        constraints = record_constraints(self.visits, self.constraints)
        records = self.model_copy(update={"columns": columns, "constraints": constraints, "visits": None})
        records._of_rows = self
        return records

    @property
    def of_rows(self) -> "Schema | None":
        """The schema that has `as_records` made this one, if it has visits; else None."""
        return self._of_rows

    def label_column(self) -> Column | None:
        """The label's column, or None without a label."""
        return next((column for column in self.columns if column.name == self.label), None)

    def require_complete(self) -> None:
        """Raises InputError that names the first fact that is still to be decided, and both remedies."""
        self.require_units()
        for column in self.columns:
            if column.type in ("numeric", "date") and column.bounds is None:
                raise _to_fill_in("bounds", f"column {column.name}", "[lower, upper]")
            if column.scale == "rank" and column.quantiles is None:
                raise _to_fill_in("quantiles", f"column {column.name}", "a list of rising numbers")
            if column.type in ("categorical", "ordinal") and column.categories is None:
                raise _to_fill_in("categories", f"column {column.name}", "the list of categories")
        for signal in self.signals:
            if signal.bounds is None:
                raise _to_fill_in("bounds", f"signal {signal.name}", "[lower, upper]")
        label = self.label_column()
        if label is not None:
            label.classes()

    def require_units(self) -> None:
        """Raises InputError unless it is decided which rows are one record, and what of their codes counts."""
        if self.unit == UNDECIDED_UNIT:
            raise InputError(
                "The unit of privacy is undecided",
                'schema, "unit": "?"',
                "Write the name of the column that identifies a person, or null if every row is a person of its own.",
            )
        for column in self.codes_columns():
            if column.vocabulary is None:
                raise _to_fill_in("codes", f"column {column.name}, vocabulary", "a list or the path of a text file")

    def with_released(
        self,
        bounds: Mapping[str, Bounds],
        categories: Mapping[str, tuple[str, ...]],
        vocabularies: Mapping[str, tuple[str, ...]],
        quantiles: Mapping[str, tuple[float, ...]],
    ) -> "Schema":
        """A copy in which paid bounds (by column or signal name) and lists (by column) stand in place of "private"."""

        def filled(column: Column) -> Column:
            released = {
                "bounds": bounds.get(column.name, column.bounds),
                "categories": categories.get(column.name, column.categories),
                "vocabulary": vocabularies.get(column.name, column.vocabulary),
                "quantiles": quantiles.get(column.name, column.quantiles),
            }
            return column.model_copy(update=released)

        signals = tuple(s.model_copy(update={"bounds": bounds.get(s.name, s.bounds)}) for s in self.signals)
        return self.model_copy(update={"columns": tuple(map(filled, self.columns)), "signals": signals})


def _question(name: str, names: Iterable[str]) -> str:
    question = did_you_mean(name, names, "'")
    return question and f"; {question}"


def _place(loc: tuple[Any, ...], values: Any) -> str:
    """Where in the schema: a column or signal by its name, if it has one."""
    with contextlib.suppress(KeyError, IndexError, TypeError):
        if loc[0] in ("columns", "signals"):
            name = values[loc[0]][loc[1]]["name"]
            return " ".join([loc[0][:-1], str(name), *(str(part) for part in loc[2:3])])
    return ".".join(str(part) for part in loc)


_CHECK = "Compare it with a draft by `dpcgan schema`, and with docs/schema.md."


def _to_fill_in(fact: str, place: str, example: str) -> InputError:
    return InputError(
        f"The {fact} are still to be filled in",
        f"schema, {place}",
        f'Write a public value, {example}, or "private" to have them estimated at a cost in epsilon.',
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return values
