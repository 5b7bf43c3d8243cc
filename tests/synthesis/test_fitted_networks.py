"""Networks that are fitted to paid statistics: for nothing, from what was released alone, and rows come from them."""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError, PrivacyError, StoppedError
from dpcgan_fast.privacy import account
from dpcgan_fast.privacy.ledger import charged, read_ledger
from dpcgan_fast.synthesis import DPCGAN, FitHooks, fitting, sampling
from dpcgan_fast.train.checkpoint import unpack
from dpcgan_fast.train.session import Silent
from tests.synthesis.code_runs import VOCABULARY, code_schema, events, write_events
from tests.synthesis.runs import model_bytes, stopping_hooks
from tests.tables import make_schema, make_table, schema_values


def fitted_model(schema=None, epsilon=3.0, **changes):
    return DPCGAN(schema or make_schema(), epsilon, 1e-4, device="cpu", **{"fit_steps": 8, **changes})


def mechanisms_of(run):
    return charged(read_ledger(run / "ledger.jsonl")[0])


def test_the_fit_costs_nothing_and_rows_come_from_the_networks(tmp_path):
    model = fitted_model().fit(make_table(), tmp_path / "run")
    assert [m.mechanism for m in mechanisms_of(tmp_path / "run")] == ["label histogram", "statistics"]
    assert 0.99 * 3.0 < account(mechanisms_of(tmp_path / "run"), 1e-4).epsilon <= 3.0
    assert model.privacy()["drawn_from"] == "networks fitted to statistics: a tree of columns"
    assert len(model.privacy()["statistics"]) > 2
    assert (
        "fitted to rows drawn from the statistics, by 8 steps of the critic and twice as many" in model.privacy_card()
    )
    assert not any(name.startswith("released.") for name in unpack(model_bytes(model), "model").tensors)
    assert DPCGAN.load(tmp_path / "run").sample(30, seed=1).equals(model.sample(30, seed=1))


class Phases(Silent):
    """Notes which phases there were, and their steps."""

    def __init__(self):
        self.seen = []

    def start(self, phase, total, done):
        self.seen.append((phase, total, done))


def test_the_fit_takes_as_many_steps_as_is_said_and_moves_all_networks(tmp_path):
    phases = Phases()
    one = fitted_model(seed=5).fit(make_table(), tmp_path / "one", hooks=FitHooks(progress=phases))
    assert phases.seen == [("fitting autoencoder", 16, 0), ("fitting critic", 8, 0)]
    more = fitted_model(seed=5, fit_steps=9).fit(make_table(), tmp_path / "more")
    before, after = (unpack(model_bytes(model), "model").tensors for model in (one, more))
    parts = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert {"autoencoder", "critic", "generator"} <= parts


def test_what_is_fitted_comes_near_to_the_statistics(tmp_path):
    """Of the label's two classes one has much higher sodium: rows show it after some steps, not after one."""
    table = make_table(2000)
    sodium = pc.add(120.0, pc.multiply(25.0, table["died"].cast(pa.float64())))
    table = table.set_column(table.column_names.index("sodium"), "sodium", sodium)

    def gap(steps):
        model = DPCGAN(make_schema(n_units=2000), float("inf"), 1e-4, device="cpu", seed=1, fit_steps=steps)
        drawn = model.fit(table, tmp_path / str(steps)).sample(1000, seed=0)
        means = [pc.mean(drawn.filter(pc.equal(drawn["died"], died))["sodium"]).as_py() for died in (0, 1)]
        return means[1] - means[0]

    assert gap(60) > 15 > gap(1)


def test_networks_know_of_the_data_what_was_released_and_nothing_else(tmp_path, monkeypatch):
    """With the releases of one table, another table gives the same networks, bit for bit."""
    facts, statistics = fitting.make_releases, fitting.release_statistics
    kept = {}

    def same_facts(*arguments):
        kept.setdefault("facts", facts(*arguments))
        return kept["facts"]

    def same_statistics(*arguments):
        if "statistics" in kept:
            return *kept["statistics"][:2], []  # its ledger has no line that a list would be of
        kept["statistics"] = statistics(*arguments)
        return kept["statistics"]

    monkeypatch.setattr(fitting, "make_releases", same_facts)
    monkeypatch.setattr(fitting, "release_statistics", same_statistics)
    one = fitted_model(seed=5).fit(make_table(), tmp_path / "one")
    other = fitted_model(seed=5).fit(make_table(seed=3), tmp_path / "other")
    assert [m.mechanism for m in mechanisms_of(tmp_path / "other")] == ["label histogram"]
    assert model_bytes(one) == model_bytes(other)


