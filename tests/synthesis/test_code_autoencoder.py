"""Clusters of codes by a private autoencoder: what it costs, what a unit can move, and what it finds."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dpcgan_fast.baselines import COUNTED, Baseline, arrays_of
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.code_mixture import CodeRecords, MixturePlan
from dpcgan_fast.baselines.mixed_codes import CodesPlan, MixedCodes
from dpcgan_fast.data.code_rows import CodeRows
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError, PrivacyError, StoppedError
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger, Mechanism, PoissonSampler, account
from dpcgan_fast.privacy.ledger import charged, read_ledger, taken_by_run
from dpcgan_fast.privacy.selection import RunCount
from dpcgan_fast.synthesis import DPCGAN, code_autoencoder, releases
from dpcgan_fast.synthesis.checks import check_before_reading
from dpcgan_fast.synthesis.code_autoencoder import (
    LATENT_DIM,
    AutoencoderClusters,
    CodeAutoencoder,
    clusters_of,
    nearest,
    release_centres,
)  # fmt: skip
from dpcgan_fast.synthesis.statistics import CODE_AUTOENCODER
from dpcgan_fast.tuning import search_privately
from tests.baselines.replay import Replay, cauchy, refuse_moves
from tests.baselines.stand_ins import no_races, plan_always
from tests.baselines.tables import codes_schema, codes_table
from tests.synthesis.code_runs import FEW, VOCABULARY, code_schema, quick_runs
from tests.synthesis.runs import model_bytes, model_of, stopping_hooks
from tests.tables import make_schema
from tests.tuning.searches import candidates_of

WIDTH = 40
SHARES = np.full(WIDTH, 0.1)
ONLY_CODES = ("died", "dx")


@pytest.fixture(autouse=True)
def _plan_always(monkeypatch):
    plan_always(monkeypatch)


def network_of(seed: int = 0) -> CodeAutoencoder:
    torch.manual_seed(seed)
    return CodeAutoencoder(torch.from_numpy(np.log(SHARES)).float()).eval()


def records_of(held: np.ndarray) -> CodeRecords:
    """held: (rows, codes) bool"""
    rows, codes = np.nonzero(held)
    sets = CodeRows.from_entries(rows, codes, len(held))
    return CodeRecords(sets, np.zeros(len(held), np.int64), np.ones(len(held)), 1, held.shape[1])


def model(epsilon: float = 3.0, **changes: Any) -> DPCGAN:
    return model_of(code_schema(columns=ONLY_CODES), epsilon, **{**FEW, "clusters": "autoencoder", **changes})


def patients(rows: int = 200) -> pa.Table:
    """Two kinds of patients, each with half of the codes."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, rows)
    names = np.array(VOCABULARY)
    lists = [list(names[6 * kind : 6 * kind + 6][rng.random(6) < 0.8]) for kind in kinds]
    return pa.table({"patient": np.arange(rows), "died": kinds, "dx": lists})


def two_columns_of_codes() -> Schema:
    columns = [{"name": name, "type": "codes", "vocabulary": VOCABULARY} for name in ("dx", "drugs")]
    return Schema.from_dict({"unit": None, "n_units": 200, "columns": columns})


# ---- privacy


@pytest.mark.parametrize("bad", [1.0, 1e30, math.nan, math.inf])
def test_what_is_grouped_is_bounded_whatever_the_weights(bad):
    """A number that is none would show through any noise."""
    network = network_of()
    with torch.no_grad():
        network.to_latent.weight.mul_(bad)
        held = (torch.rand(50, WIDTH) < torch.linspace(0, 1, 50).unsqueeze(1)).float()
        found = network.groupable(held)
    assert torch.isfinite(found).all()
    assert found.norm(dim=1).max() <= code_autoencoder._LONGEST * (1 + 1e-6)


def by_network(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Baseline]:
    """Statistics of codes whose clusters go by weights that are there, of a schema with these fields changed."""
    no_races(monkeypatch)
    network = network_of()

    def find(*arguments: Any) -> Any:
        return clusters_of(network, *arguments, np.random.default_rng(0))

    def baseline_of(**more: Any) -> Baseline:
        schema = codes_schema().model_copy(update=more)
        return Baseline("codes", schema, (MixedCodes(schema.codes_columns()[0], mixed=True, clusters=find),))

    return baseline_of


@pytest.mark.parametrize("spoil", [lambda values: values, cauchy, lambda values: values * 1e22],
                         ids=["as released", "heavy tails", "beyond single precision"])  # fmt: skip
