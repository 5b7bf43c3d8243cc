"""Grouping of rows into units of privacy."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnitGroups:
    """Rows of a batch grouped by unit.

    unit_ids:     (U,) int64, ascending
    unit_of_row:  (B,) int64, index into unit_ids
    row_order:    (B,) int64, rows sorted by unit
    unit_offsets: (U + 1,) int64; unit u holds row_order[unit_offsets[u] : unit_offsets[u + 1]]
    """

    unit_ids: Tensor
    unit_of_row: Tensor
    row_order: Tensor
    unit_offsets: Tensor


def group_units(units: Tensor, rows: int) -> UnitGroups:
    """Groups rows by unit id, also where every row is a unit of its own: which way sums are rounded must not tell
    whether two rows share a unit.

    units: (B,) int64

    Raises ValueError for anything else.
    """
    if not isinstance(units, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]  users give lists
        raise ValueError(f"Expected units as a tensor (B,) of int64, got a {type(units).__name__}: torch.tensor(ids).")
    if units.dtype != torch.int64 or units.shape != (rows,):
        raise ValueError(
            f"Expected units of dtype int64 and shape (B,), one a row of the losses, got {units.dtype} of "
            f"{'that' if units.shape == (rows,) else 'another'} shape; otherwise rows of one unit would be clipped "
            "apart and its privacy loss under-reported."
        )
    unit_ids, unit_of_row, counts = _distinct(units)
    offsets = torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0))
    return UnitGroups(unit_ids, unit_of_row, torch.argsort(unit_of_row, stable=True), offsets)


def _distinct(units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct ids in ascending order, the index of each row's id among them, and how many rows each has."""
    return torch.unique(units, return_inverse=True, return_counts=True)  # pyright: ignore
