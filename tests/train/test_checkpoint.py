"""Checkpoints are whole and bit for bit what was written, or they are refused."""

import json
import os

import pytest
import torch

from dpcgan_fast.errors import InputError, MachineError
from dpcgan_fast.train.checkpoint import KEPT, Checkpoint, checkpoint_paths, read_checkpoint, unpack, write_checkpoint

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.zeros(0)}
VALUES = {"steps": {"critic": 4}, "rates": [0.5, 0.5], "nothing": None}


def test_round_trip(tmp_path):
    path = write_checkpoint(tmp_path, 4, Checkpoint(TENSORS, VALUES))
    read = read_checkpoint(path)
    assert read.values == VALUES
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_newest_are_kept_in_order(tmp_path):
    for order in (100, 200, 1000, 20_000):
        write_checkpoint(tmp_path, order, Checkpoint(TENSORS, {"order": order}))
    (tmp_path / ".checkpoint-1.partial").write_text("half")
    paths = checkpoint_paths(tmp_path)
    assert len(paths) == KEPT
    assert [read_checkpoint(path).values["order"] for path in paths] == [1000, 20_000]


def test_every_flipped_bit_is_noticed(tmp_path):
    path = write_checkpoint(tmp_path, 1, Checkpoint(TENSORS, VALUES))
    content = path.read_bytes()
    for offset in range(0, len(content), 5):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << (offset % 8)
        path.write_bytes(bytes(flipped))
        with pytest.raises(InputError, match="The checkpoint is damaged"):
            read_checkpoint(path)


@pytest.mark.parametrize("size", [0, 4, 8, 100])
def test_a_truncated_file_is_noticed(tmp_path, size):
    path = write_checkpoint(tmp_path, 1, Checkpoint(TENSORS, VALUES))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="The checkpoint is damaged"):
        read_checkpoint(path)


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x00" * 7, (2**40).to_bytes(8, "little") + b"{}", header(b"{}"), header(b"[]"), header(b"[" * 50_000),
        header(b'{"a":{"dtype":"F32","shape":[4194305,4194305],"data_offsets":[0,4]},"__metadata__":{"values":"{}"}}'),
        header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},"__metadata__":{"values":"{}"}}') + b"\0" * 12,
        header(json.dumps({"__metadata__": {"values": "no json"}}).encode()),
    ],
)  # fmt: skip
def test_hostile_files_are_refused(content):
    with pytest.raises(InputError, match="The file is damaged"):
        unpack(content, "model.safetensors")


def test_a_full_disk_leaves_the_older_checkpoints_and_nothing_half_written(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, Checkpoint(TENSORS, VALUES))
    before = sorted(path.name for path in tmp_path.iterdir())

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MachineError, match="The disk is full"):
        write_checkpoint(tmp_path, 2, Checkpoint(TENSORS, VALUES))
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert read_checkpoint(checkpoint_paths(tmp_path)[-1]).values == VALUES
