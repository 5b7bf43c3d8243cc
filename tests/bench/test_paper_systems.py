"""Every system of the paper's comparison spends what it says, composed again by dp-accounting alone."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import dp_accounting
import numpy as np
import pyarrow as pa
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from dpcgan_fast.bench.paper import summary, systems
from dpcgan_fast.bench.paper.code_world import code_schema, code_table
from dpcgan_fast.bench.paper.dense import DenseNetworks
from dpcgan_fast.bench.paper.pate import LABELS, VOTES, fit_pate_gan
from dpcgan_fast.bench.paper.systems import AUTO, AUTO_MORE, CODES_AE, DELTA, SYSTEMS, TIMES, YARDSTICK, Synthetic, Task
from dpcgan_fast.bench.paper.tables import CODES, PaperTable
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.synthesis.statistics import CODE_AUTOENCODER
from dpcgan_fast.train import default_settings
from dpcgan_fast.train.plan import AUTOENCODER, CRITIC
from tests.baselines.stand_ins import plan_always, short_races

ROWS, EPSILON = 300, 4.0
FEW = 3


def waves() -> PaperTable:
    """Signals of the published record length, 178 samples and a label."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, ROWS)
    signal = np.clip(0.5 + 0.1 * (1 + label[:, None]) * rng.normal(size=(ROWS, 178)), 0, 1)
    table = pa.table({"y": label, **{f"X{i + 1}": signal[:, i] for i in range(178)}})
    values = {
        "unit": None, "n_units": ROWS, "label": "y", "columns": [{"name": "y", "type": "binary"}],
        "signals": [{"name": "eeg", "columns": ["X1", "...", "X178"], "bounds": [0, 1]}],
    }  # fmt: skip
    return PaperTable("waves", table, table, Schema.from_dict(values))


def codes() -> PaperTable:
    table = code_table(ROWS)
    return PaperTable(CODES, table, table, code_schema(ROWS))


TABLES = {"waves": waves, CODES: codes}


@pytest.fixture
def quick(monkeypatch):
    """Few steps, in networks and in PATE-GAN; those that take none still take none."""
    original = systems._settings

    def few(*arguments):
        settings = original(*arguments)
        names = ("autoencoder_steps", "critic_steps", "fit_steps")
        steps = {name: min(FEW, getattr(settings, name)) for name in names}
        return replace(settings, **steps)

    monkeypatch.setattr(systems, "_settings", few)
    monkeypatch.setattr(systems, "fit_pate_gan", partial(fit_pate_gan, rounds=FEW))


def composed(mechanisms) -> float:
    """Epsilon as a reviewer with dp-accounting alone would compute it."""
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    rdp, pld = RdpAccountant(neighboring_relation=relation), PLDAccountant(relation, 1e-4)
    for one in mechanisms:
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(one.noise_multiplier)
        if one.sample_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(one.sample_rate, event)
        for accountant in (rdp, pld):
            accountant.compose(event, one.steps)
    assert all(one.delta == 0 for one in mechanisms), "no system here has a threshold"
    return min(rdp.get_epsilon(DELTA), pld.get_epsilon(DELTA))


def fit(system: str, data: str, folder, epsilon: float = EPSILON) -> Synthetic:
    return SYSTEMS[system].fit(Task(TABLES[data](), epsilon, 0, folder))


CASES = [(system, "waves") for system in SYSTEMS if system != CODES_AE]
CASES += [(system, CODES) for system in ("rdpcgan", "dense", "conv", "conv-fitted", AUTO)]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("system", "data"), CASES)
def test_a_system_spends_epsilon_and_no_more(system, data, tmp_path):
    synthetic = fit(system, data, tmp_path)
    for name, table in synthetic.tables.items():
        spent = composed(synthetic.mechanisms[name])
        assert spent <= EPSILON
        assert spent > 0.99 * EPSILON, "and it is not handicapped"
        assert table.num_rows == ROWS * (TIMES if system == AUTO_MORE else 1)
        assert set(synthetic.schema.column_names()) == set(table.column_names)


