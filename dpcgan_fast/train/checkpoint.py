"""Checkpoints: one safetensors file each, whole or not at all, checked by its SHA-256 before use."""

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from dpcgan_fast.errors import InputError
from dpcgan_fast.files import write_whole

KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{9})-([0-9a-f]{16})\.safetensors")
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """Tensors, and JSON values: counters, the ledger's head, released facts."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def pack(tensors: dict[str, Tensor], values: dict[str, Any]) -> bytes:
    """Tensors and JSON values as the bytes of one safetensors file."""
    return safetensors.torch.save(tensors, metadata={"values": json.dumps(values, sort_keys=True)})


def unpack(content: bytes, where: str) -> Checkpoint:
    """What `pack` packed. Raises InputError if the bytes are something else."""
    try:
        (size,) = struct.unpack("<Q", content[:8])
        if size > _MAX_HEADER:
            raise ValueError("header too large")
        header = json.loads(content[8 : 8 + size])
        return Checkpoint(safetensors.torch.load(content), json.loads(header["__metadata__"]["values"]))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise InputError("The file is damaged", f"{where}: {type(error).__name__}", "Restore it from a copy.") from None


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_checkpoint(folder: Path, order: int, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint, then removes all but the newest `KEPT`. Raises MachineError if the disk is full.

    order: rises from one checkpoint of a run to the next
    """
    content = pack(checkpoint.tensors, checkpoint.values)
    path = folder / f"checkpoint-{order:09d}-{digest(content)[:16]}.safetensors"
    write_whole(path, content, private=True)
    for old in checkpoint_paths(folder)[:-KEPT]:
        old.unlink()
    return path


def checkpoint_paths(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first; other files, such as half-written ones, are passed over."""
    return sorted(path for path in folder.glob("checkpoint-*.safetensors") if _NAME.fullmatch(path.name))


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint. Raises InputError if it is not, bit by bit, what was written."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError("The checkpoint cannot be read", f"{path}: {type(error).__name__}", _DAMAGED) from None
    match = _NAME.fullmatch(path.name)
    if match is None or digest(content)[:16] != match[2]:
        raise InputError("The checkpoint is damaged: its checksum does not match", str(path), _DAMAGED)
    return unpack(content, str(path))


_DAMAGED = "Remove it to resume from the one before, or start a new run."