def test_private_steps_follow_where_they_are_asked_for(tmp_path):
    fitted_model(steps=4, training_share=0.3).fit(make_table(), tmp_path / "run")
    label, statistics, critic = mechanisms_of(tmp_path / "run")
    assert (label.mechanism, statistics.mechanism, critic.mechanism) == ("label histogram", "statistics", "critic")
    assert critic.steps == 4
    fitted_model().fit(make_table(), tmp_path / "alone")
    alone = mechanisms_of(tmp_path / "alone")[1]
    assert 1.15 < statistics.noise_multiplier / alone.noise_multiplier < 1.25, "1 / sqrt(1 - 0.3)"
    assert 0.99 * 3.0 < account([label, statistics, critic], 1e-4).epsilon <= 3.0


def test_without_privacy_nothing_has_noise(tmp_path):
    model = fitted_model(epsilon=float("inf")).fit(make_table(), tmp_path / "run")
    assert all(m.noise_multiplier == 0 for m in mechanisms_of(tmp_path / "run"))
    assert model.sample(20).num_rows == 20


@pytest.mark.parametrize("phase", ["fitting autoencoder", "fitting critic", "critic"])
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been_stopped(tmp_path, phase):
    whole = fitted_model(seed=5, steps=3).fit(make_table(), tmp_path / "whole")
    with pytest.raises(StoppedError):
        fitted_model(seed=5, steps=3).fit(make_table(), tmp_path / "run", hooks=stopping_hooks(phase, 2))
    resumed = fitted_model(seed=5, steps=3).fit(make_table(), tmp_path / "run", resume=True)
    assert resumed.sample(40, seed=2).equals(whole.sample(40, seed=2))
    assert mechanisms_of(tmp_path / "run")[:2] == mechanisms_of(tmp_path / "whole")[:2]


def test_networks_of_codes_begin_at_the_frequencies_that_are_drawn(tmp_path):
    path = write_events(tmp_path / "events.csv", events())
    model = fitted_model(code_schema(columns=("died", "dx")), fit_steps=1).fit(path, tmp_path / "run")
    assert model.privacy()["drawn_from"].startswith("networks fitted to statistics: numbers")
    lists = model.sample(2000, seed=0)["dx"].to_pylist()
    first, last = (sum(code in codes for codes in lists) / 2000 for code in (VOCABULARY[0], VOCABULARY[-1]))
    assert first > 0.7
    assert last < 0.45, "0.9 and 0.13 of the patients have them"


@pytest.mark.parametrize("changes", [{"statistics": False}, {"preset": "rdpcgan-uci"}])
def test_without_statistics_there_is_nothing_to_fit_to(tmp_path, changes):
    with pytest.raises(InputError, match="no statistics that networks could be fitted to"):
        fitted_model(**changes).fit(make_table(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"fit_steps": -1}, "fit_steps must be at least 0"), ({"training_share": 1.0}, "training_share must lie between")],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        fitted_model(**changes)


def test_private_steps_cannot_have_nearly_all(tmp_path):
    with pytest.raises(InputError, match="leave the statistics too little of epsilon"):
        fitted_model(steps=4, training_share=0.97).fit(make_table(), tmp_path / "run")


def test_an_order_that_no_drawn_row_meets_does_not_keep_networks_from_being_fitted(tmp_path, monkeypatch):
    """It would tell of a run that a paid search is to destroy."""
    monkeypatch.setattr(sampling, "satisfied", lambda table, _: pa.array([False] * table.num_rows))
    rule = {"kind": "less", "columns": ["age", "sodium"]}
    schema = Schema.from_dict({**schema_values(), "constraints": [rule]})
    model = fitted_model(schema).fit(make_table(), tmp_path / "run")
    with pytest.raises(InputError, match="Too rare"):
        model.sample(1)


def test_a_resumed_run_whose_list_of_releases_was_changed_is_refused(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        fitted_model(steps=3).fit(make_table(), run, hooks=stopping_hooks("critic", 1))
    config, ledger = json.loads((run / "config.json").read_text()), (run / "ledger.jsonl").read_bytes()
    first = config["released"]["parts"][0]
    for changed, error, message in (
        ({**first, "noise_multiplier": first["noise_multiplier"] / 3}, PrivacyError, "cost more than it says"),
        ({"mechanism": "histograms"}, InputError, "list of releases is damaged"),
    ):
        config["released"]["parts"][0] = changed
        (run / "config.json").write_text(json.dumps(config))
        with pytest.raises(error, match=message):
            fitted_model(steps=3).fit(make_table(), run, resume=True)
    assert (run / "ledger.jsonl").read_bytes() == ledger, "before anything more is spent"


def test_listed_releases_are_of_the_unit_that_the_ledger_names(tmp_path):
    path = write_events(tmp_path / "events.csv", events())
    model = fitted_model(code_schema(columns=("died", "dx")), fit_steps=1).fit(path, tmp_path / "run")
    assert {part["unit"] for part in model.privacy()["statistics"]} == {"patient"}
