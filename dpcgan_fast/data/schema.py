"""The schema file: what a table's columns are, and every public fact that the privacy claim rests on.

Bounds, category lists, label rates and the number of units are either written here by the user, and then public, or
marked `"private"`, and then paid for. Nothing is read from the data without being paid for.
"""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dpcgan_fast.data.vocabulary import checked_vocabulary, with_vocabularies
from dpcgan_fast.errors import InputError

PRIVATE: Literal["private"] = "private"
OTHER = "__other__"
UNDECIDED_UNIT = "?"
DEFAULT_MAX_CODES = 200

Bounds = tuple[float, float]
Kind = Literal["numeric", "binary", "categorical", "codes"]


class _Strict(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


def _checked_bounds(bounds: Bounds | Literal["private"] | None) -> None:
    if isinstance(bounds, tuple) and not (all(math.isfinite(b) for b in bounds) and bounds[0] < bounds[1]):
        raise ValueError("bounds must be two finite numbers, the lower one first")


class Column(_Strict):
    """One column of the table.

    bounds:     numeric only: (lower, upper), "private", or None (to be filled in)
    integer:    numeric only: values are written back as whole numbers
    missing:    cells may be empty, and emptiness is modelled; if False, an empty cell reads as a public default
    categories: categorical only: the public list, "private", or None (to be filled in). A list that was released may be
                empty: every cell that is not missing is then unknown
    unknown:    what a category outside the list becomes: "__other__", "missing", or the "first" of the list (for lists
                that name every category there is)
    rates:      label only: public class rates in the order of the classes
    positive:   label only: the classes that count as positive in evaluation
    vocabulary: codes only: the public list of codes, "private", or None (to be filled in). A schema file holds the
                list, or the path of a text file with a code a line
    separator:  codes only: text between the codes of one cell; None if a cell of text is always one code
    max_codes:  codes only: codes of a record beyond this public cap are not used
    """

    name: str
    type: Kind
    bounds: Bounds | Literal["private"] | None = None
    integer: bool = False
    missing: bool = False
    categories: tuple[str, ...] | Literal["private"] | None = None
    unknown: Literal["__other__", "missing", "first"] = OTHER
    rates: tuple[float, ...] | None = None
    positive: tuple[str, ...] | None = None
    vocabulary: tuple[str, ...] | Literal["private"] | None = None
    separator: Annotated[str, Field(min_length=1)] | None = "|"
    max_codes: Annotated[int, Field(ge=1)] = DEFAULT_MAX_CODES

    @field_validator("categories", "positive", "vocabulary", mode="before")
    @classmethod
    def _names_as_text(cls, value: Any) -> Any:
        """Codes may be written as whole numbers: 1 is "1"."""
        if not isinstance(value, (list, tuple)):
            return value
        return tuple(str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value)

    @model_validator(mode="after")
    def _consistent(self) -> "Column":
        _checked_bounds(self.bounds)
        if isinstance(self.categories, tuple):
            if len(set(self.categories)) != len(self.categories):
                raise ValueError("categories must be a list of different names")
            if not self.categories and self.unknown == "first":
                raise ValueError('unknown "first" needs at least one category')
            if OTHER in self.categories:
                raise ValueError(f"{OTHER} is added by itself and must not be listed")
        if isinstance(self.vocabulary, tuple):
            checked_vocabulary(self.vocabulary, self.separator)
        if self.unknown == "missing" and not self.missing:
            raise ValueError('unknown "missing" needs "missing": true')
        if self.unknown == "first" and self.categories == PRIVATE:
            raise ValueError('unknown "first" needs a public list of categories')
        if self.rates is not None and (any(rate < 0 for rate in self.rates) or abs(sum(self.rates) - 1) > 1e-6):
            raise ValueError("rates must be at least 0 and add up to 1")
        return self

    def classes(self) -> tuple[str, ...]:
        """The label classes: ("0", "1") of a binary column, the categories of a categorical one."""
        if self.type == "binary":
            return ("0", "1")
        if self.type == "categorical" and isinstance(self.categories, tuple):
            return self.categories
        raise InputError(
            "The label has no public list of classes",
            f"schema, column {self.name}",
            'Make it "binary", or "categorical" with its categories written out.',
        )


class Signal(_Strict):
    """Ordered numeric columns with shared bounds, such as the samples of an EEG; the convolution runs along them."""

    name: str
    columns: tuple[str, ...]
    bounds: Bounds | Literal["private"] | None = None
    integer: bool = False

    @model_validator(mode="before")
    @classmethod
    def _expand_range(cls, values: Any) -> Any:
        """["X1", "...", "X178"] stands for X1, X2 and so on to X178."""
        columns = values.get("columns") if isinstance(values, dict) else None
        if isinstance(columns, (list, tuple)) and len(columns) == 3 and columns[1] == "...":
            first, last = (re.fullmatch(r"(.*?)(\d+)", str(columns[i])) for i in (0, 2))
            if not first or not last or first[1] != last[1] or int(first[2]) >= int(last[2]):
                raise ValueError('a range is written ["X1", "...", "X178"]: one prefix, rising numbers')
            names = [f"{first[1]}{i}" for i in range(int(first[2]), int(last[2]) + 1)]
            return {**values, "columns": names}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "Signal":
        _checked_bounds(self.bounds)
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise ValueError("columns must be a list of different names, at least one")
        return self


class Schema(_Strict):
    """A table's schema; `Schema.from_json` reads it, `require_complete` says what is still to be filled in.

    unit:              column whose value names the person, None if every row is a person, "?" if undecided
    n_units:           public number of units, or None: then only a paid noisy count enters the divisor
    max_rows_per_unit: rows of a unit beyond this public cap are not used
    label:             column that the model is conditional on, or None
    """

    version: Literal[1] = 1
    unit: str | None
    n_units: Annotated[int, Field(gt=0)] | None = None
    max_rows_per_unit: Annotated[int, Field(ge=1)] = 1
    label: str | None = None
    columns: tuple[Column, ...] = ()
    signals: tuple[Signal, ...] = ()

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
                raise ValueError(f"the label {self.label!r} is not among the columns")
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
        return self

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
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else f": {error}"
            raise InputError(what, f"{where}{line}", "Correct it, or make a new draft with `dpcgan schema`.") from None
        return cls.from_dict(values, where, folder)

    @classmethod
    def from_dict(cls, values: Any, where: str = "schema", folder: Path = Path()) -> "Schema":
        """Checks a parsed schema, whose paths begin at `folder`. Raises InputError if it does not fit."""
        values = with_vocabularies(values, folder)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = _place(first["loc"], values)
            message = first["msg"].removeprefix("Value error, ")
            raise InputError(
                f"The schema does not fit: {message}", f"{where}{place and f', {place}'}", _CHECK
            ) from None

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
    def merges_rows(self) -> bool:
        """Whether all rows of a unit are one record, as in a table of events: so where there are columns of codes."""
        return self.unit is not None and bool(self.codes_columns())

    def label_column(self) -> Column | None:
        """The label's column, or None without a label."""
        return next((column for column in self.columns if column.name == self.label), None)

    def require_complete(self) -> None:
        """Raises InputError that names the first fact that is still to be decided, and both remedies."""
        self.require_units()
        for column in self.columns:
            if column.type == "numeric" and column.bounds is None:
                raise _to_fill_in("bounds", f"column {column.name}", "[lower, upper]")
            if column.type == "categorical" and column.categories is None:
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
    ) -> "Schema":
        """A copy in which paid bounds (by column or signal name) and lists (by column) stand in place of "private"."""

        def filled(column: Column) -> Column:
            released = {
                "bounds": bounds.get(column.name, column.bounds),
                "categories": categories.get(column.name, column.categories),
                "vocabulary": vocabularies.get(column.name, column.vocabulary),
            }
            return column.model_copy(update=released)

        signals = tuple(s.model_copy(update={"bounds": bounds.get(s.name, s.bounds)}) for s in self.signals)
        return self.model_copy(update={"columns": tuple(map(filled, self.columns)), "signals": signals})


def _place(loc: tuple[Any, ...], values: Any) -> str:
    """Where in the schema: a column or signal by its name, if it has one."""
    with contextlib.suppress(KeyError, IndexError, TypeError):
        if loc[0] in ("columns", "signals"):
            name = values[loc[0]][loc[1]]["name"]
            return " ".join([loc[0][:-1], str(name), *(str(part) for part in loc[2:3])])
    return ".".join(str(part) for part in loc)


_CHECK = "Compare it with the section on schema files in the README."


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
