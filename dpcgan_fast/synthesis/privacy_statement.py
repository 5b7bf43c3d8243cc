"""What a run says about privacy: the dictionary of `DPCGAN.privacy()` and the privacy card."""

import math
from collections.abc import Sequence
from typing import Any

from dpcgan_fast.data.public_cells import NUMERIC_BINS
from dpcgan_fast.data.schema import PRIVATE, Column, Schema
from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.privacy import Mechanism, PrivacySpent, release_shares
from dpcgan_fast.privacy.accountant import refuse_beyond_line
from dpcgan_fast.privacy.card import SETTINGS_ASSUMPTION, CardFacts, privacy_card
from dpcgan_fast.privacy.ledger import LedgerLine, charged, seeded
from dpcgan_fast.synthesis.choice import Choice
from dpcgan_fast.synthesis.releases import ReleasedFacts
from dpcgan_fast.synthesis.statistics import CLUSTERS_BY_AUTOENCODER, CODE_AUTOENCODER, OF_STATISTICS, STATISTICS
from dpcgan_fast.train.plan import TRAINED_RELEASE_SHARE, BudgetPlan, kept_for_steps
from dpcgan_fast.train.settings import TrainSettings


def unit_name(schema: Schema) -> str:
    """The unit as the ledger names it: the unit column, or "row"."""
    return schema.unit if schema.unit is not None else "row"


def unit_in_words(schema: Schema) -> str:
    """What one unit is, in words."""
    if schema.unit is None:
        return (
            "one row of the table. Rows of one person, should there be several, are not protected together: the "
            "guarantee is then for each row, and not for the person"
        )
    if schema.visits is not None:
        caps = "".join(
            f", with at most {column.max_codes} codes of {column.name}{' a visit' * schema.visits.differs(column.name)}"
            for column in schema.codes_columns()
        )
        return (
            f"one person: all rows with one value of `{schema.unit}` are one record of at most "
            f"{schema.visits.n_slots} visits{caps}"
        )
    if schema.merges_rows:
        rows = "all rows" if schema.max_rows_per_unit == 1 else f"the first {schema.max_rows_per_unit} rows"
        caps = ", ".join(f"{column.max_codes} of {column.name}" for column in schema.codes_columns())
        return (
            f"one person: {rows} with one value of `{schema.unit}` are one record, with at most so many codes: {caps}"
        )
    used = "one row is" if schema.max_rows_per_unit == 1 else f"at most {schema.max_rows_per_unit} rows are"
    return f"one person: all rows with one value of `{schema.unit}`, of which {used} used"


def _public_facts(schema: Schema) -> list[str]:
    facts = [f"{len(schema.column_names())} columns, their names, order and types"]
    given = [c.name for c in schema.columns if c.type in ("numeric", "date") and c.bounds != PRIVATE]
    given += [s.name for s in schema.signals if s.bounds != PRIVATE]
    if given:
        facts.append(f"bounds of {len(given)} numeric columns, dates or signals")
    ranked = [c.name for c in schema.columns if isinstance(c.quantiles, tuple)]
    if ranked:
        facts.append(f"quantiles of {len(ranked)} columns")
    lists = [c.name for c in schema.columns if isinstance(c.categories, tuple)]
    if lists:
        facts.append(f"categories of {len(lists)} columns")
    vocabularies = [c for c in schema.codes_columns() if c.vocabulary != PRIVATE]
    facts += [f"vocabulary of {c.name}: {len(c.vocabulary or ()):,} codes" for c in vocabularies]
    facts += [f"at most {c.max_codes} codes of {c.name} a {_holder(schema, c)}" for c in schema.codes_columns()]
    if schema.visits is not None:
        facts.append(f"at most {schema.visits.n_slots} visits a person, and which columns differ between visits")
        if schema.visits.max_gap is not None:
            facts.append(f"gaps between visits of at most {schema.visits.max_gap:g}")
        if schema.visits.key is not None:
            facts.append(f"rows of one `{schema.visits.key}` are one visit")
        if schema.visits.bins is not None:
            facts.append(f"rows in one bin of time are one visit, and bins are {schema.visits.bins.width:g} wide")
        if schema.visits.from_first:
            facts.append("times are counted from a person's first visit")
    if schema.constraints:
        facts.append(f"{len(schema.constraints)} constraints; synthetic rows alone are held to them")
    if schema.n_units is not None:
        facts.append(f"number of units: {schema.n_units}")
    label = schema.label_column()
    if label is not None and label.rates is not None:
        facts.append("class rates of the label: " + ", ".join(f"{rate:g}" for rate in label.rates))
    return facts


