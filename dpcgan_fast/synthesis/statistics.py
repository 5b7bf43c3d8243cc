"""The statistics of a run: released once, kept in the run folder, and what its synthetic rows are drawn from."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dpcgan_fast.baselines import FittedBaseline, arrays_of, has_statistics, restored, statistics_for
from dpcgan_fast.data.dates import dates_of, with_days
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.models import is_conditional
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger
from dpcgan_fast.train import TrainSettings
from dpcgan_fast.train.plan import BudgetPlan

STATISTICS = "statistics"


def draws_from_statistics(schema: Schema, settings: TrainSettings) -> bool:
    """Whether a run releases statistics and draws its rows from them: a rule of schema and settings alone.

    schema: of records; bounds and lists may still be private
    """
    return settings.statistics and is_conditional(settings.preset) and has_statistics(schema)


def release_statistics(
    table: pa.Table, schema: Schema, plan: BudgetPlan, ledger: Ledger, key: NoiseKey, where: str
) -> dict[str, Tensor]:
    """Pays for the statistics of the training rows, and gives all numbers that rows are drawn from, by name.

    schema: complete, of records
    Formal guarantee: several Gaussian releases, some chosen by those before them, that together are as private as the
    one that the plan and the ledger name (arXiv 1905.02383, corollary 3.3).
    """
    mechanism = plan.mechanism(STATISTICS)
    seq = ledger.reserve(mechanism, key.key_id)
    fitted = statistics_for(schema).release(with_days(table, schema, where), mechanism.noise_multiplier, key)
    ledger.close(seq, 1)
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays_of(fitted).items()}


def statistics_of(tensors: Mapping[str, Tensor], schema: Schema, seeded: bool, where: str) -> FittedBaseline:
    """What `release_statistics` gave, to draw from. schema: complete, of records. Raises InputError if it is not."""
    try:
        return restored(statistics_for(schema), {name: own.numpy() for name, own in tensors.items()}, seeded)
    except (KeyError, ValueError, IndexError):
        what = "The statistics do not fit the schema"
        raise InputError(what, where, "Restore the run from a copy.") from None


def drawn_table(statistics: FittedBaseline, codec: RecordCodec, rows: int, label: int | None, seed: int) -> pa.Table:
    """Rows of the types that the networks' records are decoded to.

    label: the class of all rows, None to draw it
    """
    table = statistics.sample(rows, np.random.default_rng(seed), label)
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    columns |= dates_of(columns, [column for column in codec.schema.columns if column.type == "date"])
    return pa.table(columns).cast(codec.arrow_schema)
