"""The parts of a schema: columns, signals, and constraints between columns."""

import datetime
import math
import re
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dpcgan_fast.data.vocabulary import checked_vocabulary
from dpcgan_fast.errors import InputError

PRIVATE: Literal["private"] = "private"
OTHER = "__other__"
DEFAULT_MAX_CODES = 200

Bounds = tuple[float, float]
Kind = Literal["numeric", "binary", "categorical", "ordinal", "date", "codes"]


class Strict(BaseModel):
    """A part of a schema: it has no other keys, and does not change."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


def _checked_quantiles(
    quantiles: tuple[float, ...] | Literal["private"] | None, bounds: Bounds | Literal["private"] | None, scale: str
) -> None:
    if quantiles is None:
        return
    if scale != "rank":
        raise ValueError('quantiles belong to "scale": "rank"')
    if quantiles == PRIVATE:
        return
    if bounds == PRIVATE:
        raise ValueError("public quantiles need public bounds")
    knots = quantiles if bounds is None else (bounds[0], *quantiles, bounds[1])
    rising = all(math.isfinite(q) for q in quantiles) and all(a <= b for a, b in pairwise(knots))
    if not quantiles or not rising:
        raise ValueError("quantiles must be a list of finite numbers between the bounds, none below the one before")


def _checked_bounds(bounds: Bounds | Literal["private"] | None) -> None:
    if isinstance(bounds, tuple) and not (all(math.isfinite(b) for b in bounds) and bounds[0] < bounds[1]):
        raise ValueError("bounds must be two finite numbers, the lower one first")


class Column(Strict):
    """One column of the table.

    bounds:     numeric and date: (lower, upper), "private", or None (to be filled in). Of a date they are dates, held
                as days since 1970-01-01; with an origin they are days since that
    origin:     date only: the date column from which the days of this one are counted
    scale:      numeric only: "log" gives small values, next to the lower bound, as much room in a record as large ones,
                "rank" as much as their share of the rows, by `quantiles`
    quantiles:  of "scale": "rank" only: public ones between the bounds, evenly spaced in probability (three are the
                quartiles), "private", or None (to be filled in). Equal ones are a value that many rows have
    integer:    numeric only: values are written back as whole numbers
    missing:    cells may be empty, and emptiness is modelled; if False, an empty cell reads as a public default
    categories: categorical and ordinal (in order): the public list, "private", or None (to be filled in). A list that
                was released may be empty: every cell that is not missing is then unknown
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
    origin: str | None = None
    scale: Literal["linear", "log", "rank"] = "linear"
    quantiles: tuple[float, ...] | Literal["private"] | None = None
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

    @model_validator(mode="before")
    @classmethod
    def _by_type(cls, values: Any) -> Any:
        """Bounds of a date may be dates; an ordinal has no category beside those listed."""
        if not isinstance(values, dict):
            return values
        if values.get("type") == "date" and isinstance(values.get("bounds"), (list, tuple)):
            return {**values, "bounds": tuple(_days_of(bound) for bound in values["bounds"])}
        if values.get("type") == "ordinal" and "unknown" not in values:
            return {**values, "unknown": "missing" if values.get("missing") is True else "first"}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "Column":
        _checked_bounds(self.bounds)
        if self.origin is not None and self.type != "date":
            raise ValueError("only a date has an origin")
        if self.scale != "linear" and self.type != "numeric":
            raise ValueError("only a numeric column has a scale")
        _checked_quantiles(self.quantiles, self.bounds, self.scale)
        if self.type == "ordinal" and (self.unknown == OTHER or self.categories == PRIVATE):
            raise ValueError('an ordinal needs a public list of categories, in order, and unknown "first" or "missing"')
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
        if self.type in ("categorical", "ordinal") and isinstance(self.categories, tuple):
            return self.categories
        raise InputError(
            "The label has no public list of classes",
            f"schema, column {self.name}",
            'Make it "binary", or "categorical" with its categories written out.',
        )


def _days_of(bound: Any) -> Any:
    """Days since 1970-01-01 of a date; anything else as it is."""
    if not isinstance(bound, str):
        return bound
    try:
        return (datetime.date.fromisoformat(bound) - datetime.date(1970, 1, 1)).days
    except ValueError:
        raise ValueError('bounds of a date are written ["2000-01-01", "2024-12-31"]') from None


class Constraint(Strict):
    """Something that holds in every synthetic record.

    kind:    "less" or "at_most", of the first column and the second; missing cells are in any order. "implies": a
             record that has `code` has `implied`, too
    columns: two numeric or two date columns; of "implies" one of codes
    """

    kind: Literal["less", "at_most", "implies"]
    columns: tuple[str, ...]
    code: str | None = None
    implied: str | None = None


class Bins(Strict):
    """Parts of time of one public width.

    The first begins at the time's lower bound (of whole times the first whole number from it on), or at the first visit
    with `from_first`.

    width: in units of the time, days if it is a date
    count: rows after the last bin are not used
    """

    width: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    count: Annotated[int, Field(ge=2)]


class Visits(Strict):
    """Which columns differ between the visits of a person, and what orders them; all other columns are static.

    time:       numeric or date column by which visits are ordered; it need not be among `columns`
    max_visits: visits of a person beyond this public cap are not used; None with bins
    columns:    names of the columns that a visit has cells of its own of
    key:        a column of the data, in the schema or not, whose equal values within a person are one visit, as in a
                table of events; None if every row is a visit
    max_gap:    public: longer gaps between two visits are cut to it; None if the bounds of the time are all that holds
    from_first: times are counted from the person's first one, which is 0
    bins:       all rows in a bin of time are one visit, which is there or not; None if visits are counted
    """

    time: str
    max_visits: Annotated[int, Field(ge=2)] | None = None
    columns: tuple[str, ...] = ()
    key: str | None = None
    max_gap: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    from_first: bool = False
    bins: Bins | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Visits":
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("columns must be a list of different names")
        if (self.max_visits is None) == (self.bins is None):
            raise ValueError(
                "visits need max_visits, beyond which a person's are not used, or bins of time in its place"
            )
        if self.bins is not None and not (self.key is None and self.max_gap is None):
            raise ValueError("bins of time are what makes a visit: leave key and max_gap out")
        return self

    @property
    def n_slots(self) -> int:
        """How many visits a record has places for."""
        if self.bins is not None:
            return self.bins.count
        assert self.max_visits is not None
        return self.max_visits

    def differs(self, name: str) -> bool:
        """Whether a column differs between visits."""
        return name == self.time or name in self.columns


class Signal(Strict):
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