def _holder(schema: Schema, column: Column) -> str:
    return "visit" if schema.visits is not None and schema.visits.differs(column.name) else "record"


def drawn_from(released: ReleasedFacts, settings: TrainSettings) -> str:
    """Where synthetic rows come from: "networks", or "statistics: " and their name, or networks fitted to these."""
    if not released.statistics:
        return "networks"
    fitted = "networks fitted to " if settings.fit_steps else ""
    return f"{fitted}{STATISTICS}: {released.statistics}"


def _setting_lines(
    settings: TrainSettings, plan: BudgetPlan, released: ReleasedFacts, choice: Choice | None
) -> list[str]:
    lines = [f"preset {settings.preset}", f"max_grad_norm {plan.critic.max_grad_norm:g}"]
    for mechanism, batch in (
        (plan.autoencoder, settings.autoencoder_batch),
        (plan.critic, settings.critic_batch),
    ):
        if mechanism.steps == 0:
            continue
        units = "that rate times the paid number of units" if batch is None else f"{batch} units"
        lines.append(
            f"{mechanism.mechanism}: {mechanism.steps} steps, sample rate {mechanism.sample_rate:.6g}, expected batch "
            f"{units}"
        )
    if settings.paired_fakes:
        lines.append("the paper's joint form: a fake inside each unit's loss (paired_fakes)")
    own = [release for release in plan.releases if release.mechanism not in OF_STATISTICS]
    if own:
        lines.append(
            f"{'releases' if len(own) > 1 else own[0].mechanism} before training: {settings.release_share:.3g} "
            + ("of epsilon" if choice is None or choice.plan is None else "of what a run was planned with")
        )
    if len(own) < len(plan.releases):
        share = f"{100 * kept_for_steps(settings):g}%"
        trains = plan.autoencoder.steps + plan.critic.steps > 0
        rest = f"{share} is kept for private steps" if trains else f"{share} is left unspent"
        lines.append(
            "statistics: nearly all that is left. In units of 1 / (noise multiplier)^2, of which epsilon and delta "
            f"allow one Gaussian release a fixed amount, {rest}. "
            "The statistics are several Gaussian releases that together cost what their one line in the ledger says"
        )
    encoder = plan.release(CODE_AUTOENCODER)
    if encoder is not None and released.statistics.endswith(CLUSTERS_BY_AUTOENCODER):
        lines.append(
            f"{encoder.mechanism}: {encoder.steps} steps, sample rate {encoder.sample_rate:.6g}, noise multiplier "
            f"{encoder.noise_multiplier:g}, {TRAINED_RELEASE_SHARE:.0%} of that amount"
        )
    elif encoder is not None:
        lines.append(
            f"{encoder.mechanism}: not trained, since people are few by noisy numbers; its {TRAINED_RELEASE_SHARE:.0%} "
            "of that amount is charged all the same"
        )
    lines.append(f"synthetic rows are drawn from {drawn_from(released, settings)}")
    if settings.fit_steps:
        lines.append(
            f"networks fitted to rows drawn from the statistics, by {settings.fit_steps} steps of the critic and twice "
            "as many of the autoencoder, which cost nothing"
        )
    if plan.autoencoder.steps + plan.critic.steps:
        lines.append(f"one noise multiplier for autoencoder and critic: {plan.noise_multiplier:g}, found by bisection")
    return lines


def _warnings(settings: TrainSettings, plan: BudgetPlan, released: ReleasedFacts) -> tuple[str, ...]:
    return (*_large_delta(settings, released), *_few_units(settings, plan, released))


def _large_delta(settings: TrainSettings, released: ReleasedFacts) -> tuple[str, ...]:
    if released.n_units is None or settings.delta <= 1 / released.n_units:
        return ()
    return (
        f"delta {settings.delta:g} is greater than 1 over the estimated number of units, {released.n_units:.1f}: "
        "publishing one person's record at random would meet such a guarantee.",
    )


