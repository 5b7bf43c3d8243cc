"""The statistics of a run: released once, kept in the run folder, and what its synthetic rows are drawn from."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dpcgan_fast.baselines import (
    COUNTED,
    STATISTICS,
    FittedBaseline,
    arrays_of,
    has_statistics,
    released_name,
    restored,
    statistics_for,
)  # fmt: skip
from dpcgan_fast.baselines.code_mixture import ClusterFinder, release_mixture
from dpcgan_fast.baselines.parts import Drawn
from dpcgan_fast.data.column_codecs import NumericCodec, column_codec
from dpcgan_fast.data.dates import dates_of, with_days
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.models import is_conditional
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger, Mechanism
from dpcgan_fast.privacy.accountant import refuse_beyond_line
from dpcgan_fast.synthesis.code_autoencoder import AutoencoderClusters
from dpcgan_fast.train import TrainSettings
from dpcgan_fast.train.plan import BudgetPlan

CODE_AUTOENCODER = "autoencoder of codes"  # of its line in the ledger
CLUSTERS_BY_AUTOENCODER = ", clusters by an autoencoder"  # in words, where it was trained
OF_STATISTICS = (STATISTICS, CODE_AUTOENCODER)  # releases that are not made with the others
_DRY_ROWS = 64


def releases_statistics(schema: Schema, settings: TrainSettings) -> bool:
    """Whether a run releases statistics: a rule of schema and settings alone.

    schema: of records; bounds and lists may still be private
    """
    return settings.statistics and is_conditional(settings.preset) and has_statistics(schema)


def draws_from_statistics(schema: Schema, settings: TrainSettings) -> bool:
    """Whether its rows are drawn from statistics, and not from networks that are fitted to them. schema: of records"""
    return releases_statistics(schema, settings) and settings.fit_steps == 0


def trains_for_clusters(schema: Schema, settings: TrainSettings) -> bool:
    """Whether an autoencoder finds the clusters of codes of the statistics. schema: of records"""
    asked = settings.clusters == "autoencoder"
    return asked and releases_statistics(schema, settings) and bool(schema.codes_columns())


def release_statistics(
    table: pa.Table, schema: Schema, plan: BudgetPlan, ledger: Ledger, key: NoiseKey, seed: int | None, where: str
) -> tuple[dict[str, Tensor], str, list[Mechanism]]:
    """Pays for the statistics of the training rows; gives all numbers that rows are drawn from by name, in words what
    they are, and the Gaussian releases that the ledger's line stands for.

    schema: complete, of records
    seed:   of what an autoencoder that finds clusters needs beside noise; None for fresh draws
    Formal guarantee: several Gaussian releases, some of them and their shares chosen by those before, that together are
    as private as the one that the plan and the ledger name, see `baselines.budget.Budget`. An autoencoder's private
    steps have a line of their own. It is charged whether they were taken or not: where people are few they are not, and
    that is told from noisy numbers, so that what was spent is what was planned.
    """
    mechanism, encoder = plan.mechanism(STATISTICS), plan.release(CODE_AUTOENCODER)
    clusters = release_mixture if encoder is None else AutoencoderClusters(encoder, ledger, key, seed)
    seq = ledger.reserve(mechanism, key.key_id)
    fitted = unaccounted_statistics(table, schema, mechanism.noise_multiplier, key, where, clusters)
    ledger.close(seq, 1)
    refuse_beyond_line(fitted.mechanisms, mechanism, str(ledger.path))
    words = released_name(fitted)
    if encoder is not None and words == COUNTED:
        ledger.close(ledger.reserve(encoder, key.key_id), encoder.steps)
    elif encoder is not None:
        words += CLUSTERS_BY_AUTOENCODER
    arrays = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays_of(fitted).items()}
    return arrays, words, [replace(made, unit=mechanism.unit) for made in fitted.mechanisms]


def unaccounted_statistics(
    table: pa.Table, schema: Schema, noise_multiplier: float, key: NoiseKey, where: str,
    clusters: ClusterFinder = release_mixture,
) -> FittedBaseline:  # fmt: skip
    """As `release_statistics`, with no line in any ledger: whoever calls it accounts for it.

    schema: complete, of records; clusters: what finds clusters of codes
    Formal guarantee: as private as one Gaussian release of this noise multiplier, but for what `clusters` accounts for
    itself. Raises InputError if the table does not fit the schema.
    """
    placed = _placed(table, schema, where)
    return statistics_for(_of_places(schema), clusters).release(placed, noise_multiplier, key, where)


def paid_statistics(
    table: pa.Table, schema: Schema, noise_multiplier: float, key: NoiseKey, where: str
) -> tuple[tuple[Drawn, ...], list[Mechanism]]:
    """Takes from the data what `unaccounted_statistics` takes, and gives that alone, before anything is made of it."""
    return statistics_for(_of_places(schema)).paid(_placed(table, schema, where), noise_multiplier, key, where)


def dry_statistics(table: pa.Table, schema: Schema) -> None:
    """Releases and draws statistics of no rows, so that what fails because of the schema fails before it is paid for.

    schema: of records, with something in the place of what is private
    """
    fitted = unaccounted_statistics(table.slice(0, 0), schema, 0.0, NoiseKey(), "")
    drawn_table(fitted, RecordCodec(schema), _DRY_ROWS, None, 0)


def statistics_of(tensors: Mapping[str, Tensor], schema: Schema, seeded: bool, where: str) -> FittedBaseline:
    """What `release_statistics` gave, to draw from. schema: complete, of records. Raises InputError if it is not."""
    try:
        return restored(
            statistics_for(_of_places(schema)), {name: own.numpy() for name, own in tensors.items()}, seeded
        )
    except (KeyError, ValueError, IndexError, TypeError):
        what = "The statistics do not fit the schema"
        raise InputError(what, where, "Restore the run from a copy.") from None


def drawn_table(statistics: FittedBaseline, codec: RecordCodec, rows: int, label: int | None, seed: int) -> pa.Table:
    """Rows of the types that the networks' records are decoded to.

    label: the class of all rows, None to draw it
    """
    table = statistics.sample(rows, np.random.default_rng(seed), label)
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    columns |= {name: _numbers(column, columns[name]) for name, column in _scaled(codec.schema).items()}
    columns |= dates_of(columns, [column for column in codec.schema.columns if column.type == "date"])
    return pa.table(columns).cast(codec.arrow_schema)


def _scaled(schema: Schema) -> dict[str, NumericCodec]:
    """Codecs of the numbers that are not on a linear scale: their bins are of equal width on their own."""
    scaled = [c for c in schema.columns if c.type == "numeric" and c.scale != "linear" and c.name != schema.label]
    codecs = {column.name: column_codec(column, 0) for column in scaled}
    return {name: codec for name, codec in codecs.items() if isinstance(codec, NumericCodec)}


def _of_places(schema: Schema) -> Schema:
    """The schema with places in [0, 1] on its own scale for each number of `_scaled`, of records that are units if a
    unit's rows are one: a store has no column of units.
    """
    scaled = _scaled(schema)
    place = {"bounds": (0.0, 1.0), "scale": "linear", "quantiles": None, "integer": False}
    columns = tuple(c.model_copy(update=place) if c.name in scaled else c for c in schema.columns)
    return schema.model_copy(update={"columns": columns, "unit": None if schema.merges_rows else schema.unit})


def _placed(table: pa.Table, schema: Schema, where: str) -> pa.Table:
    """A table as `_of_places` has it, dates as days."""
    table = with_days(table, schema, where)
    for name, codec in _scaled(schema).items():
        records = np.zeros((table.num_rows, 2), np.float32)
        codec.encode(table[name], records, f"{where}, column {name}")
        places = pa.array(records[:, 0].astype(np.float64), mask=records[:, 1] > 0)
        table = table.set_column(table.column_names.index(name), name, places)
    return table


def _numbers(codec: NumericCodec, places: pa.Array) -> pa.Array:
    records = np.zeros((len(places), 2))
    records[:, 0] = places.fill_null(0.5).to_numpy(zero_copy_only=False)
    records[:, 1] = places.is_null().to_numpy(zero_copy_only=False)
    return codec.decode(records)
