"""Networks that start from paid statistics: fitted, for nothing, to rows that are drawn from these."""

import numpy as np
import pyarrow as pa
import torch

from dpcgan_fast.data.encoding import EncodedRecords, RecordCodec
from dpcgan_fast.data.record_codes import RecordCodes
from dpcgan_fast.data.units import UnitIndex
from dpcgan_fast.synthesis.sampling import Sampler
from dpcgan_fast.synthesis.statistics import statistics_of
from dpcgan_fast.train.data import TrainingData
from dpcgan_fast.train.free import train_free
from dpcgan_fast.train.session import Session

_TIMES = 3  # as many rows as there are units: of more the networks learn nothing that would show
_FEWEST, _MOST = 8192, 200_000


def fit_to_statistics(session: Session, codec: RecordCodec, units: float) -> None:
    """Trains the networks of a run on rows drawn from its statistics, without noise, clipping or ledger.

    units: public or as the run released it
    Formal guarantee: post-processing. Nothing is read but what was released; what the session has of the data stays
    untouched.
    """
    state, device = session.state, session.data.device
    seeded = session.settings.seed is not None
    statistics = statistics_of(state.released, codec.schema, seeded, session.where)
    # Orders hold when rows are drawn in the end: rows that meet them may be too rare to be drawn here.
    free = RecordCodec(codec.schema.model_copy(update={"constraints": ()}))
    sampler = Sampler(state.networks, free, state.rates, conditional=True, statistics=statistics)
    rows = int(min(_MOST, max(_FEWEST, _TIMES * units)))
    table = pa.concat_tables(sampler.batches(rows, {}, state.randomness))
    encoded = codec.encode(table, "rows drawn from statistics")
    if encoded.codes is not None:
        state.networks.start_codes(_code_rates(encoded, encoded.codes))
    index = UnitIndex.from_ids(None, encoded.kept, 1)
    data = TrainingData.from_encoded(
        encoded, index, codec.n_classes, conditional=True, rows_are_units=True, device=device
    )
    train_free(session, data)
    state.fitted = True


def _code_rates(encoded: EncodedRecords, codes: RecordCodes) -> torch.Tensor:
    """Shares of the records that have each code, (V,), in the order of a record."""
    count, width = len(encoded.dense), encoded.width - encoded.dense.shape[1]
    positions = codes.take(np.arange(count)).positions
    return torch.from_numpy(np.bincount(positions, minlength=width) / count).float()
