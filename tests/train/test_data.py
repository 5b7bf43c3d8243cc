"""Training data: chunks are cut between units and lose no row."""

import numpy as np
import pytest
import torch

from dpcgan_fast.data import record_codes
from dpcgan_fast.data.code_rows import CodeRows
from dpcgan_fast.data.encoding import EncodedRecords
from dpcgan_fast.data.record_codes import CodesPart, RecordCodes
from dpcgan_fast.data.units import UnitIndex
from dpcgan_fast.train import data as train_data
from dpcgan_fast.train.data import CodedRows, TrainingData


def training_data(units, rows_are_units=False, labels=None, conditional=True):
    units = np.asarray(units)
    records = np.arange(len(units), dtype=np.float32)[:, None]
    encoded = EncodedRecords(records, labels, np.ones(len(units), bool), None, records.shape[1], records.shape[1])
    index = UnitIndex.from_ids(None if rows_are_units else units, encoded.kept, 100)
    return TrainingData.from_encoded(encoded, index, 3, conditional, rows_are_units, torch.device("cpu"))


def chunks_of(data, units):
    return [data.gather(cut, data.buffer()) for cut in data.cuts(np.asarray(units, dtype=np.int64))]


def units_of(chunk):
    assert chunk.units is not None
    return chunk.units.tolist()


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_chunks_hold_whole_units_and_all_rows(monkeypatch, limit):
    monkeypatch.setattr(train_data, "MAX_CHUNK_ROWS", limit)
    units = [0, 0, 1, 2, 2, 2, 2, 3, 4, 4]
    data = training_data(units)
    chunks = chunks_of(data, [0, 2, 3, 4])
    seen = torch.cat([chunk.records[:, 0] for chunk in chunks]).tolist()
    assert sorted(seen) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    ids = [set(units_of(chunk)) for chunk in chunks]
    assert sum(len(i) for i in ids) == len(set().union(*ids)) == 4, "no unit is in two chunks"
    for chunk in chunks:
        assert len(chunk.records) <= limit or len(set(units_of(chunk))) == 1


def test_rows_that_are_units_need_no_ids():
    chunks = chunks_of(training_data(np.arange(5), rows_are_units=True), [1, 3])
    assert chunks[0].units is None
    assert chunks[0].records[:, 0].tolist() == [1, 3]


def test_an_empty_draw_has_no_chunks():
    assert chunks_of(training_data([0, 1]), []) == []


def test_labels_are_one_hot_or_one_class_or_nothing():
    labels = np.array([2, 0], dtype=np.int64)
    (chunk,) = chunks_of(training_data([0, 1], labels=labels), [0, 1])
    assert chunk.labels.tolist() == [[0, 0, 1], [1, 0, 0]]
    (chunk,) = chunks_of(training_data([0, 1]), [0, 1])
    assert chunk.labels.tolist() == [[1], [1]]
    (chunk,) = chunks_of(training_data([0, 1], labels=labels, conditional=False), [0, 1])
    assert chunk.labels.shape == (2, 0)


def test_a_buffer_is_used_again_and_grows():
    data = training_data(np.arange(9), rows_are_units=True)
    buffer = data.buffer()
    many, few, more = (next(data.cuts(np.arange(first, last))) for first, last in ((0, 3), (4, 6), (1, 9)))
    first = data.gather(many, buffer).records
    second = data.gather(few, buffer).records
    assert second.data_ptr() == first.data_ptr()
    assert second[:, 0].tolist() == [4, 5]
    assert data.gather(more, buffer).records[:, 0].tolist() == list(range(1, 9))


def test_pages_of_a_mapped_file_are_let_go_of_every_few_rows(monkeypatch):
    starts, positions = np.arange(0, 11, 2), np.array([0, 3, 1, 2, 0, 1, 2, 3, 0, 2], np.int32)
    for values in (starts, positions):
        values.setflags(write=False)  # as those of a map are, and nobody is warned
    rows = CodedRows(torch.zeros(5, 0), RecordCodes((CodesPart(CodeRows(starts, positions)),)), 0)
    let_go = []
    monkeypatch.setattr(train_data, "_MAPPED_ROWS", 2)
    monkeypatch.setattr(record_codes, "let_go", lambda values: let_go.append(values is positions))
    out = torch.empty(3, 4)
    for expected in (2, 4):
        rows.gather(np.array([4, 0, 1]), out)
        assert out.tolist() == [[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0]]
        assert let_go == [True] * expected
