"""Encoded training data: records grouped by unit, cut into chunks of whole units, and gathered chunk by chunk."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpcgan_fast import ops
from dpcgan_fast.data.code_rows import CodeRows
from dpcgan_fast.data.encoding import EncodedRecords
from dpcgan_fast.data.record_codes import RecordCodes
from dpcgan_fast.data.units import UnitIndex

_MAPPED_ROWS = 128  # gathered from a mapped file until its pages are let go of: a row may bring 2 MiB with it
MAX_CHUNK_ROWS = 1024  # rows of one forward; larger draws are taken in chunks, which changes nothing but memory


@dataclass(frozen=True)
class Chunk:
    """Rows of whole units. records: (B, F); labels: (B, K) one-hot; units: (B,) int64, or None if rows are units."""

    records: Tensor
    labels: Tensor
    units: Tensor | None


@dataclass(frozen=True)
class Cut:
    """Which rows a chunk has. rows: (B,) int64; units: (B,) int64, the unit of each."""

    rows: np.ndarray
    units: np.ndarray


class RowSource(Protocol):
    """Rows of floats that can be gathered."""

    def gather(self, rows: np.ndarray, out: Tensor) -> None:
        """Writes the rows (B,) int64 into out (B, F)."""
        ...


@dataclass(frozen=True)
class DenseRows:
    """Rows (N, F) float32 in the memory of one device."""

    values: Tensor

    def gather(self, rows: np.ndarray, out: Tensor) -> None:
        """Copies the rows into out (B, F), on the same device."""
        if self.values.is_cuda:
            torch.index_select(self.values, 0, torch.from_numpy(rows).to(self.values.device), out=out)
        else:
            # By numpy, which copies on the calling thread: torch would start a second team of threads beside that of
            # the step at work. mode="clip" writes straight into out; an index is never out of range.
            np.take(self.values.numpy(), rows, axis=0, out=out.numpy(), mode="clip")


class CodedRows:
    """Rows of which some positions, side by side, are few ones among zeros; in the memory of the machine.

    dense:      (N, D) float32, the other positions
    codes:      of each row the ones, counted from the first of these positions; they may lie in mapped files
    first_code: position of the first of them
    """

    def __init__(self, dense: Tensor, codes: RecordCodes, first_code: int):
        self._dense, self._codes, self._first_code = dense, codes, first_code
        whole = codes.as_they_lie
        self._whole = None if whole is None else _as_tensors(whole)

    def gather(self, rows: np.ndarray, out: Tensor) -> None:
        """Writes the rows into out (B, F), on any device; a mapped file has a few rows in memory at a time."""
        for first in range(0, len(rows), _MAPPED_ROWS):
            part, to = rows[first : first + _MAPPED_ROWS], out[first : first + _MAPPED_ROWS]
            if out.is_cuda:
                self._gather_there(part, to)
            elif self._whole is not None:
                ops.gather_rows(to, torch.from_numpy(part), self._dense, *self._whole, self._first_code)
            else:
                dense = torch.from_numpy(self._dense.numpy()[part])
                drawn = _as_tensors(self._codes.take(part))
                ops.gather_rows(to, torch.arange(len(part)), dense, *drawn, self._first_code)
            self._codes.let_go()

    def _gather_there(self, rows: np.ndarray, out: Tensor) -> None:
        """Only what the rows hold is moved, and spread out on the device."""
        drawn, dense = self._codes.take(rows), self._dense[torch.from_numpy(rows)].to(out.device)
        after = dense.shape[1] - self._first_code
        out.zero_()
        out[:, : self._first_code] = dense[:, : self._first_code]
        out[:, out.shape[1] - after :] = dense[:, self._first_code :]
        entries = drawn.row_of_entry() * out.shape[1] + drawn.positions + self._first_code
        out.view(-1)[torch.from_numpy(entries).to(out.device)] = 1.0


def _as_tensors(rows: CodeRows) -> tuple[Tensor, Tensor]:
    """Starts and positions, without a copy."""
    if rows.starts.flags.writeable and rows.positions.flags.writeable:  # all that was drawn, also in threads
        return torch.from_numpy(rows.starts), torch.from_numpy(rows.positions)
    with warnings.catch_warnings():  # filters are those of the process: not in a thread. Tensors stay as they are
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(rows.starts), torch.from_numpy(rows.positions)


class ChunkBuffer:
    """Memory of one chunk, which grows to the largest one that it held."""

    def __init__(self, *widths: int, device: torch.device):
        self._widths, self._device = widths, device
        self._parts = [torch.empty(0, width, device=device) for width in widths]

    def rows(self, count: int) -> list[Tensor]:
        """Tensors (count, width) for each width, with anything in them."""
        if count > len(self._parts[0]):
            self._parts = [torch.empty(count, width, device=self._device) for width in self._widths]
        return [part[:count] for part in self._parts]


@dataclass(frozen=True)
class TrainingData:
    """Records (N, F) and labels (N, K) one-hot, float32, and which rows each unit has."""

    records: RowSource
    labels: RowSource
    width: int
    n_labels: int
    index: UnitIndex
    rows_are_units: bool
    device: torch.device

    @classmethod
    def from_encoded(
        cls, encoded: EncodedRecords, index: UnitIndex, n_classes: int, conditional: bool, rows_are_units: bool,
        device: torch.device,
    ) -> "TrainingData":  # fmt: skip
        """Encoded records; those without codes move to the device, those with codes in the chunks that are drawn.

        Without a label K is 1; where the label is in the record K is 0.
        """
        dense = torch.from_numpy(encoded.dense)
        records: RowSource = DenseRows(dense.to(device))
        if encoded.codes is not None:
            records = CodedRows(dense, encoded.codes, encoded.first_code)
        if not conditional:
            labels = torch.zeros(len(dense), 0, device=device)
        elif encoded.labels is None:
            labels = torch.ones(len(dense), 1, device=device)
        else:
            labels = F.one_hot(torch.from_numpy(encoded.labels).to(device), n_classes).float()
        return cls(records, DenseRows(labels), encoded.width, labels.shape[1], index, rows_are_units, device)

    def buffer(self) -> ChunkBuffer:
        """Memory for `gather`."""
        return ChunkBuffer(self.width, self.n_labels, device=self.device)

    def cuts(self, units: np.ndarray) -> Iterator[Cut]:
        """The rows of the drawn units in chunks, cut between units; none if there are no rows."""
        rows, unit_of_row = self.index.rows_of(units)
        begin = 0
        while begin < len(rows):
            end = min(begin + MAX_CHUNK_ROWS, len(rows))
            if end < len(rows):  # go back to the last boundary between units, or forward if one unit fills a chunk
                while end > begin and unit_of_row[end] == unit_of_row[end - 1]:
                    end -= 1
                if end == begin:
                    end = begin + int((unit_of_row[begin:] == unit_of_row[begin]).sum())
            yield Cut(rows[begin:end], unit_of_row[begin:end])
            begin = end

    def gather(self, cut: Cut, buffer: ChunkBuffer) -> Chunk:
        """A chunk of these rows. Its records and labels lie in the buffer, and last until that is used again."""
        records, labels = buffer.rows(len(cut.rows))
        self.records.gather(cut.rows, records)
        self.labels.gather(cut.rows, labels)
        units = None if self.rows_are_units else torch.from_numpy(cut.units).to(self.device)
        return Chunk(records, labels, units)