@pytest.mark.parametrize("epsilon", [1.0, 300.0])
def test_removing_a_unit_moves_no_release_by_more_than_its_sensitivity(monkeypatch, epsilon, spoil):
    """Given the weights, which DP-SGD has paid for."""
    moved = len(refuse_moves(monkeypatch, codes_table(60, 3), epsilon, by_network(monkeypatch), spoil))
    assert moved == len(["numbers", "counts", *["centres"] * 6, *["clusters"] * 2, "numbers of clusters", "pairs"])


def test_other_rows_with_the_same_weights_and_answers_leave_the_same_numbers(monkeypatch):
    statistics, replay = by_network(monkeypatch)(), Replay()
    monkeypatch.setattr(Budget, "release", lambda *given: replay.first(*given))
    before = arrays_of(statistics.fit(codes_table(2000, 0), 20.0, 1e-5))
    monkeypatch.setattr(Budget, "release", replay.again([]))
    after = arrays_of(statistics.fit(codes_table(140, 1), 20.0, 1e-5))
    assert set(after) == set(before)
    for name, values in before.items():
        assert np.array_equal(after[name], values), name


def test_the_latent_code_of_a_record_does_not_depend_on_other_records():
    """By its last bit a record may be in another group: then not one unit would move a release, but two."""
    network = network_of()
    held = (torch.rand(50, WIDTH, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    found = code_autoencoder._points(network, held)
    for size in range(1, 50):
        assert np.array_equal(code_autoencoder._points(network, held[-size:]), found[-size:])


def test_the_group_of_a_point_does_not_depend_on_other_points():
    """A point as far from two centres as can be told."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((500, LATENT_DIM + 1)).astype(np.float32)
    moves = rng.standard_normal((50, LATENT_DIM + 1))
    for place, move in enumerate(moves):
        centres = np.stack([points[place] + move, points[place] - move])
        assert nearest(points, centres)[place] == nearest(points[place : place + 1], centres)[0]


def test_the_private_steps_are_those_that_are_charged(monkeypatch, tmp_path):
    """Noise and clipping of the line in the ledger, whole Poisson draws, and as many steps."""
    mechanism = Mechanism(CODE_AUTOENCODER, "poisson_gaussian", 0.1, 1.3, 7, 0.5)
    made: dict[str, Any] = {"rows": [], "steps": 0}
    real = code_autoencoder.PrivateStep

    class Spy(real):
        def __init__(self, *arguments: Any, **named: Any):
            made.update(named)
            super().__init__(*arguments, **named)

        def backward(self, losses: Any, units: Any = None) -> None:
            made["rows"].append(len(losses))
            super().backward(losses, units)

        def step(self) -> None:
            made["rows"].append("step")
            super().step()

    monkeypatch.setattr(code_autoencoder, "PrivateStep", Spy)
    monkeypatch.setattr(code_autoencoder, "_ROWS_AT_A_TIME", 16)
    held = np.random.default_rng(0).random((300, WIDTH)) < 0.2
    with Ledger(tmp_path / "ledger.jsonl", create=True) as ledger:
        finder = AutoencoderClusters(mechanism, ledger, NoiseKey(seed=1), 1)
        finder(records_of(held), SHARES, MixturePlan(3, 1, 5), Budget(0.5, NoiseKey(seed=2)), 1.0)
    assert (made["noise_multiplier"], made["max_grad_norm"]) == (1.3, 0.5)
    assert charged(read_ledger(tmp_path / "ledger.jsonl")[0]) == [mechanism]
    key = code_autoencoder.sampling_key(CODE_AUTOENCODER, 1)
    drawn = [len(PoissonSampler(300, 0.1, key).draw(number)) for number in range(7)]
    found, rows = [], 0
    for one in made["rows"]:
        if one == "step":
            found.append(rows)
            rows = 0
        else:
            rows += one
    assert found == drawn
    assert len(set(drawn)) > 1


def test_records_that_are_not_units_are_refused(tmp_path):
    """The draws are of records; a unit with two of them would be drawn twice as often."""
    records = records_of(np.ones((4, WIDTH), bool))
    records.weights[:] = 0.5
    mechanism = Mechanism(CODE_AUTOENCODER, "poisson_gaussian", 0.1, 1.3, 7, 0.5)
    budget = Budget(0.5, NoiseKey(seed=2))
    with Ledger(tmp_path / "ledger.jsonl", create=True) as ledger:
        finder = AutoencoderClusters(mechanism, ledger, NoiseKey(seed=1), 1)
        with pytest.raises(ValueError, match="unit"):
            finder(records, SHARES, MixturePlan(3, 1, 5), budget, 1.0)
    assert read_ledger(tmp_path / "ledger.jsonl")[0] == []


def test_what_is_paid_for_once_is_taken_once(tmp_path):
    mechanism = Mechanism(CODE_AUTOENCODER, "poisson_gaussian", 0.1, 1.3, 2, 0.5)
    records, budget = records_of(np.eye(6, WIDTH, dtype=bool)), Budget(0.5, NoiseKey(seed=2))
    with Ledger(tmp_path / "ledger.jsonl", create=True) as ledger:
        finder = AutoencoderClusters(mechanism, ledger, NoiseKey(seed=1), 1)
        finder(records, SHARES, MixturePlan(3, 1, 5), budget, 0.5)
        with pytest.raises(ValueError, match="charge"):
            finder(records, SHARES, MixturePlan(3, 1, 5), budget, 0.5)
    assert charged(read_ledger(tmp_path / "ledger.jsonl")[0]) == [mechanism]


def test_its_noise_is_drawn_after_its_reservation_is_on_disk(tmp_path, monkeypatch):
    run, seen = tmp_path / "run", []
    step = code_autoencoder.PrivateStep.step

    def spy(self: Any) -> None:
        seen.append({line.mechanism for line in charged(read_ledger(run / "ledger.jsonl")[0])})
        step(self)

    monkeypatch.setattr(code_autoencoder.PrivateStep, "step", spy)
    monkeypatch.setattr(releases, "cluster_steps", lambda _: 3)
    with quick_runs():
        model().fit(patients(), run)
    assert len(seen) >= 3, "its own steps come first"
    assert all({"statistics", CODE_AUTOENCODER} <= before for before in seen)


def test_rows_beyond_the_cap_of_a_unit_are_never_drawn(monkeypatch, tmp_path):
    """They weigh nothing, and would be units of their own to the private steps."""
    seen = []
    real = code_autoencoder.code_loss
    monkeypatch.setattr(code_autoencoder, "code_loss", lambda logits, held: seen.append(held) or real(logits, held))
    held = np.eye(6, WIDTH, dtype=bool)
    records = records_of(held)
    records.weights[:] = [1, 0, 0, 1, 0, 0]
    mechanism = Mechanism(CODE_AUTOENCODER, "poisson_gaussian", 1.0, 1.3, 2, 0.5)
    with Ledger(tmp_path / "ledger.jsonl", create=True) as ledger:
        finder = AutoencoderClusters(mechanism, ledger, NoiseKey(seed=1), 1)
        finder(records, SHARES, MixturePlan(3, 1, 5), Budget(0.5, NoiseKey(seed=2)), 1.0)
    assert [batch.argmax(1).tolist() for batch in seen] == [[0, 3]] * 2


def test_what_a_crash_left_while_it_learned_stays_charged_and_cannot_go_on(monkeypatch, tmp_path):
    """There is no checkpoint yet, and noise that was seen must not be drawn anew."""
    monkeypatch.setattr(code_autoencoder, "clusters_of", lambda *_: 1 / 0)
    monkeypatch.setattr(releases, "cluster_steps", lambda _: 5)
    with quick_runs():
        stopped = model()
        with pytest.raises(ZeroDivisionError):
            stopped.fit(patients(), tmp_path / "run")
        lines = charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])
        assert [(line.mechanism, line.steps) for line in lines][-2:] == [("statistics", 1), (CODE_AUTOENCODER, 5)]
        with pytest.raises(PrivacyError, match="before its first checkpoint"):
            stopped.fit(patients(), tmp_path / "run", resume=True)


def test_a_run_pays_for_it_in_a_line_of_its_own(tmp_path):
    fitted = model().fit(patients(), tmp_path / "run")
    lines = charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])
    names = list(dict.fromkeys(line.mechanism for line in lines))
    assert names[-4:] == ["statistics", CODE_AUTOENCODER, "autoencoder", "critic"]
    (own,) = [line for line in lines if line.mechanism == CODE_AUTOENCODER]
    assert (own.event, own.steps, own.max_grad_norm) == ("poisson_gaussian", 200, 0.5)
    assert own.sample_rate == pytest.approx(FEW["autoencoder_batch"] / 200)
    assert account(lines, 1e-4).epsilon <= 3.0
    assert account(lines, 1e-4).epsilon > 2.9, "nearly all of epsilon is used"
    statistics = next(line for line in lines if line.mechanism == "statistics")
    without = check_before_reading(fitted.schema, replace(fitted.settings, clusters="mixture")).mechanism("statistics")
    ratio = (without.noise_multiplier / statistics.noise_multiplier) ** 2
    assert 0.86 < ratio < 0.91, "the statistics have 10 % of the whole less"
    assert fitted.privacy()["drawn_from"].endswith("clusters by an autoencoder")
    assert f"{CODE_AUTOENCODER}: 200 steps" in fitted.privacy_card()


def test_a_private_search_pays_for_it_inside_of_the_selection(tmp_path):
    changes = {"clusters": "autoencoder", "networks_only": False, "batch_size": FEW["autoencoder_batch"]}
    schema, count = code_schema(columns=ONLY_CODES), RunCount("geometric", 1.0)
    search_privately(patients(), schema, 3.0, 1e-4, candidates_of(changes), tmp_path / "run", count, device="cpu")
    lines = read_ledger(tmp_path / "run" / "ledger.jsonl")[0]
    taken = {line.mechanism: (line.event, line.steps) for line in taken_by_run(lines)}
    assert taken[CODE_AUTOENCODER] == ("selected_poisson_gaussian", code_autoencoder.cluster_steps(1.5))
    assert 2.9 < account(charged(lines), 1e-4).epsilon <= 3.0


def test_where_people_are_few_for_clusters_it_is_charged_untrained_and_the_run_says_so(tmp_path, monkeypatch):
    """That they are few is told from noisy numbers: what was spent must not depend on them."""
    monkeypatch.setattr(CodesPlan, "of", classmethod(lambda *_: None))
    monkeypatch.setattr(AutoencoderClusters, "__call__", lambda *_: 1 / 0)
    with quick_runs():
        fitted = model().fit(patients(), tmp_path / "run")
    lines = charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])
    assert [line.steps for line in lines if line.mechanism == CODE_AUTOENCODER] == [200]
    assert fitted.privacy()["drawn_from"] == f"statistics: {COUNTED}"
    assert f"{CODE_AUTOENCODER}: not trained" in fitted.privacy_card()
    assert f"{CODE_AUTOENCODER}: 200 steps" not in fitted.privacy_card()


def test_at_other_epsilons_it_would_have_to_be_trained_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "cluster_steps", lambda _: 2)
    with quick_runs():
        fitted = model().fit(patients(), tmp_path / "run")
    with pytest.raises(InputError, match="by way of one, which would have to be trained"):
        fitted.statistics_anew()


# ---- what it finds


def test_centres_are_those_of_the_groups():
    rng = np.random.default_rng(0)
    of_group = 0.5 * np.array([[1.0] + [-1.0] * LATENT_DIM, [-1.0] + [1.0] * LATENT_DIM])
    groups = rng.integers(0, 2, 4000)
    points = of_group[groups] + 0.05 * rng.standard_normal((4000, LATENT_DIM + 1))
    centres = release_centres(points, np.ones(4000), 2, Budget(0.01, NoiseKey(seed=0)), 1.0, rng)
    assert np.abs(centres[nearest(of_group, centres)] - of_group).max() < 0.05


def test_without_noise_kinds_of_patients_are_told_apart(tmp_path):
    table = model(epsilon=math.inf, seed=3).fit(patients(2000), tmp_path / "run").sample(2000, seed=1)
    of_kind = [set(VOCABULARY[6 * kind : 6 * kind + 6]) for kind in range(2)]
    mixed = [bool(set(cell) & of_kind[0]) and bool(set(cell) & of_kind[1]) for cell in table["dx"].to_pylist()]
    assert np.mean(mixed) < 0.1


def test_a_seeded_run_comes_again_also_if_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "cluster_steps", lambda _: 5)
    with quick_runs():
        whole = model(seed=5).fit(patients(), tmp_path / "whole")
        stopped = model(seed=5)
        with pytest.raises(StoppedError):
            stopped.fit(patients(), tmp_path / "stopped", hooks=stopping_hooks("autoencoder", 2))
        resumed = stopped.fit(patients(), tmp_path / "stopped", resume=True)
    assert model_bytes(whole) == model_bytes(resumed)


@pytest.mark.parametrize(
    ("schema", "clusters"),
    [
        (make_schema(), "autoencoder"),
        (code_schema(), "autoencoder"),
        (two_columns_of_codes(), "autoencoder"),
        (code_schema(columns=ONLY_CODES), "k-means"),
    ],
    ids=["no codes", "codes beside columns", "more than is paid for", "no such way"],
)
def test_what_cannot_be_is_refused_before_anything_is_read(schema, clusters, tmp_path):
    with pytest.raises(InputError, match="clusters"):
        model_of(schema, clusters=clusters).fit(tmp_path / "nothing.csv")
