"""Networks: the published presets, nets for signals, and nets for any other table. No module here knows of privacy."""

from collections.abc import Callable, Sequence

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.errors import InputError
from dpcgan_fast.models.auto import AutoNetworks as AutoNetworks
from dpcgan_fast.models.networks import Networks as Networks
from dpcgan_fast.models.networks import initial_weights as initial_weights
from dpcgan_fast.models.published import MIMIC, UCI, PublishedNetworks
from dpcgan_fast.models.sampling import sample_records as sample_records
from dpcgan_fast.models.signals import SignalNetworks

MakeNetworks = Callable[[str, Sequence[Block], int, int | None], Networks]  # as `make_networks`

_PUBLISHED = {"rdpcgan-uci": UCI, "rdpcgan-mimic": MIMIC}


def is_conditional(preset: str) -> bool:
    """Whether the label is a condition of the nets, or the last feature of the record."""
    return preset not in _PUBLISHED


def make_networks(preset: str, blocks: Sequence[Block], n_classes: int, seed: int | None = None) -> Networks:
    """Fresh networks for records with this layout; torch's global random state stays as it was.

    seed: of the initial weights; None for another draw every time

    Raises InputError if a published preset does not fit the record's length.
    """
    with initial_weights(seed):
        return _make_networks(preset, blocks, n_classes)


def _make_networks(preset: str, blocks: Sequence[Block], n_classes: int) -> Networks:
    if preset not in _PUBLISHED:
        one_signal = all(block.sample for block in blocks)
        return (SignalNetworks if one_signal else AutoNetworks)(blocks, n_classes)
    spec = _PUBLISHED[preset]
    length = blocks[-1].stop
    if length != spec.record_length:
        raise InputError(
            f"The preset takes records of length {spec.record_length}, but the schema gives {length}",
            f"preset {preset}",
            "Use preset auto, which fits any table.",
        )
    return PublishedNetworks(spec)
