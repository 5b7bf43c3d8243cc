"""Fresh networks, and what was released before training told to those that use it: post-processing."""

import torch

from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.models import MakeNetworks, Networks, is_conditional
from dpcgan_fast.synthesis.releases import ReleasedFacts
from dpcgan_fast.train import TrainSettings


def fresh_networks(
    schema: Schema, settings: TrainSettings, device: torch.device, make: MakeNetworks
) -> tuple[RecordCodec, Networks]:
    """The codec of a complete schema of records and fresh networks for it."""
    codec = RecordCodec(schema, joint=not is_conditional(settings.preset))
    return codec, make(settings.preset, codec.blocks, codec.n_classes, settings.seed).to(device)


def start_networks(networks: Networks, codec: RecordCodec, settings: TrainSettings, released: ReleasedFacts) -> None:
    """Tells the networks how frequent codes and many categories are, where that was released."""
    names = [column.name for column in codec.schema.codes_columns()]
    counts = [count for name in names for count in released.code_counts.get(name) or [0.0]]
    networks.start_codes(torch.tensor(counts) / released.units(settings))
    rates = [released.category_rates.get(block.name) for block in codec.blocks if block.kind == "wide"]
    networks.start_categories([None if own is None else torch.tensor(own) for own in rates])