def _few_units(settings: TrainSettings, plan: BudgetPlan, released: ReleasedFacts) -> tuple[str, ...]:
    """From the public or paid number of units and the noise alone, so that it costs nothing.

    Statistics see a number in 20 bins. Of fewer units than 20 times the noise multiplier an average bin holds less than
    one standard deviation of its noise, even if all of the main release went to a single column. Networks learn from
    the critic's steps, which tell together as much of a direction that all gradients share as one release with a noise
    multiplier of sigma / (q sqrt(T)).
    """
    units = settings.n_units if settings.n_units is not None else released.n_units  # none where there is no run yet
    main = plan.release(STATISTICS) or plan.critic
    if units is None or main.steps == 0:
        return ()
    noise = main.noise_multiplier / (main.sample_rate * math.sqrt(main.steps))
    if units >= NUMERIC_BINS * noise:
        return ()
    return (
        f"the number of units, {units:.1f}, is less than {NUMERIC_BINS} times {noise:.3g}, the noise of what rows are "
        "made from: synthetic rows can be little but noise. More units or a greater epsilon would tell more.",
    )


def statement(
    settings: TrainSettings, schema: Schema, plan: BudgetPlan, released: ReleasedFacts, lines: list[LedgerLine],
    spent: PrivacySpent, stopped: str, choice: Choice | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The privacy of a run as JSON values; `lines` are the ledger's, `schema` is the user's.

    Of a private selection the whole is stated, and what the run itself took is listed beneath it.
    """
    mechanisms = charged(lines) + ([] if choice is None else [*choice.run])
    facts = CardFacts(
        planned_epsilon=settings.epsilon,
        delta=settings.delta,
        spent=spent,
        unit=unit_in_words(schema),
        mechanisms=mechanisms,
        public=_public_facts(schema),
        paid=released.sentences(),
        settings=_setting_lines(settings, plan, released, choice),
        seeded=settings.seed is not None or seeded(lines),
        stopped=stopped,
        warnings=_warnings(settings, plan, released),
        chosen=() if choice is None else choice.sentences,
        settings_assumption=SETTINGS_ASSUMPTION if choice is None else choice.assumption,
        composed=plan.release(STATISTICS) if released.parts else None,
        releases=tuple(released.parts),
    )
    return {
        "private": facts.private,
        "epsilon": number(settings.epsilon),
        "delta": settings.delta,
        "epsilon_spent": number(spent.epsilon),
        "epsilon_rdp": number(spent.epsilon_rdp),
        "epsilon_pld": number(spent.epsilon_pld),
        "accountant": spent.accountant,
        "pld_interval": spent.pld_interval,
        "unit": facts.unit,
        "drawn_from": drawn_from(released, settings),
        "mechanisms": [m.to_dict() for m in mechanisms],
        "statistics": [part.to_dict() for part in released.parts],
        "seeded": facts.seeded,
        "public": facts.public,
        "paid": facts.paid,
        "settings": facts.settings,
        "tuning": None if choice is None else choice.facts,
        "warnings": [*facts.warnings],
        "notes": [*facts.warnings, *facts.assumptions, *facts.chosen, *([stopped] if stopped else [])],
        "card": privacy_card(facts),
    }


def composed_releases(released: Any, taken: Sequence[Mechanism], where: str) -> list[dict[str, Any]]:
    """The releases that the statistics' line stands for, as JSON values, each with its "share" of that line; none where
    there are no statistics, or no noise.

    released: of a run's configuration, from the file `where`
    taken:    what the run's ledger says that it took, inside a private selection or not
    Raises PrivacyError if they cost more than the line, or if the ledger lacks it; InputError if the list is damaged.
    """
    try:
        releases = ReleasedFacts.from_dict(released).parts
        line = next((one for one in taken if one.mechanism == STATISTICS), None)
        if not releases or (line is not None and line.noise_multiplier == 0):
            return []
        if line is None:
            how = "Restore config.json and the ledger; what was spent cannot be told otherwise."
            raise PrivacyError("The ledger lacks the line of statistics that the run has", where, how)
        shares = release_shares(releases, line)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "The run's list of releases is damaged", f"{where}: {type(error).__name__}", "Restore the file."
        ) from None
    refuse_beyond_line(releases, line, where)
    return [{**one.to_dict(), "share": share} for one, share in zip(releases, shares, strict=True)]


def number(value: float) -> float | str:
    """A JSON number, or "inf"."""
    return "inf" if math.isinf(value) else value
