"""The search on a public table, for which nothing is paid; then one training on the data with the whole budget."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from dpcgan_fast.data.datasets import train_test_split
from dpcgan_fast.data.reading import TableSource, column_names, read_table
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.privacy import Mechanism, noise_key
from dpcgan_fast.synthesis import DPCGAN, FitHooks, checks, fitting
from dpcgan_fast.synthesis.choice import Choice
from dpcgan_fast.tuning.candidates import Candidate, Candidates
from dpcgan_fast.tuning.scoring import check_label, judge_of, noisy_score, score_mechanism
from dpcgan_fast.tuning.workplace import check_stop, destroy, publish, workplace

PUBLIC_SEARCH = "public data"


def search_on_public(
    source: TableSource, public: str | Path, schema: Schema, epsilon: float, delta: float, candidates: Candidates,
    out: str | Path, *, device: str = "auto", seed: int | None = None, hooks: FitHooks | None = None,
    say: Callable[[str], None] | None = None,
) -> DPCGAN:  # fmt: skip
    """Trains every candidate once on a public table, and the best one on the data at the full epsilon and delta.

    public: CSV, Parquet or a folder of either, with the schema's columns. The user vouches that it is public: nothing
            that is done with it is paid for. Four fifths of its people are trained on, with the noise that epsilon
            asks for there, and the others judge
    say:    told that the search begins, once the table was read, and how each candidate did

    Formal guarantee: that of `DPCGAN.fit`, as far as the public table is one.
    Raises what `DPCGAN.fit` raises, InputError for a table or candidates that do not fit; StoppedError after a signal,
    when all is removed and nothing was released.
    """
    hooks = hooks if hooks is not None else FitHooks()
    target = fitting.pick_device(device)
    check_label(schema)
    candidates.check(schema, epsilon, delta)
    wanted = [candidate.settings(schema, epsilon, delta, seed) for candidate in candidates.each]
    for settings in wanted:
        checks.check_before_reading(schema, settings)
    with workplace(out) as work:
        # What the run would refuse of the data is refused before the search, which may take hours.
        checks.check_table(fitting.read_raw(source, schema, FitHooks(stop=hooks.stop)), schema, wanted)
        pick = _best(public, schema, epsilon, delta, candidates, work, device, seed, hooks, say)
        choice = _choice(Path(public).absolute().name, candidates.each[pick], len(candidates.each))
        run = work / "run"
        fitting.start(source, schema, wanted[pick], run, target, hooks, lambda _: None, choice=choice)
        check_stop(hooks.stop, out)
        publish(run, out)
    return DPCGAN.load(out, device)


def _best(
    public: str | Path, schema: Schema, epsilon: float, delta: float, candidates: Candidates, work: Path, device: str,
    seed: int | None, hooks: FitHooks, say: Callable[[str], None] | None,
) -> int:  # fmt: skip
    """Place of the candidate whose run on the public table scores best, of equal ones the first."""
    train, judged = _split(public, schema)
    quiet, target = FitHooks(stop=hooks.stop), fitting.pick_device(device)
    own, own_delta = _schema_of(train, schema, delta, quiet)
    candidates.check(own, epsilon, own_delta)
    raw = fitting.read_raw(judged, schema, quiet)
    mechanism = score_mechanism(schema, 0.0)
    if say is not None:
        say(f"searching on {public}, which you vouch is public; nothing is paid for that")
    scores = []
    for number, candidate in enumerate(candidates.each, start=1):
        check_stop(hooks.stop, work)
        run = work / f"public-{number}"
        settings = candidate.settings(own, epsilon, own_delta, seed)
        fitting.start(train, own, settings, run, target, quiet, lambda _: None)
        model = DPCGAN.load(run, device)
        scores.append(noisy_score(judge_of(model, seed), raw, model.released_schema, mechanism, noise_key()))
        destroy(run)
        if say is not None:
            say(f"candidate {number} of {len(candidates.each)}: AUROC {scores[-1]:.4f} on the public table")
    return max(range(len(scores)), key=lambda place: scores[place])


def _split(public: str | Path, schema: Schema) -> tuple[pa.Table, pa.Table]:
    names = column_names(public)
    if schema.unit is not None and schema.unit not in names:
        what = "The public table lacks the unit column of the schema"
        raise InputError(what, f"{public}, column {schema.unit}", "Give a table with the same columns as the data.")
    return train_test_split(read_table(public, names)[0], unit=schema.unit)


def _schema_of(train: pa.Table, schema: Schema, delta: float, hooks: FitHooks) -> tuple[Schema, float]:
    """The schema with the number of people of the public table, if any is stated, and a delta that suits them."""
    if schema.n_units is None:
        return schema, delta
    raw = fitting.read_raw(train, schema, hooks)
    units = raw.table.num_rows if raw.ids is None else int(raw.ids.max()) + 1
    return schema.model_copy(update={"n_units": units}), min(delta, 1 / units)


def _choice(table: str, candidate: Candidate, number: int) -> Choice:
    table = "".join(letter if letter.isprintable() else "?" for letter in table)
    facts = {"search": PUBLIC_SEARCH, "table": table, "candidates": number, "settings": candidate.given()}
    sentences = (
        f"By a search on the table {table}, on which each of {number} candidates was trained and judged. The user "
        "vouches that this table is public; nothing was paid for the search.",
        f"Settings of the candidate: {json.dumps(candidate.given(), sort_keys=True)}",
    )
    assumption = f"The table {table} is public. The schema and the candidates were chosen without looking at the data."
    opening = Mechanism(f"search on public data: {table}, {number} candidates", "gaussian", 1.0, 0.0, 0, 1.0)
    return Choice(opening, facts, sentences, assumption)
