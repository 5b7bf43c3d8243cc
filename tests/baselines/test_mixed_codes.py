"""Codes that have to do with each other: numbers first, then clusters of records, then pairs of codes."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from dpcgan_fast.baselines import Baseline, baselines_for, choice, mixed_codes
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.code_mixture import Mixture
from dpcgan_fast.baselines.code_pairs import pair_counts, pair_weights
from dpcgan_fast.baselines.code_races import CodeKinds, WantedCodes, _different, raced, settled_chances, within_bins
from dpcgan_fast.baselines.code_repair import ModelRecords, PairRepair
from dpcgan_fast.baselines.mixed_codes import CodesPlan, MixedCodes
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.code_rows import CodeRows
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.ops import NoiseKey, native_module
from dpcgan_fast.privacy.releases import number_edges
from tests.baselines.replay import cauchy, refuse_moves
from tests.baselines.stand_ins import asked_of_budget, no_races, plan_always
from tests.baselines.tables import VOCABULARY, codes_schema, codes_table

WIDTH = len(VOCABULARY)


def mixed_of(schema: Schema) -> Baseline:
    return next(one for one in baselines_for(schema) if one.name == choice.MIXED)


def ill_people(rows: int, seed: int) -> pa.Table:
    """Two illnesses, each with ten codes that come together; who has C20 has C21, always; the other codes are free."""
    rng = np.random.default_rng(seed)
    illness = rng.integers(0, 2, rows)
    rates = np.full((rows, WIDTH), 0.05)
    for kind in range(2):
        rates[illness == kind, 10 * kind : 10 * kind + 10] = 0.6
    held = rng.random((rows, WIDTH)) < rates
    held[:, 20] = rng.random(rows) < 0.1
    held[:, 21] = held[:, 20] | (rng.random(rows) < 0.2)
    lists = [[code for code, has in zip(VOCABULARY, row, strict=True) if has] for row in held]
    return pa.table({"dx": lists})


def held_codes(table: pa.Table) -> np.ndarray:
    """(rows, WIDTH) bool."""
    position = {code: index for index, code in enumerate(VOCABULARY)}
    held = np.zeros((table.num_rows, WIDTH), bool)
    for row, cell in enumerate(table["dx"].to_pylist()):
        held[row, [position[code] for code in cell]] = True
    return held


# ---- privacy


@pytest.mark.parametrize(
    ("epsilon", "spoil"),
    [
        (1.0, lambda values: values),
        (300.0, lambda values: values),
        (1.0, cauchy),
        (1.0, lambda values: np.where(np.arange(values.size).reshape(values.shape) % 3, values, -1e9)),
        (1.0, lambda values: np.where(np.arange(values.size).reshape(values.shape) % 3, values, 1e22)),
    ],
    ids=["1", "300", "heavy tails", "far below none", "beyond single precision"],
)
@pytest.mark.parametrize("label", [True, False])
def test_removing_a_unit_moves_no_round_and_no_pair_by_more_than_its_sensitivity(monkeypatch, epsilon, spoil, label):
    plan_always(monkeypatch)
    no_races(monkeypatch)

    def baseline_of(**more: Any) -> Baseline:
        schema = codes_schema() if label else codes_schema((), None)
        return mixed_of(schema.model_copy(update=more))

    releases = len(refuse_moves(monkeypatch, codes_table(60, 3), epsilon, baseline_of, spoil))
    of_codes = ["numbers", "counts", *["a round"] * 3, "numbers of clusters", "pairs"]
    assert releases == len(of_codes) + label  # and the histogram of the column


@pytest.mark.parametrize("epsilon", [1.0, 300.0])
def test_removing_a_unit_moves_no_more_where_some_records_are_looked_at(monkeypatch, epsilon):
    """Whether a record is does not depend on the others: here it goes by a number that each has."""
    plan_always(monkeypatch)
    no_races(monkeypatch)
    monkeypatch.setattr(mixed_codes, "_ENTRIES", 30)
    real = mixed_codes._looked_at

    def drawn_alike(rows: Rows, sets: CodeRows, column: Column, kept: np.ndarray | None) -> Any:
        assert kept is not None
        return real(rows, sets, column, np.flatnonzero(np.asarray(rows.table["number"]) % 3))

    monkeypatch.setattr(mixed_codes, "_looked_at", drawn_alike)
    table = codes_table(60, 3).append_column("number", pa.array(range(60)))
    names = refuse_moves(monkeypatch, table, epsilon, lambda **more: mixed_of(codes_schema().model_copy(update=more)))
    assert {"clusters of codes", "numbers of codes of clusters", "pairs of codes"} <= set(names)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_memberships_are_numbers_whatever_the_clusters(bad):
    """A cell that is not a number would show through any noise who has a code."""
    ratios = np.ones((2, WIDTH))
    ratios[0, 0] = bad
    mixture = Mixture(ratios, np.ones((1, 2)) / 2, np.ones((2, 3)))
    records = CodeRows.from_entries(np.array([0, 1, 1]), np.array([0, 1, 2]), 3)
    matrix = sparse.csr_array((np.ones(3), records.positions, records.starts), shape=(3, WIDTH))
    with np.errstate(all="ignore"):
        members = mixture.members(matrix, np.zeros(3, np.int64), np.full(WIDTH, 0.1))
    assert np.isfinite(members).all()
    assert (members.sum(1) <= 1 + 1e-12).all()


def test_a_record_of_many_codes_moves_a_round_and_the_pairs_by_their_whole_sensitivity(monkeypatch):
    """So that no noise is wasted. A round also counts the class."""
    plan_always(monkeypatch, clusters=1)
    asked = asked_of_budget(monkeypatch)
    mixed_of(codes_schema((), None)).fit(pa.table({"dx": [list(VOCABULARY)[:25]]}), 1.0, 1e-5)
    norms = dict(asked)
    for name in ("clusters of codes", "pairs of codes", "numbers of codes of clusters"):
        assert norms[name] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("label", [True, False])
def test_all_releases_together_cost_the_whole_and_no_more(monkeypatch, label):
    plan_always(monkeypatch)
    schema = codes_schema() if label else codes_schema((), None)
    fitted = mixed_of(schema).release(codes_table(300, 0), 0.7, NoiseKey())
    assert len(fitted.mechanisms) == 7 + label
    assert 1 - 1e-5 < 0.7**2 * sum(1 / one.noise_multiplier**2 for one in fitted.mechanisms) < 1


@pytest.mark.parametrize("full", [1, 20, 300])
def test_pairs_of_a_record_weigh_as_much_as_is_allowed_and_no_more(full):
    counts = np.arange(200)
    norms = pair_weights(counts, full) * np.sqrt(counts * (counts - 1) / 2)
    assert (norms <= math.sqrt(full)).all()
    assert norms[-1] == pytest.approx(math.sqrt(full), rel=1e-4)
    assert (pair_weights(counts, full) * 2**20 % 1 == 0).all()  # sums are exact


@pytest.mark.parametrize("units", [3e3, 4e4, 1e6, 1e9])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 4.0])
def test_the_plan_spends_no_more_than_there_is_and_follows_from_public_numbers(units, noise):
    plan = CodesPlan.of(units, noise, 1071)
    if plan is None:
        assert units / noise < 6000
        return
    assert plan.counts > 0.1
    assert plan.pairs > 0.1
    assert plan.counts + plan.pairs < 0.9  # the rest is the mixture's
    assert 1 <= plan.mixture.clusters <= units / 250
    assert CodesPlan.of(units, noise, 2).mixture.clusters <= 2  # pyright: ignore[reportOptionalMemberAccess]


def test_the_draw_of_records_to_look_at_is_fresh_and_of_the_rate():
    budget = Budget(1.0, NoiseKey(seed=1))
    first, second = (budget.some_of(20_000, 0.3) for _ in range(2))
    assert first is not None
    assert second is not None
    for kept in (first, second):
        assert abs(len(kept) - 6000) < 5 * math.sqrt(20_000 * 0.3 * 0.7)
        assert (np.diff(kept) > 0).all()
    assert len(np.intersect1d(first, second)) == pytest.approx(0.3 * 6000, abs=250)
    assert budget.some_of(20_000, 1.0) is None


def test_of_more_records_than_are_looked_at_pairs_come_as_often_as_in_all(monkeypatch):
    plan_always(monkeypatch)
    monkeypatch.setattr(mixed_codes, "_ENTRIES", 10_000)  # of about 56,000
    train = ill_people(6000, 0)
    drawn = (
        mixed_of(codes_schema((), None))
        .fit(train, math.inf, None, NoiseKey(seed=0))
        .sample(6000, np.random.default_rng(0))
    )
    held, real = held_codes(drawn), held_codes(train)
    assert (held[:, 20] & held[:, 21]).mean() == pytest.approx((real[:, 20] & real[:, 21]).mean(), abs=0.02)


# ---- what is drawn


def correlation_error(held: np.ndarray, real: np.ndarray) -> float:
    upper = np.triu_indices(WIDTH, 1)
    found, true = (np.corrcoef(one.T.astype(float))[upper] for one in (held, real))
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def drawn_from(train: pa.Table, name: str, epsilon: float = math.inf) -> np.ndarray:
    schema = codes_schema((), None)
    baseline = next(one for one in baselines_for(schema) if one.name == name)
    fitted = baseline.fit(train, epsilon, 1e-5, NoiseKey(seed=0))
    return held_codes(fitted.sample(8000, np.random.default_rng(0)))


def test_without_noise_what_codes_have_to_do_with_each_other_is_kept():
    train = ill_people(8000, 0)
    real = held_codes(train)
    alone, mixed = (drawn_from(train, name) for name in (choice.SIZED, choice.MIXED))
    assert correlation_error(alone, real) > 0.9
    assert correlation_error(mixed, real) < 0.15
    assert mixed[mixed[:, 20], 21].mean() > 0.97  # nobody has C20 without C21
    assert alone[alone[:, 20], 21].mean() < 0.5
    assert np.abs(mixed.mean(0) - real.mean(0)).max() < 0.03


def test_at_epsilon_one_most_of_it_is_kept():
    train = ill_people(30_000, 0)
    real, mixed = held_codes(train), drawn_from(train, choice.MIXED, 1.0)
    assert correlation_error(mixed, real) < 0.4
    assert mixed[mixed[:, 20], 21].mean() > 0.8


def test_few_records_have_counts_alone():
    fitted = mixed_of(codes_schema((), None)).fit(ill_people(300, 0), 1.0, 1e-5)
    names = {one.mechanism for one in fitted.mechanisms}
    assert names == {"numbers of codes: dx", "code counts: dx"}


@pytest.mark.parametrize("classes", [1, 3])
def test_chances_make_codes_as_frequent_as_is_wanted(classes):
    """Whatever the clusters, and although a record has no code twice."""
    rng, most = np.random.default_rng(0), 12
    edges = number_edges(most)
    sizes = rng.dirichlet(np.ones(4 * len(edges)), classes).reshape(classes, 4, len(edges))
    sizes[:, :, 0] = 0
    sizes /= sizes.sum((1, 2), keepdims=True)
    within = np.array([within_bins(own.sum(0), most) for own in sizes])
    kinds = CodeKinds(sizes, np.exp(rng.normal(0, 1, (4, WIDTH))).astype(np.float32), within)
    shares = np.sort(rng.dirichlet(np.full(WIDTH, 2.0), classes)) * 4.0
    chances = settled_chances(kinds, WantedCodes(shares, np.zeros(shares.shape, bool), 100), rng)
    for index in range(classes):
        drawn = raced(kinds, chances, np.full(40_000, index), rng)
        found = np.bincount(drawn.positions, minlength=WIDTH) / 40_000
        wanted = shares[index] * found.sum() / shares[index].sum()
        assert np.abs(found - wanted).max() < 0.02
        assert np.bincount(drawn.rows).max() <= most


def test_codes_of_a_record_are_drawn_in_proportion_to_their_weights_and_never_twice():
    """Against all orders in which two of three may come, also where one code has nearly all the weight."""
    rng = np.random.default_rng(0)
    for weights in (np.array([1.0, 2.0, 3.0]), np.array([1e-9, 1.0, 1e-9])):
        kinds = CodeKinds(np.ones((1, 1, 3)) * [0, 0, 1], np.ones((1, 3), np.float32), np.array([[1.0, 1.0, 1.0]]))
        drawn = raced(kinds, np.log(weights)[None], np.zeros(20_000, np.int64), rng)
        assert (np.bincount(drawn.rows) == 2).all()
        assert len(np.unique(drawn.rows * 3 + drawn.positions)) == 40_000
        share = weights / weights.sum()
        left_out = [
            sum(share[a] * share[b] / (1 - share[a]) for a, b in ((i, j), (j, i))) for i, j in ((1, 2), (0, 2), (0, 1))
        ]
        found = np.bincount(drawn.positions, minlength=3) / 20_000
        assert found == pytest.approx(1 - np.array(left_out), abs=0.02)


def test_records_that_chance_leaves_short_get_others_of_the_codes_that_they_do_not_have():
    """Of 30 codes nearly all weight is on three; records have from none of them to all."""
    numbers = np.tile([0, 30, 2, 7, 29], 20)
    weights = np.where(np.arange(30) < 3, 1.0, 1e-12)
    records, codes = _different(weights, numbers, np.random.default_rng(0))
    assert np.array_equal(np.bincount(records, minlength=100), numbers)
    assert len(np.unique(records * 30 + codes)) == numbers.sum()
    frequent = np.bincount(records[codes < 3], minlength=100)
    assert np.array_equal(frequent, np.minimum(numbers, 3))


@pytest.mark.parametrize("most", [1, 2, 7, 30, 180])
def test_numbers_within_a_bin_add_up_and_fall_with_the_bins_around(most):
    edges = np.append(number_edges(most), most + 1)
    shares = 0.5 ** np.arange(len(edges) - 1)
    within = within_bins(shares, most)
    assert np.add.reduceat(within, edges[:-1]) == pytest.approx(np.ones(len(shares)))
    for first, end in pairwise(edges):
        assert (np.diff(within[first:end]) <= 1e-12).all()


def test_kept_numbers_draw_the_same_rows_and_damaged_ones_are_refused():
    (column,) = codes_schema((), None).codes_columns()
    part, baseline = MixedCodes(column, mixed=True), mixed_of(codes_schema((), None))
    (drawn,) = baseline.fit(ill_people(8000, 0), math.inf, None).parts
    arrays = drawn.arrays()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(arrays["repair.first"]) > 0
    classes = np.zeros(500, np.int64)
    first, again = (one.draw(classes, np.random.default_rng(3))["dx"] for one in (drawn, part.restored(arrays)))
    assert first.equals(again)
    for name in arrays:
        with pytest.raises(KeyError):
            part.restored({other: values for other, values in arrays.items() if other != name})
    for name, values in (
        ("chances", arrays["chances"][:, 1:]),
        ("sizes", arrays["sizes"][:, :, 1:]),
        ("within", arrays["within"] * math.nan),
        ("ratios", arrays["ratios"].astype(np.float64)),
        ("ratios", 0 * arrays["ratios"]),
        ("repair.first", arrays["repair.first"] + WIDTH),
        ("repair.second", arrays["repair.second"].astype(np.int32)),
        ("repair.codes", arrays["repair.codes"].astype(np.float64)),
        ("repair.counted", arrays["repair.counted"] - 1000),
        ("repair.shares", arrays["repair.shares"][1:]),
        ("repair.shares", -arrays["repair.shares"]),
        ("repair.shares", 1 + arrays["repair.shares"]),
        ("repair.full", np.zeros(1, np.int64)),
    ):
        with pytest.raises(ValueError, match="Expected"):
            part.restored({**arrays, name: values})


# ---- moving codes


def random_records(rows: int, classes: int, seed: int) -> ModelRecords:
    rng = np.random.default_rng(seed)
    held = rng.random((rows, WIDTH)) < np.linspace(0.3, 0.02, WIDTH)
    row, code = np.nonzero(held)
    sets = CodeRows.from_entries(row, code, rows)
    clusters = rng.integers(0, 3, rows)
    return ModelRecords(sets, rng.integers(0, classes, rows), clusters, np.ones((3, WIDTH), np.float32))


def counts_of(sets: CodeRows, classes: np.ndarray, index: int) -> np.ndarray:
    return sets.take(np.flatnonzero(classes == index)).weighted_counts(WIDTH, np.ones((classes == index).sum()))[0]


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("times", [0.0, 0.5, 1.5])
def test_mended_records_have_pairs_as_often_as_is_wanted_and_each_code_as_often_as_before(classes, times):
    drawn, codes = random_records(6000, classes, 0), np.arange(WIDTH)
    first, second = np.array([9, 30, 12]), np.array([2, 5, 7])

    def pairs_of(sets: CodeRows) -> np.ndarray:
        own = [sets.take(np.flatnonzero(drawn.classes == index)) for index in range(classes)]
        return np.array([pair_counts(one, codes, np.ones(len(one)), 1000)[first, second] for one in own]).T

    wanted = times * pairs_of(drawn.sets)
    rarer = np.array([counts_of(drawn.sets, drawn.classes, index)[first] for index in range(classes)]).T
    used = np.unique([first, second])
    places = np.searchsorted(used, first), np.searchsorted(used, second)
    mended = PairRepair(codes, used, *places, wanted / rarer, 1000).mended(drawn, seed=1)
    assert pairs_of(mended) == pytest.approx(wanted, abs=6)
    for index in range(classes):
        assert (counts_of(mended, drawn.classes, index) == counts_of(drawn.sets, drawn.classes, index)).all()
    assert np.std(np.diff(mended.starts)) == pytest.approx(np.std(np.diff(drawn.sets.starts)), rel=0.05)
    assert mended.are_sets()


def held_after(drawn: ModelRecords, pair: tuple[int, int], share: float) -> np.ndarray:
    """Who has the two codes, (rows, 2), once this share of those with the first has both."""
    first, second = (np.array([place]) for place in np.argsort(np.argsort(pair)))
    shares = np.full((1, drawn.classes.max() + 1), share)
    mended = PairRepair(np.arange(WIDTH), np.sort(pair), first, second, shares, 1000).mended(drawn, seed=1)
    held = np.zeros((len(mended), WIDTH), bool)
    held[mended.row_of_entry(), mended.positions] = True
    return held[:, pair]


@pytest.mark.parametrize("rows", [50, 500, 5000])
def test_whoever_has_a_code_has_the_one_that_it_implies_however_many_have_it(rows):
    """By chance more or fewer than the model has on average."""
    held = held_after(random_records(rows, 2, 0), (30, 3), 1.0)
    assert held[:, 0].any()
    assert held[held[:, 0], 1].all()


def test_a_pair_that_cannot_come_more_often_comes_as_often_as_it_can():
    held = held_after(random_records(500, 1, 0), (3, 30), 1.0)
    assert held.all(1).sum() == held[:, 1].sum() < held[:, 0].sum()  # who has the rarer one has both


def test_indices_that_do_not_fit_are_refused():
    has = np.zeros((2, 3), np.uint8)
    whole, real = partial(np.zeros, dtype=np.int64), partial(np.zeros, dtype=np.float64)
    good = {
        "has": has, "classes": whole(3), "clusters": whole(3), "weights": real(3), "sizes": real(3),
        "ratios": np.ones((1, 2), np.float32), "first": whole(1), "second": whole(1) + 1, "wanted": real((1, 1)),
        "sweeps": 1, "seed": 0,
    }  # fmt: skip
    native_module().swap_codes(**good)
    for name, value in (
        ("classes", whole(3) + 1), ("clusters", whole(3) - 1), ("first", whole(1) + 2), ("second", whole(2)),
        ("weights", real(2)), ("ratios", np.ones((1, 3), np.float32)), ("wanted", real(1)), ("sizes", real(4)),
        ("wanted", real((1, 1)) - 1), ("wanted", real((1, 1)) + math.nan),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="swap_codes: expected"):
            native_module().swap_codes(**{**good, name: value})
