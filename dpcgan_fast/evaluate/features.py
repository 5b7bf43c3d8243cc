"""A table as arrays for scikit-learn: encoded columns, and the label as classes."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.public_cells import coded_names, codes, label_of, modelled_columns, scaled_numbers
from dpcgan_fast.data.schema import Schema


@dataclass(frozen=True)
class Encoded:
    """Encoded columns of a table.

    values:  (rows, features) float64 in [0, 1]. Numeric columns are scaled by their bounds and NaN where missing;
             binary ones are 0 or 1 and NaN where missing; categories are one-hot over the schema's public list. A
             column that may be missing is followed by a feature that is 1 where it is.
    names:   (features,) what each feature says, such as "sex = F"
    """

    values: np.ndarray
    names: tuple[str, ...]


def encode(table: pa.Table, schema: Schema, label: bool = True) -> Encoded:
    """Encodes every modelled column, with or without the label's. Raises InputError if the table does not fit."""
    features: list[np.ndarray] = []
    names: list[str] = []

    def add(values: np.ndarray, name: str) -> None:
        features.append(values.astype(np.float64))
        names.append(name)

    for column in modelled_columns(schema):
        if column.name == schema.label and not label:
            continue
        if column.type == "numeric":
            values = scaled_numbers(table, column)
            absent = np.isnan(values)
            add(values, column.name)
        else:
            found, choices = codes(table, column), coded_names(column)
            absent = found == len(choices)
            if column.type == "binary":
                add(np.where(absent, np.nan, found), column.name)
            else:
                for code, choice in enumerate(choices):
                    add(found == code, f"{column.name} = {choice}")
        if column.missing:
            add(absent, f"{column.name} is missing")
    values = np.stack(features, axis=1) if features else np.zeros((table.num_rows, 0))
    return Encoded(values, tuple(names))


@dataclass(frozen=True)
class Target:
    """The label of a table as the classes that evaluation tells apart.

    classes: (rows,) int64; with one score, 1 is positive and 0 is the rest; -1 where the label is not a known class
    names:   the classes whose scores are averaged: one positive class, or each class against the rest
    """

    classes: np.ndarray
    names: tuple[str, ...]

    @property
    def known(self) -> np.ndarray:
        """Which rows have a known class: (rows,) bool."""
        return self.classes >= 0

    def is_class(self, index: int) -> np.ndarray:
        """Which rows belong to the class that score `index` is about: (rows,) bool."""
        return self.classes == (1 if len(self.names) == 1 else index)


def target(table: pa.Table, schema: Schema) -> Target | None:
    """The label's classes, or None without a label.

    A binary label has the positive class "1". A categorical one has the classes that `positive` names as its positive
    class, or, without `positive`, every class is told apart from the rest.
    """
    column = label_of(schema)
    if column is None:
        return None
    choices = column.classes()
    found = codes(table, column)
    known = found < len(choices)
    positive = column.positive or (("1",) if column.type == "binary" else None)
    if positive is None:
        return Target(np.where(known, found, -1), choices)
    is_positive = np.isin(found, [choices.index(name) for name in positive])
    return Target(np.where(known, is_positive, -1).astype(np.int64), (" or ".join(positive),))
