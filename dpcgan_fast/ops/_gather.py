"""Rows of tables of codes, written out dense for a batch."""

from torch import Tensor

from dpcgan_fast.ops._backend import op


def gather_rows(out: Tensor, rows: Tensor, dense: Tensor, starts: Tensor, positions: Tensor, first_code: int) -> None:
    """Writes rows of a table of dense columns and sparse binary codes into `out`, the codes between the columns.

    out:        (B, F) float32, written in whole: dense columns before `first_code`, F - D codes, the other columns
    rows:       (B,) int64 in [0, N), in any order and as often as one likes
    dense:      (N, D) float32
    starts:     (N + 1,) int64: row r has the codes positions[starts[r] : starts[r + 1]], which are 1, all others 0
    positions:  (E,) int32 in [0, F - D), in any order
    first_code: in [0, D], where in a row of `out` the codes begin

    All contiguous, for nothing is copied: a table may be a memory map larger than memory. On the CPU alone, and on the
    calling thread alone. A table that is damaged is never read or written out of bounds; of it, the rows asked for are
    checked. Raises RuntimeError for tensors that do not fit, with anything in `out`.
    """
    op("gather_rows")(out, rows, dense, starts, positions, first_code)
