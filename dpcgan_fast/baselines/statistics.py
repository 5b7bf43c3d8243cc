"""The statistics that training releases and synthetic rows are drawn from, where they tell more than networks learn.

They are parts of the baselines. Which ones, and whether any, is a rule of the schema alone. Source: measured on public
tables: with the whole epsilon, networks that were trained on the rows are no better than the tree of columns, or than
strengths and waves of a signal, on the three that are large enough to tell. Codes were measured on a made-up table
alone.
"""

from collections.abc import Mapping

import numpy as np

from dpcgan_fast.baselines.choice import COUNTED, MIXED, TREE, WAVES, Baseline, FittedBaseline
from dpcgan_fast.baselines.code_mixture import ClusterFinder, release_mixture
from dpcgan_fast.baselines.histograms import Classes, Histograms, has_cells
from dpcgan_fast.baselines.mixed_codes import MixedCodes, counts_alone
from dpcgan_fast.baselines.parts import KeptDrawn, KeptPart
from dpcgan_fast.baselines.signals import Waves
from dpcgan_fast.baselines.tree import MOST_COLUMNS, Tree
from dpcgan_fast.data.encoding import wide_codecs
from dpcgan_fast.data.public_cells import modelled_columns, without_codes
from dpcgan_fast.data.schema import Schema

STATISTICS = (
    "statistics"  # of their line in the ledger, and with which the source of rows begins that are drawn from them
)
ONE_COLUMN, CLASSES = "a histogram of the column", "class rates"
_RATES = "rates"


def has_statistics(schema: Schema) -> bool:
    """Whether rows of a schema of records are drawn from statistics; bounds and lists may still be private.

    Columns of codes with at most a label are; so are signals and up to 64 other columns, with at most a label. Not
    codes beside other columns, nor visits, nor public lists of more than 64 categories: nothing has been measured that
    would speak for these.
    """
    if schema.of_rows is not None or wide_codecs(schema):
        return False
    codes = len(schema.codes_columns())
    single = sum(column.name != schema.label for column in schema.columns) - codes
    if codes:
        return single + len(schema.signals) == 0
    return single <= MOST_COLUMNS and single + len(schema.signals) > 0


def statistics_for(schema: Schema, clusters: ClusterFinder = release_mixture) -> Baseline:
    """The statistics of a complete schema of records that `has_statistics`. clusters: what finds clusters of codes"""
    signals = {name for signal in schema.signals for name in signal.columns}
    others = [column for column in modelled_columns(without_codes(schema)) if column.name != schema.label]
    single = tuple(column for column in others if column.name not in signals and has_cells(column))
    parts: list[KeptPart] = [Waves(signal) for signal in schema.signals]
    parts += [MixedCodes(column, mixed=True, clusters=clusters) for column in schema.codes_columns()]
    if len(single) > 1:
        parts.insert(0, Tree(single))
    elif single:
        parts.insert(0, Histograms(single))
    names = [*([TREE] if len(single) > 1 else [ONE_COLUMN] if single else []), *([WAVES] if schema.signals else [])]
    names += [MIXED] if schema.codes_columns() else []
    return Baseline(" and ".join(names) or CLASSES, schema, tuple(parts) or (Classes(),))


def released_name(fitted: FittedBaseline) -> str:
    """What statistics that were just released came to: their name, or that people were too few for part of it."""
    return COUNTED if any(counts_alone(part) for part in fitted.parts) else fitted.name


def arrays_of(fitted: FittedBaseline) -> dict[str, np.ndarray]:
    """All numbers that rows are drawn from, by names that `restored` knows."""
    arrays = {_RATES: fitted.rates}
    for place, part in enumerate(fitted.parts):
        assert isinstance(part, KeptDrawn)
        arrays |= {f"{place}.{name}": values for name, values in part.arrays().items()}
    return arrays


def restored(statistics: Baseline, arrays: Mapping[str, np.ndarray], seeded: bool) -> FittedBaseline:
    """What `arrays_of` took apart; its mechanisms stand in the ledger. Raises KeyError or ValueError if it is not."""
    rates = arrays[_RATES]
    if rates.ndim != 1 or not (rates >= 0).all() or not np.isclose(rates.sum(), 1.0):
        raise ValueError("Expected rates of the classes that add up to 1.")
    parts = []
    for place, part in enumerate(statistics.parts):
        assert isinstance(part, KeptPart)
        first = f"{place}."
        own = {name.removeprefix(first): values for name, values in arrays.items() if name.startswith(first)}
        parts.append(part.restored(own))
    return FittedBaseline(statistics.name, statistics.schema, tuple(parts), rates, [], seeded)
