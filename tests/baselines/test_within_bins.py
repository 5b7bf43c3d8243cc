"""Where within their bins numbers lie: values that many rows share come as often as among real rows."""

import math

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.baselines import Baseline, arrays_of, restored, statistics_for, tree, within_bins
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.baselines.tree import Tree
from dpcgan_fast.baselines.within_bins import piece_edges, release_within_bins
from dpcgan_fast.data.public_cells import bin_edges
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.ops import NoiseKey
from tests.baselines.replay import refuse_moves

COLUMNS = [
    {"name": "pressure", "type": "numeric", "bounds": [0, 300], "integer": True, "missing": True},
    {"name": "weight", "type": "numeric", "bounds": [20, 200]},
    {"name": "y", "type": "binary"},
]


def schema_of(**more) -> Schema:
    return Schema.from_dict({"unit": None, "label": "y", "columns": COLUMNS, **more})


def rounded_people(rows: int, seed: int = 0) -> pa.Table:
    """Pressures are multiples of ten, in the one class above those of the other; some are missing."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows)
    pressure = 10 * np.round(12 + y + rng.normal(0, 1, rows))
    return pa.table({
        "pressure": pa.array(pressure.astype(np.int64), mask=rng.random(rows) < 0.1),
        "weight": rng.uniform(50, 90, rows),
        "y": y,
    })  # fmt: skip


@pytest.mark.parametrize("epsilon", [1.0, math.inf])
def test_values_that_many_share_come_as_often(epsilon):
    train = rounded_people(20_000)
    drawn = statistics_for(schema_of()).fit(train, epsilon, 1e-5).sample(20_000, np.random.default_rng(0))
    real, own = (table["pressure"].drop_null().to_numpy() for table in (train, drawn))
    for value in (110, 120, 124, 130):
        assert np.mean(own == value) == pytest.approx(np.mean(real == value), abs=0.02)
    missing = drawn["pressure"].null_count / len(drawn)
    assert missing == pytest.approx(train["pressure"].null_count / len(train), abs=0.02)
    for y in (0, 1):  # 120 and 130 are in one bin, and not as frequent in both classes
        both = drawn.filter(np.asarray(drawn["y"]) == y)["pressure"].drop_null().to_numpy()
        same = train.filter(np.asarray(train["y"]) == y)["pressure"].drop_null().to_numpy()
        share, wanted = (np.mean(one == 120) / np.mean(np.isin(one, (120, 130))) for one in (both, same))
        assert share == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("kind", [{"integer": True}, {}], ids=["whole", "real"])
@pytest.mark.parametrize("bounds", [(0, 300), (0, 5), (-1e6, 1e6), (0.25, 0.75), (3, 3.5), (1, 1 + 1e-15)])
def test_pieces_make_up_the_bins(kind, bounds):
    column = Column(name="x", type="numeric", bounds=bounds, **kind)
    edges, bins = piece_edges(column)
    assert (np.diff(edges) >= 0).all()
    of_bins = bin_edges(column)
    assert np.array_equal(edges[np.searchsorted(bins, np.arange(len(of_bins) - 1))], of_bins[:-1])
    assert edges[-1] == of_bins[-1]
    if kind and bounds[0] + 20 < bounds[1]:
        assert (np.floor(edges[1:]) > np.floor(edges[:-1])).all(), "a whole number in each"


@pytest.mark.parametrize("epsilon", [1.0, math.inf])
@pytest.mark.parametrize("upper", [math.nextafter(1.0, 2.0), 1 + 1e-15])
def test_bounds_as_near_as_numbers_can_be_leave_chances_that_can_be_kept(epsilon, upper):
    """Their bins have no width, and no chance may be a number that is none, or negative."""
    near = {"name": "x", "type": "numeric", "bounds": [1.0, upper]}
    schema = Schema.from_dict({"unit": None, "label": "y", "columns": [near, *COLUMNS[1:]]})
    people = rounded_people(5000).drop_columns("pressure").append_column("x", pa.array(np.ones(5000)))
    statistics = statistics_for(schema)
    arrays = arrays_of(statistics.fit(people, epsilon, 1e-5))
    assert any("within" in name for name in arrays)
    drawn = restored(statistics, arrays, seeded=False).sample(50, np.random.default_rng(0))
    assert all(1 <= value <= upper for value in drawn["x"].to_pylist())


def test_with_few_rows_bins_are_filled_alike_in_all_classes():
    columns = schema_of().columns[:2]
    for rows, alike in ((2000, True), (20_000, False)):
        people = rounded_people(rows)
        budget = Budget(3.0, NoiseKey(seed=1))
        found = release_within_bins(Rows.of(people, schema_of()), columns, np.full(2, rows / 2), budget, 0.1)
        assert found is not None
        assert all(np.array_equal(own[0], own[1]) == alike for own in found.given.values())


@pytest.mark.parametrize("rows", [50, 20_000])
@pytest.mark.parametrize(("total", "made"), [(25.0, False), (10_000.0, True)])
def test_where_noise_would_hide_it_nothing_is_spent_and_the_released_totals_decide(rows, total, made):
    budget = Budget(3.0, NoiseKey())
    columns, people = schema_of().columns[:2], Rows.of(rounded_people(rows), schema_of())
    found = release_within_bins(people, columns, np.array([total, total]), budget, 0.1)
    assert (found is not None) == made
    assert [one.mechanism for one in budget.mechanisms] == ["within bins"] * made


@pytest.mark.parametrize("epsilon", [1.0, 300.0])
def test_removing_a_unit_moves_no_release_by_more_than_its_sensitivity(monkeypatch, epsilon):
    for module in (within_bins, tree):
        monkeypatch.setattr(module, "_LEAST_STRENGTH", 0.0)

    def baseline_of(**more) -> Baseline:
        schema = schema_of().model_copy(update=more)
        return Baseline("tree", schema, (Tree(schema.columns[:2]),))

    people = rounded_people(60).select(["weight", "pressure", "y"])  # nobody's first column is missing
    assert "within bins" in refuse_moves(monkeypatch, people, epsilon, baseline_of)


def test_kept_chances_draw_the_same_rows_and_others_are_refused():
    statistics = statistics_for(schema_of())
    fitted = statistics.fit(rounded_people(5000), 5.0, 1e-5)
    arrays = arrays_of(fitted)
    again = restored(statistics, arrays, fitted.seeded)
    assert again.sample(100, np.random.default_rng(3)).equals(fitted.sample(100, np.random.default_rng(3)))
    name = next(name for name in arrays if "within" in name)
    for bad in (arrays[name][:, :-1], arrays[name][:1], arrays[name] * 2, -arrays[name], arrays[name][0]):
        with pytest.raises(ValueError, match="chances"):
            restored(statistics, {**arrays, name: bad}, fitted.seeded)
