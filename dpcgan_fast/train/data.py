"""Encoded training data: records on the device, grouped by unit."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpcgan_fast.data.encoding import EncodedRecords
from dpcgan_fast.data.units import UnitIndex

MAX_CHUNK_ROWS = 1024  # rows of one forward; larger draws are taken in chunks, which changes nothing but memory


@dataclass(frozen=True)
class Chunk:
    """Rows of whole units. records: (B, F); labels: (B, K) one-hot; units: (B,) int64, or None if rows are units."""

    records: Tensor
    labels: Tensor
    units: Tensor | None


@dataclass(frozen=True)
class TrainingData:
    """Records (N, F) float32 and labels (N, K) one-hot on the device, and which rows each unit has."""

    records: Tensor
    labels: Tensor
    index: UnitIndex
    rows_are_units: bool

    @classmethod
    def from_encoded(
        cls, encoded: EncodedRecords, index: UnitIndex, n_classes: int, conditional: bool, rows_are_units: bool,
        device: torch.device,
    ) -> "TrainingData":  # fmt: skip
        """Moves encoded records to the device. Without a label K is 1; where the label is in the record K is 0."""
        records = torch.from_numpy(encoded.records).to(device)
        if not conditional:
            labels = torch.zeros(len(records), 0, device=device)
        elif encoded.labels is None:
            labels = torch.ones(len(records), 1, device=device)
        else:
            labels = F.one_hot(torch.from_numpy(encoded.labels).to(device), n_classes).float()
        return cls(records, labels, index, rows_are_units)

    def chunks(self, units: np.ndarray) -> list[Chunk]:
        """The rows of the drawn units, cut between units; an empty list if there are none."""
        rows, unit_of_row = self.index.rows_of(units)
        chunks: list[Chunk] = []
        begin = 0
        while begin < len(rows):
            end = min(begin + MAX_CHUNK_ROWS, len(rows))
            if end < len(rows):  # go back to the last boundary between units, or forward if one unit fills a chunk
                while end > begin and unit_of_row[end] == unit_of_row[end - 1]:
                    end -= 1
                if end == begin:
                    end = begin + int((unit_of_row[begin:] == unit_of_row[begin]).sum())
            index = torch.from_numpy(rows[begin:end]).to(self.records.device)
            ids = None if self.rows_are_units else torch.from_numpy(unit_of_row[begin:end]).to(self.records.device)
            chunks.append(Chunk(self.records[index], self.labels[index], ids))
            begin = end
        return chunks
