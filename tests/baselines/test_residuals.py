"""Correlations and means beyond a tree: what is summed is bounded, known ones come back, and what is drawn has the
marginals, or those that the means tell.
"""

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import norm

from dpcgan_fast.baselines import Baseline, statistics_for, tree
from dpcgan_fast.baselines.residuals import Residuals, Step, drawn_along, expected_normals, shrunk
from dpcgan_fast.baselines.statistics import arrays_of, restored
from dpcgan_fast.baselines.tree import Tree
from dpcgan_fast.data.public_cells import modelled_columns
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.privacy import noise_key
from tests.baselines.replay import cauchy, refuse_moves
from tests.baselines.stand_ins import every_pair_clear

COLUMNS = [
    *({"name": name, "type": "numeric", "bounds": [0, 1], "missing": True} for name in ("a", "b")),
    {"name": "c", "type": "categorical", "categories": ["x", "y", "z"]},
    {"name": "d", "type": "numeric", "bounds": [0, 1]},
    {"name": "label", "type": "binary"},
]
CORRELATION = 0.6  # of the normals of all pairs of numbers


def schema_of(**more) -> Schema:
    return Schema.from_dict({"unit": None, "label": "label", "columns": COLUMNS, **more})


def alike(rows: int, seed: int = 0) -> pa.Table:
    """Numbers that all depend on something in common, which no tree of pairs can say."""
    rng = np.random.default_rng(seed)
    label, common = rng.integers(0, 2, rows), rng.standard_normal(rows)
    values = {}
    for name in ("a", "b", "d"):
        values[name] = norm.cdf(
            math.sqrt(CORRELATION) * common + math.sqrt(1 - CORRELATION) * rng.standard_normal(rows)
        )
    values["a"] = pa.array(values["a"], mask=rng.random(rows) < 0.1)
    values["c"] = pa.array(rng.choice(["x", "y", "z", "other"], rows))
    return pa.table({**values, "label": label})


@pytest.mark.parametrize("epsilon", [20.0, math.inf])
def test_pairs_that_the_tree_does_not_join_depend_as_real_ones_do(epsilon):
    statistics = statistics_for(schema_of())
    real = alike(20_000)
    fitted = statistics.fit(real, epsilon, 1e-5)
    (part,) = fitted.parts
    drawn = fitted.sample(20_000, np.random.default_rng(0)).to_pandas()
    names = ["a", "b", "d"]
    expected = real.to_pandas()[names].corr().to_numpy()
    error = np.abs(drawn[names].corr().to_numpy() - expected).max()
    part.residuals = None  # pyright: ignore[reportAttributeAccessIssue]
    without = fitted.sample(20_000, np.random.default_rng(0)).to_pandas()
    assert error < 0.6 * np.abs(without[names].corr().to_numpy() - expected).max()


@pytest.fixture
def classes_alike(monkeypatch):
    """Classes are taken to be alike whatever the noise is, so that means are released."""
    monkeypatch.setattr(tree, "_ALIKE", (0.0, math.inf))


def tilted(rows: int, seed: int = 0) -> pa.Table:
    """As `alike`, but numbers of the one class lie a little higher."""
    table = alike(rows, seed)
    label = table["label"].to_numpy()
    for place, name in enumerate(table.column_names[:3]):
        if name != "c":
            values = norm.cdf(norm.ppf(table[name].to_numpy(zero_copy_only=False)) + 0.2 * label)
            table = table.set_column(place, name, pa.array(values, mask=np.isnan(values)))
    return table


@pytest.mark.usefixtures("classes_alike")
def test_classes_that_the_noise_of_histograms_would_hide_differ_as_real_ones_do():
    real = tilted(6000)
    means = {}
    for name in ("with", "without"):
        errors = []
        for seed in range(4):
            fitted = statistics_for(schema_of()).fit(real, 0.5, 1e-5, noise_key(seed))
            (part,) = fitted.parts
            assert isinstance(part, tree._DrawnTree)
            assert part.residuals is not None
            if name == "without":
                part.residuals = Residuals(part.residuals.factors, None)
            drawn = fitted.sample(6000, np.random.default_rng(seed)).to_pandas()
            own, expected = (frame.groupby("label")[["a", "b"]].mean().diff() for frame in (drawn, real.to_pandas()))
            errors.append(np.abs(own - expected).iloc[1].mean())
        means[name] = np.mean(errors)
    assert means["with"] < 0.75 * means["without"]


