"""Memory of per-sample gradients, used again from step to step.

The system clears fresh memory page by page, which takes longer than to write it.
"""

import threading
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_MOST_BYTES = 2**29  # kept for later, in all
_LEAST_BYTES = 2**20  # below, memory comes from torch's own store
_ROOM = 1.25  # Poisson-drawn batches differ in size

_spare: list[Tensor] = []
# Not by address: memory that was lent and let go is soon another tensor's.
_lent: set[StorageWeakRef] = set()
_lock = threading.Lock()


def borrow(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor of this shape, of the dtype and on the device of `like`, with anything in it."""
    numel = 1
    for size in shape:
        numel *= size
    needed = numel * like.element_size()
    if like.device.type != "cpu" or needed < _LEAST_BYTES:
        return like.new_empty(shape)
    with _lock:
        fitting = [i for i, block in enumerate(_spare) if block.numel() >= needed]
        smallest = min(fitting, key=lambda i: _spare[i].numel(), default=None)
        block = torch.empty(int(needed * _ROOM), dtype=torch.uint8) if smallest is None else _spare.pop(smallest)
        _lent.difference_update([lent for lent in _lent if lent.expired()])
        _lent.add(StorageWeakRef(block.untyped_storage()))
    return block[:needed].view(like.dtype).view(*shape)


def give_back(tensors: Iterable[Tensor]) -> None:
    """Keeps the memory of tensors that `borrow` gave and that nothing refers to any more; of others, nothing."""
    large = [tensor for tensor in tensors if tensor.numel() * tensor.element_size() >= _LEAST_BYTES]
    if not large:
        return
    with _lock:
        for tensor in large:
            storage = tensor.untyped_storage()
            lent = StorageWeakRef(storage)
            if lent in _lent:
                _lent.remove(lent)
                _spare.append(torch.empty(0, dtype=torch.uint8).set_(storage))
        _spare.sort(key=lambda block: block.numel())
        while sum(block.numel() for block in _spare) > _MOST_BYTES:
            _spare.pop(0)


def drop_spare() -> None:
    """Lets go of what is kept."""
    with _lock:
        _spare.clear()