@pytest.mark.usefixtures("quick")
def test_clusters_by_an_autoencoder_are_paid_from_the_same_epsilon(monkeypatch, tmp_path):
    """On more records than a quick test can have; so it looks for them in few."""
    plan_always(monkeypatch)
    short_races(monkeypatch)
    synthetic = fit(CODES_AE, CODES, tmp_path)
    (mechanisms,) = synthetic.mechanisms.values()
    assert CODE_AUTOENCODER in [one.mechanism for one in mechanisms]
    assert 0.99 * EPSILON < composed(mechanisms) <= EPSILON


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("system", "trained"),
    [
        ("rdpcgan", {AUTOENCODER: FEW, CRITIC: FEW}),
        ("rdpcgan-no-ae", {CRITIC: FEW}),
        ("rdpcgan-recipe", {"label histogram": 1, CRITIC: FEW}),
        ("dense", {AUTOENCODER: FEW, CRITIC: FEW}),
        ("dp-gan", {CRITIC: FEW}),
        ("conv-no-ae", {"label histogram": 1, CRITIC: FEW}),
        ("conv-fitted", {"label histogram": 1, "statistics": 1}),
        ("conv-tuned", {"label histogram": 1, "statistics": 1, CRITIC: FEW}),
        ("pate-gan", {LABELS: 1, VOTES: FEW}),
    ],
)
def test_what_touches_the_data_is_what_the_system_is_said_to_be(system, trained, tmp_path):
    synthetic = fit(system, "waves", tmp_path, math.inf)
    (mechanisms,) = synthetic.mechanisms.values()
    assert {one.mechanism: one.steps for one in mechanisms if one.steps} == trained


@pytest.mark.usefixtures("quick")
def test_a_run_follows_from_its_seed(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    tables = []
    for seed, folder in zip((0, 0, 1), folders, strict=True):
        folder.mkdir()
        tables.append(SYSTEMS["dp-gan"].fit(Task(waves(), EPSILON, seed, folder)).tables[""])
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_published_networks_stand_where_a_record_has_their_length():
    stands = {name: [SYSTEMS[name].fits(TABLES[data]()) for data in TABLES] for name in SYSTEMS}
    assert stands.pop(CODES_AE) == [False, True]
    assert stands.pop("rdpcgan-recipe") == stands.pop("conv-tuned") == stands.pop(AUTO_MORE) == [True, False]
    assert stands["rdpcgan"] == stands["rdpcgan-no-ae"] == [True, True]
    schema = waves().schema.model_copy(update={"signals": ()})
    assert not SYSTEMS["rdpcgan"].fits(replace(waves(), schema=schema))
    assert all(all(fits) for name, fits in stands.items() if name not in ("rdpcgan", "rdpcgan-no-ae"))


def test_with_as_many_steps_as_is_said_the_published_system_is_its_preset():
    task = Task(waves(), EPSILON, 0, Path(), steps=summary._PUBLISHED_STEPS)
    schema = task.table.schema
    assert systems._settings("rdpcgan-uci", schema, task, {}) == default_settings(
        "rdpcgan-uci", EPSILON, DELTA, ROWS, seed=0
    )


def test_a_yardstick_is_all_baselines_each_with_the_whole_epsilon(tmp_path):
    synthetic = fit(YARDSTICK, "waves", tmp_path)
    assert len(synthetic.tables) > 1
    assert synthetic.tables.keys() == synthetic.mechanisms.keys()


@pytest.mark.parametrize("classes", [0, 3])
def test_dense_networks_have_no_layer_that_mixes_rows_and_clamp_their_critic(classes):
    networks = DenseNetworks(20, classes, binary=False)
    records, labels = torch.rand(4, 20), torch.eye(3)[torch.tensor([0, 1, 2, 0])][:, :classes]
    for module in (networks.critic, networks.autoencoder):
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        PrivateStep(module, optimizer, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=4)
    assert networks.critic(records, labels).shape == (4,)
    assert networks.autoencoder_loss(networks.autoencoder(records, labels), records).shape == (4,)
    drawn = networks.generate(labels, torch.Generator().manual_seed(0))
    assert drawn.shape == (4, 20)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert set(networks.critic_clamp) == set(networks.critic.parameters())