def test_no_means_are_released_where_the_histograms_are_clear():
    names = {
        rows: {one.mechanism for one in statistics_for(schema_of()).fit(alike(rows), 1.0, 1e-5).mechanisms}
        for rows in (3000, 20_000)
    }
    assert "correlations and means beyond the tree" in names[3000]
    assert "correlations beyond the tree" in names[20_000]


def test_rows_lie_where_normals_of_the_mean_of_their_class_do_also_within_a_cell():
    steps = [Step(0, None, np.zeros(1, np.int64), np.array([[[0.25, 0.0, 0.5, 0.25]], [[1.0, 0.0, 0.0, 0.0]]]))]
    residuals = Residuals(np.ones((2, 1, 1)), np.array([[0.3], [-0.5]]))
    classes = np.repeat([0, 1], 10_000)
    found, inside = drawn_along(steps, residuals, classes, np.random.default_rng(0))
    ends = norm.cdf(norm.ppf([0.25, 0.75]) - 0.3)
    shares = np.bincount(found[0][:10_000], minlength=4) / 10_000
    assert shares == pytest.approx([ends[0], 0.0, ends[1] - ends[0], 1 - ends[1]], abs=2e-4)
    assert (found[0][10_000:] == 0).all()
    assert (inside[0][10_000:] < 0.5).mean() == pytest.approx(norm.cdf(0.5), abs=2e-4)


def test_classes_stay_alike_whatever_other_parts_say_of_how_many_rows_there_are(monkeypatch):
    """What the tree leaves was measured beyond classes that are alike, or beyond such that are not."""
    (part,) = statistics_for(schema_of()).fit(tilted(3000), 1.0, 1e-5, noise_key(0)).parts
    assert isinstance(part, tree._DrawnTree)
    assert part.alike
    totals = part.totals.values
    before = [step.chances for step in part.steps()]
    monkeypatch.setattr(tree, "_ALIKE", (math.inf, math.inf))
    part.settle(totals)
    assert all(np.array_equal(own, step.chances) for own, step in zip(before, part.steps(), strict=True))


@pytest.mark.parametrize("named", [{"factors"}, {"factors", "means"}], ids=["correlations", "and means"])
def test_what_is_kept_draws_the_same_rows_and_what_no_release_gives_is_refused(monkeypatch, named):
    monkeypatch.setattr(tree, "_ALIKE", (0.0, math.inf) if "means" in named else (math.inf, math.inf))
    statistics = statistics_for(schema_of())
    fitted = statistics.fit(tilted(5000), 5.0, 1e-5)
    arrays = arrays_of(fitted)
    assert {name.removeprefix("0.") for name in arrays} & {"factors", "means"} == named
    again = restored(statistics, arrays, fitted.seeded)
    assert again.sample(100, np.random.default_rng(3)).equals(fitted.sample(100, np.random.default_rng(3)))
    for name in named:
        values = arrays[f"0.{name}"]
        for bad in (values + 2, values[:1], values[:, :-1], values * np.nan):
            with pytest.raises(ValueError, match=name):
                restored(statistics, {**arrays, f"0.{name}": bad}, fitted.seeded)


@pytest.mark.usefixtures("classes_alike")
def test_means_without_factors_are_refused():
    statistics = statistics_for(schema_of())
    fitted = statistics.fit(tilted(5000), 5.0, 1e-5)
    arrays = arrays_of(fitted)
    del arrays["0.factors"]
    with pytest.raises(KeyError, match="factors"):
        restored(statistics, arrays, fitted.seeded)


