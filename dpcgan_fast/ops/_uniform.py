"""Uniform random numbers, many at once."""

import torch
from torch import Tensor

from dpcgan_fast.ops._backend import op


def uniform(*shape: int, randomness: torch.Generator) -> Tensor:
    """Numbers in [0, 1), multiples of 2^-24, as float32 of a shape, on the CPU alone.

    randomness: a generator on the CPU, which gives the key of a ChaCha20 stream; torch's own draws of so many numbers
                take five times as long
    """
    key = torch.randint(-(2**31), 2**31, (8,), generator=randomness).to(torch.int32)
    out = torch.empty(shape)
    op("uniform_")(out, key)
    return out
