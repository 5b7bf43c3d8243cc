"""The search on a public table: nothing is paid for it, the run has the whole budget, and the card says so."""

import json
import math

import pyarrow.csv
import pytest

from dpcgan_fast.errors import InputError, StoppedError
from dpcgan_fast.privacy import account
from dpcgan_fast.privacy.ledger import charged, read_ledger
from dpcgan_fast.synthesis import FitHooks, fitting
from dpcgan_fast.train.stopping import StopRequest
from dpcgan_fast.tuning import public_search, search_on_public
from tests.tables import make_schema, make_table
from tests.tuning.searches import FILES, candidates_of

TWO = ({"critic_lr": 0.01}, {"networks_only": False})


@pytest.fixture
def public(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    pyarrow.csv.write_csv(make_table(500, seed=7), tmp_path / "elsewhere" / "public.csv")
    return tmp_path / "elsewhere" / "public.csv"


def search(tmp_path, public, changes=TWO, epsilon=3.0, schema=None, data=None, **options):
    out = tmp_path / "made" / "run"
    return search_on_public(
        make_table() if data is None else data,
        public,
        schema or make_schema(),
        epsilon,
        1e-4,
        candidates_of(*changes),
        out,
        device="cpu",
        **options,
    )


def test_the_run_has_the_whole_budget_and_says_how_its_settings_were_chosen(tmp_path, public):
    said = []
    model = search(tmp_path, public, say=said.append)
    folder = tmp_path / "made" / "run"
    assert {path.name for path in folder.iterdir()} == FILES
    assert list(folder.parent.iterdir()) == [folder]
    assert "which you vouch is public" in said[0]
    assert [line.split(":")[0] for line in said[1:]] == ["candidate 1 of 2", "candidate 2 of 2"]
    spent = account(charged(read_ledger(folder / "ledger.jsonl")[0]), 1e-4)
    privacy, card = model.privacy(), model.privacy_card()
    assert 2.9 < spent.epsilon <= 3.0
    assert privacy["epsilon_spent"] == spent.epsilon
    assert privacy["tuning"]["search"] == "public data"
    assert privacy["tuning"]["table"] == "public.csv"
    assert privacy["tuning"]["candidates"] == 2
    assert "By a search on the table public.csv" in card
    assert "The user vouches that this table is public; nothing was paid for the search" in card
    assert str(public.parent) not in card
    assert "- The table public.csv is public." in card


def test_the_ledger_names_the_search_at_no_cost_also_for_those_who_know_of_none(tmp_path, public):
    search(tmp_path, public, TWO[:1])
    first, *rest = (tmp_path / "made" / "run" / "ledger.jsonl").read_text().splitlines()
    values = json.loads(first)
    assert values["mechanism"] == "search on public data: public.csv, 1 candidates"
    assert (values["event"], values["steps"]) == ("gaussian", 0)
    assert all(json.loads(line)["event"] in ("gaussian", "poisson_gaussian", "close") for line in rest)


def test_the_candidate_that_does_best_on_the_public_table_is_taken(tmp_path, public, monkeypatch):
    scores = iter([0.4, 0.9, 0.6])
    monkeypatch.setattr(public_search, "noisy_score", lambda *_: next(scores))
    rates = [{"critic_lr": rate} for rate in (0.1, 0.2, 0.3)]
    assert search(tmp_path, public, rates).settings.critic_lr == 0.2


def test_the_search_touches_the_public_table_alone_and_the_run_the_data_alone(tmp_path, public, monkeypatch):
    """Trained on four fifths of the public table, and judged by the rest of it, until the settings are chosen."""
    read = []
    real = fitting.start

    def spy(source, *rest, **named):
        read.append(source.num_rows)
        return real(source, *rest, **named)

    judged = []
    scored = public_search.noisy_score
    monkeypatch.setattr(
        public_search,
        "noisy_score",
        lambda judge, raw, *rest: (judged.append(raw.table.num_rows), scored(judge, raw, *rest))[1],
    )
    monkeypatch.setattr(fitting, "start", spy)
    search(tmp_path, public)
    assert read == [400, 400, 400]
    assert judged == [100, 100]


def test_people_of_the_public_table_stay_on_one_side(tmp_path):
    schema = make_schema(unit="patient", n_units=150, max_rows_per_unit=3)
    pyarrow.csv.write_csv(make_table(300, seed=7, patients=80), tmp_path / "people.csv")
    train, judged = public_search._split(tmp_path / "people.csv", schema)
    assert train.num_rows + judged.num_rows == 300
    assert not set(train["patient"].to_pylist()) & set(judged["patient"].to_pylist())
    with pytest.raises(InputError, match=r"lacks the unit column .*column other"):
        public_search._split(tmp_path / "people.csv", make_schema(unit="other"))


def test_without_privacy_the_search_is_as_possible_as_training(tmp_path, public):
    assert search(tmp_path, public, TWO[:1], epsilon=math.inf).privacy()["private"] is False


def test_what_the_run_would_refuse_of_the_data_is_refused_before_the_search(tmp_path, public):
    said, table = [], make_table()
    names = [name for name in table.column_names if name != "sodium"]
    with pytest.raises(InputError, match="sodium"):
        search(tmp_path, public, data=table.select(names), say=said.append)
    assert said == []
    assert not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_stop_leaves_nothing_and_says_so(tmp_path, public, monkeypatch, after):
    """During the search, and during the training on the data."""
    stop, runs = StopRequest(), []
    scored = public_search.noisy_score

    def stopping(*arguments):
        runs.append(arguments)
        stop.signal_name = "SIGHUP" if len(runs) >= after else None
        return scored(*arguments)

    monkeypatch.setattr(public_search, "noisy_score", stopping)
    stop.signal_name = "SIGHUP" if after == 0 else None
    with pytest.raises(StoppedError, match=r"Stopped by SIGHUP; .* removed: nothing was released"):
        search(tmp_path, public, hooks=FitHooks(stop=stop))
    assert len(runs) == after
    assert not list((tmp_path / "made").iterdir())


def test_candidates_that_do_not_fit_the_public_table_are_an_error(tmp_path, public):
    pyarrow.csv.write_csv(make_table(300), public)
    with pytest.raises(InputError, match=r"batch is larger than n_units.*candidate 1"):
        search(tmp_path, public, [{"batch_size": 400}])
    assert not list((tmp_path / "made").iterdir())