@pytest.mark.parametrize(
    ("epsilon", "spoil"),
    [(1.0, lambda values: values), (300.0, lambda values: values), (1.0, cauchy)],
    ids=["1", "300", "heavy tails"],
)
@pytest.mark.parametrize("likeness", [tree._ALIKE, (-math.inf, math.inf)], ids=["", "alike"])
def test_a_unit_moves_the_release_by_at_most_its_sensitivity(monkeypatch, epsilon, spoil, likeness):
    every_pair_clear(monkeypatch)
    monkeypatch.setattr(tree, "_ALIKE", likeness)

    def baseline_of(**more) -> Baseline:
        schema = schema_of().model_copy(update=more)
        columns = tuple(column for column in modelled_columns(schema) if column.name != "label")
        return Baseline("tree", schema, (Tree(columns),))

    found = f"correlations {'and means ' if math.isinf(likeness[1]) else ''}beyond the tree"
    assert found in refuse_moves(monkeypatch, alike(60), epsilon, baseline_of, spoil)


def test_with_few_rows_for_the_noise_the_histograms_have_everything():
    mechanisms = statistics_for(schema_of()).fit(alike(300), 0.5, 1e-5).mechanisms
    assert [one.mechanism for one in mechanisms] == ["histograms", "histograms"]


def test_cells_are_drawn_by_their_chances_whatever_the_correlations():
    chances = np.array([[[0.2, 0.0, 0.8]]])
    steps = [
        Step(0, None, np.zeros(1, np.int64), chances),
        Step(1, 0, np.array([0, 0, 1]), np.array([[[1.0, 0.0], [0.3, 0.7]]])),
    ]
    correlation = np.array([[1.0, 0.9], [0.9, 1.0]])
    factors = np.linalg.cholesky(correlation)[None]
    found, inside = drawn_along(steps, Residuals(factors, None), np.zeros(40_000, np.int64), np.random.default_rng(0))
    assert np.bincount(found[0], minlength=3) == pytest.approx([8000, 0, 32_000], abs=1)
    assert (found[1][found[0] == 0] == 0).all()
    assert found[1][found[0] == 2].sum() == pytest.approx(0.7 * 32_000, abs=2)
    for place in (0, 1):
        assert ((inside[place] >= 0) & (inside[place] < 1)).all()
    assert inside[0].mean() == pytest.approx(0.5, abs=0.015)


def test_expected_normals_are_those_of_the_stretches():
    chances = np.array([0.1, 0.5, 0.0, 0.4])
    normals = np.random.default_rng(0).standard_normal(400_000)
    ends = norm.ppf([0.1, 0.6])
    parts = [
        normals[normals < ends[0]],
        normals[(normals >= ends[0]) & (normals < ends[1])],
        normals[normals >= ends[1]],
    ]
    found = expected_normals(chances)
    assert found[[0, 1, 3]] == pytest.approx([part.mean() for part in parts], abs=0.01)
    assert chances @ found == pytest.approx(0.0, abs=1e-9)
    assert np.isfinite(expected_normals(np.zeros((2, 3)))).all()


def test_values_that_the_noise_explains_are_shrunk_and_clear_ones_stay():
    rng = np.random.default_rng(0)
    truth = np.where(np.arange(400) < 40, 0.7, 0.0)
    grid = np.linspace(-0.98, 0.98, 99)
    noisy = truth + rng.normal(0, 0.1, 400)
    found = shrunk(noisy, np.full(400, 0.1), grid)
    assert np.abs(found - truth).mean() < 0.4 * np.abs(noisy - truth).mean()
    assert np.isfinite(shrunk(noisy * 1e9, np.full(400, 1e-3), grid)).all()


def test_shrunk_values_never_lie_beyond_the_grid():
    """Kept means beyond it are refused: a sum of chances that rounds to a little more than 1 would lose a run."""
    rng, grid = np.random.default_rng(0), np.linspace(-1.0, 1.0, 161)
    for _ in range(1000):
        count = rng.integers(2, 30)
        means, std = rng.choice([-1.3, 1.3, 0.0, 0.2], count), rng.uniform(0.02, 0.2, count)
        assert np.abs(shrunk(means + std * rng.normal(size=count), std, grid)).max() <= 1.0
