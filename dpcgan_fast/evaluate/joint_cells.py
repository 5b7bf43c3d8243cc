"""Several columns at once: how far the shares of their joint cells are from those of real rows."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines.groups import grouping
from dpcgan_fast.baselines.histograms import width_of
from dpcgan_fast.data.public_cells import cell_shares, cells, modelled_columns
from dpcgan_fast.data.schema import Schema

_MOST_SETS = 1000  # of columns that are looked at
_GROUPS = {2: 5, 3: 3}  # of each column's cells, by how many columns are taken together: joint cells stay well filled


def joint_tv_mean(table: pa.Table, real: pa.Table, schema: Schema, together: int) -> float | None:
    """Mean total variation distance of the joint cells of so many columns, over all sets of them, in [0, 1].

    together: 2 or 3. The cells of a column are put into at most 5 or 3 groups (of numbers: of about equal weight in the
              real rows; of categories: the most frequent ones, and one group of all others; see `grouping`), and one
              for missing cells. Of more than 1,000 sets a fixed random choice is looked at.

    1 for a table without rows, None with fewer columns.
    """
    columns = modelled_columns(schema)
    if len(columns) < together:
        return None
    if table.num_rows == 0:
        return 1.0
    groups = [grouping(c, cell_shares(real, c)[: width_of(c)], _GROUPS[together]) for c in columns]
    own, other = (
        [one.of_cell[cells(source, column)] for column, one in zip(columns, groups, strict=True)]
        for source in (table, real)
    )
    distances = []
    for chosen in _sets(len(columns), together):
        widths = [groups[place].count for place in chosen]
        shares = [_joint_shares([side[place] for place in chosen], widths) for side in (own, other)]
        distances.append(np.abs(shares[0] - shares[1]).sum() / 2)
    return float(np.mean(distances))


def _sets(columns: int, together: int) -> list[tuple[int, ...]]:
    """Sets of columns by their places: all, or a fixed random choice of them."""
    if math.comb(columns, together) <= _MOST_SETS:
        return list(itertools.combinations(range(columns), together))
    rng = np.random.default_rng(0)
    chosen: set[tuple[int, ...]] = set()
    while len(chosen) < _MOST_SETS:
        chosen.add(tuple(sorted(rng.choice(columns, together, replace=False).tolist())))
    return sorted(chosen)


def _joint_shares(codes: Sequence[np.ndarray], widths: Sequence[int]) -> np.ndarray:
    """Share of the rows in each joint cell, (product of the widths,)."""
    joint = np.ravel_multi_index(tuple(codes), tuple(widths))
    return np.bincount(joint, minlength=math.prod(widths)) / len(joint)
