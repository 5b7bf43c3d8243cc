"""Draws of records' cells, for sampling."""

from torch import Tensor

from dpcgan_fast.ops._backend import op


def draw_cells(logits: Tensor, prior: Tensor, classes: Tensor, uniform: Tensor, last_cells: Tensor) -> Tensor:
    """One cell of each block, drawn by inversion from the distributions softmax(logits + prior[class]) over cells.

    logits:     (B, cells, T) float32, of which the first `blocks` positions count
    prior:      (K, cells, blocks) float32; -inf for a cell that a block does not have
    classes:    (B,) int64 in [0, K)
    uniform:    (B, blocks) float32 in [0, 1): where in the cumulated chances the draw falls
    last_cells: (blocks,) int64, the last cell of each block
    out:        (B, blocks) float32, numbers of cells; NaN where a block's logits are not finite

    On the CPU alone. Raises RuntimeError for tensors that do not fit.
    """
    return op("draw_cells")(logits, prior, classes, uniform, last_cells)
