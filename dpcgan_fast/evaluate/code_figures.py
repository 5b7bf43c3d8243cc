"""How far the codes of one table are from those of another: how frequent each is, and how often two occur together."""

import numpy as np
import pyarrow as pa

from dpcgan_fast.evaluate.code_columns import CodeView, code_counts
from dpcgan_fast.evaluate.code_structure import code_structure, pearson

_BLOCK_ROWS = 1 << 15
CodeFigures = dict[str, dict[str, float | None]]


def code_distances(table: pa.Table, real: pa.Table, view: CodeView) -> CodeFigures:
    """Distances between the codes of two tables with the view's original schema, by column of codes.

    mae:       mean absolute difference of the prevalences, the shares of rows that have a code, in [0, 1]
    max_abs:   the largest one
    r:         Pearson correlation of the prevalences; None where one of the tables has all codes equally often
    pairs_mae: mean absolute difference of the shares of rows that have both of two codes, over all pairs of the codes
               that the view looks at; None if that is a single one

    The first three are over the whole vocabulary, and None without one. A table without rows has the prevalence 0 of
    every code. What occurs together is compared further by the figures of `code_structure`.
    Raises InputError if a codes column is absent or holds no codes.
    """
    found = {}
    for column in view.original.codes_columns():
        shares, real_shares = (code_counts(t, column) / max(1, t.num_rows) for t in (table, real))
        errors = np.abs(shares - real_shares)
        pairs = [_pair_shares(view.flags(t, column.name)) for t in (table, real)]
        found[column.name] = {
            "mae": float(errors.mean()) if len(errors) else None,
            "max_abs": float(errors.max()) if len(errors) else None,
            "r": pearson(shares, real_shares),
            "pairs_mae": float(np.abs(pairs[0] - pairs[1]).mean()) if len(pairs[0]) else None,
            **code_structure(table, real, column),
        }
    return found


def _pair_shares(flags: np.ndarray) -> np.ndarray:
    """Share of rows that have both codes of each pair: (pairs,) float64. flags: (codes, rows) 0 or 1"""
    codes, rows = flags.shape
    both = np.zeros((codes, codes))
    for first in range(0, rows, _BLOCK_ROWS):
        part = flags[:, first : first + _BLOCK_ROWS].astype(np.float32)  # sums below 2^24 are exact
        both += part @ part.T
    return both[np.triu_indices(codes, k=1)] / max(1, rows)
