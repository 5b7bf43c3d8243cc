"""Keys of the noise generator, and Gaussian noise."""

import hashlib
import math
import os
import secrets
import threading
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from dpcgan_fast.ops._backend import op
from dpcgan_fast.ops._reference import NORMALS_PER_BLOCK

KEY_BYTES = 32
SEEDED_KEY_ID = "seeded"
_LAST_COUNTER = 2**63 - 1


class NoiseKey:
    """A 256-bit ChaCha20 key and the position in its stream; the position only moves forward.

    Without a seed the key comes from the operating system and is held in memory only: it can be neither copied nor
    pickled nor used after a fork, since each of these would draw the same noise twice. With a seed the stream is
    reproducible, and then whoever knows the seed can subtract the noise: such noise protects nobody.

    seed:     None, or any int
    position: first block to use; only for a seeded key, to continue a reproducible run
    """

    __slots__ = ("_lock", "_pid", "_position", "_words", "key_id", "seeded")

    def __init__(self, seed: int | None = None, position: int = 0):
        if seed is None and position != 0:
            raise ValueError("Expected position 0 for a key without a seed: a secret stream is never continued.")
        self.seeded: bool = seed is not None
        if seed is None:
            key = secrets.token_bytes(KEY_BYTES)
            self.key_id: str = secrets.token_hex(8)
        else:
            key = derive_key(str(seed).encode(), "seeded noise")
            self.key_id = SEEDED_KEY_ID
        self._words = torch.frombuffer(bytearray(key), dtype=torch.int32)
        self._position = position
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def position(self) -> int:
        """Next unused block of the stream."""
        return self._position

    def take(self, blocks: int) -> tuple[Tensor, int]:
        """Reserves `blocks` blocks: the key as (8,) int32 and the first block.

        They are never given out again, to no thread. Raises RuntimeError while a graph is traced, whereupon
        torch.compile leaves the function that draws noise to Python.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            raise RuntimeError(
                "A noise key cannot be used in a traced graph: it would hold key and position as constants, and draw "
                "the same noise at every call. Draw noise outside of it."
            )
        if not self.seeded and os.getpid() != self._pid:
            raise RuntimeError(
                "This noise key was made before a fork; two processes would draw the same noise, which cancels in "
                "their difference. Make a key in each process with dpcgan_fast.privacy.noise_key()."
            )
        with self._lock:
            first = self._position
            if not 0 <= blocks <= _LAST_COUNTER - first:
                raise ValueError(f"Expected 0 <= blocks <= {_LAST_COUNTER - first}, got {blocks}.")
            self._position = first + blocks
        return self._words.clone(), first

    def add_to(self, tensors: Sequence[Tensor], std: float) -> None:
        """Adds the stream's next normals times std, in place: what `gaussian_noise_` does once it has looked at std."""
        words, counter = self.take(sum(math.ceil(tensor.numel() / NORMALS_PER_BLOCK) for tensor in tensors))
        op("gaussian_noise_")(list(tensors), std, words, counter)

    def __repr__(self) -> str:
        return f"NoiseKey(key_id={self.key_id!r}, position={self._position}, seeded={self.seeded})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A NoiseKey cannot be copied or pickled: the copy would draw the same noise again.")


def derive_key(secret: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose from a secret; keys of different purposes are independent. BLAKE2b, RFC 7693."""
    return hashlib.blake2b(purpose.encode(), key=secret[:64], digest_size=KEY_BYTES, person=b"dpcgan_fast").digest()


def gaussian_noise_(tensors: Sequence[Tensor], std: float, key: NoiseKey) -> None:
    """Adds independent N(0, std^2) noise to every element, in place.

    tensors: contiguous, float32 or float64, without requires_grad
    std:     noise_multiplier * max_grad_norm, in gradient units; 0 adds nothing and leaves the tensors as they are
    key:     from `dpcgan_fast.privacy.noise_key()`; it advances, so that two calls never repeat

    The sum value + noise is formed in double and rounded once to multiples of 2^(floor(log2(std)) - 20), a public
    grid. That the grid hides the double addition is an assumption (Mironov, CCS 2012), not a proof.
    Formal guarantee: no two calls, and no two elements of one call, use the same part of the stream.
    Raises ValueError if std is negative or not finite, RuntimeError for tensors that do not fit.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"Expected a finite std >= 0, got {std}.")
    if std > 0:
        key.add_to(list(tensors), std)
