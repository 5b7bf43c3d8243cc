"""What is refused before anything is taken from the data: by schema and settings alone, and by what cells say."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.schema import PRIVATE, Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.models import MakeNetworks, is_conditional, make_networks
from dpcgan_fast.synthesis.privacy_statement import unit_name
from dpcgan_fast.synthesis.releases import planned_releases
from dpcgan_fast.synthesis.starting import fresh_networks
from dpcgan_fast.synthesis.statistics import dry_statistics, releases_statistics, trains_for_clusters
from dpcgan_fast.train import TrainSettings
from dpcgan_fast.train.plan import BudgetPlan, make_plan
from dpcgan_fast.train.settings import CLUSTERS


@dataclass(frozen=True)
class RawTable:
    """The table as it was read, and the unit of each row."""

    table: pa.Table
    ids: np.ndarray | None
    where: str


def check_before_reading(
    schema: Schema, settings: TrainSettings, make: MakeNetworks = make_networks
) -> BudgetPlan:  # fmt: skip
    """Everything that can be refused without the data, and the budget plan. Raises InputError or PrivacyError."""
    check_schema(schema, settings, make)
    schema = schema.as_records()
    return make_plan(settings, planned_releases(schema, settings), unit_name(schema))


def check_schema(schema: Schema, settings: TrainSettings, make: MakeNetworks = make_networks) -> None:
    """Everything that can be refused without the data and the plan. Raises InputError."""
    schema.require_complete()
    if not schema.signals and all(column.name == schema.label for column in schema.columns):
        raise InputError("There is nothing beside the label", "schema, columns", "Name columns that are to be drawn.")
    _refuse_idle_constraints(schema)
    schema = schema.as_records()
    if not is_conditional(settings.preset) and schema.has_private_lists():
        raise InputError(
            "The published presets take records of a fixed length, so lists of categories and codes must be public",
            f"preset {settings.preset}",
            "Write the lists into the schema, or use preset auto.",
        )
    if settings.clusters != CLUSTERS[0]:
        _refuse_clusters(schema, settings)
    if settings.fit_steps and not releases_statistics(schema, settings):
        what = "There are no statistics that networks could be fitted to"
        raise InputError(what, f"fit_steps {settings.fit_steps}", "Leave it out: the networks are trained on the data.")
    if not schema.has_private_lists():
        _dry_networks(schema, settings, make)


def _refuse_clusters(schema: Schema, settings: TrainSettings) -> None:
    """The plan pays for one autoencoder: a second one, of another column, would be taken beyond what the run claims."""
    what = "There are no clusters of codes to find: rows are not drawn from statistics of codes"
    if trains_for_clusters(schema, settings):
        if len(schema.codes_columns()) == 1:
            return
        what = "An autoencoder finds the clusters of one column of codes, and there are several"
    raise InputError(what, f"clusters {settings.clusters}", "Leave it out.")


def _refuse_idle_constraints(schema: Schema) -> None:
    """A code that a public vocabulary lacks would imply nothing, and nobody would notice."""
    vocabularies = {c.name: c.vocabulary for c in schema.codes_columns() if isinstance(c.vocabulary, tuple)}
    for rule in schema.constraints:
        known = vocabularies.get(rule.columns[0])
        if rule.kind == "implies" and known is not None and not {rule.code, rule.implied} <= set(known):
            what = "A constraint names a code that the vocabulary lacks"
            raise InputError(what, f"schema, column {rule.columns[0]}", "Correct the constraint or the vocabulary.")


def _dry_networks(schema: Schema, settings: TrainSettings, make: MakeNetworks) -> None:
    """Refuses a preset that does not fit the schema before anything touches the data."""
    fresh_networks(_with_stand_ins(schema), settings, torch.device("cpu"), make)


def check_table(raw: RawTable, schema: Schema, settings: Sequence[TrainSettings]) -> None:
    """Reads every cell as its type says, and tries what the settings ask for, so that what fails does so before the
    budget is touched. Raises InputError."""
    records = schema.as_records()
    known = _with_stand_ins(records)
    RecordCodec(known).encode(raw.table, raw.where)
    if any(releases_statistics(records, one) for one in settings):
        dry_statistics(raw.table, known)


def _with_stand_ins(schema: Schema) -> Schema:
    """The schema with something in the place of what is private."""
    return schema.with_released(
        {c.name: (0.0, 1.0) for c in (*schema.columns, *schema.signals) if c.bounds == PRIVATE},
        {c.name: ("a", "b") for c in schema.columns if c.categories == PRIVATE},
        {c.name: ("a", "b") for c in schema.columns if c.vocabulary == PRIVATE},
        {c.name: () for c in schema.columns if c.quantiles == PRIVATE},
    )
