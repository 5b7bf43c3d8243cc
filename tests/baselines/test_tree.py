"""A tree of columns: pairs are chosen by scores of sensitivity 1, and what is drawn depends as the real rows do."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.baselines import baselines_for, choice, tree
from dpcgan_fast.baselines.groups import grouping
from dpcgan_fast.baselines.histograms import shares_of
from dpcgan_fast.data.public_cells import cell_count, modelled_columns
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import noise_key
from tests.conftest import examples


def schema_of(count: int) -> Schema:
    columns = [{"name": f"x{i}", "type": "numeric", "bounds": [0, 1]} for i in range(count)]
    label = {"name": "y", "type": "binary"}
    return Schema.from_dict({"unit": None, "label": "y", "columns": [*columns, label]})


def chained(rows: int, count: int, seed: int = 0) -> pa.Table:
    """Each column follows the one before it, in the one class upwards and in the other downwards."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows)
    columns = [rng.random(rows)]
    for _ in range(count - 1):
        noisy = np.clip(columns[-1] + rng.normal(0, 0.1, rows), 0, 1)
        columns.append(np.where(y == 1, noisy, 1 - noisy))
    return pa.table({**{f"x{i}": column for i, column in enumerate(columns)}, "y": y})


def fitted_tree(schema: Schema, table: pa.Table, epsilon: float, key: NoiseKey | None = None):
    baseline = next(one for one in baselines_for(schema) if one.name == choice.TREE)
    return baseline.fit(table, epsilon, 1e-5, key)


def correlations(table: pa.Table, y: int) -> np.ndarray:
    frame = table.to_pandas()
    return frame[frame.y == y].drop(columns="y").corr().to_numpy()


@pytest.mark.parametrize("epsilon", [2.0, math.inf])
def test_dependence_along_the_tree_is_kept_in_each_class(epsilon):
    train = chained(6000, 4)
    drawn = fitted_tree(schema_of(4), train, epsilon, noise_key(0)).sample(6000, np.random.default_rng(0))
    for y in (0, 1):
        assert np.abs(correlations(drawn, y) - correlations(train, y)).max() < (0.15 if math.isinf(epsilon) else 0.3)
        real, own = (table.filter(np.array(table["y"]) == y)["x3"].to_numpy() for table in (train, drawn))
        assert own.mean() == pytest.approx(real.mean(), abs=0.03)


def alike_people(rows: int) -> pa.Table:
    """A chain of six columns that is the same in both classes."""
    rng = np.random.default_rng(0)
    return chained(rows, 6).set_column(6, "y", pa.array(rng.permutation(np.arange(rows) % 2)))


@pytest.mark.parametrize(("rows", "near"), [(3000, True), (12_000, False)])
def test_between_two_strengths_classes_that_are_alike_are_not_made_to_differ_by_the_noise(rows, near):
    (part,) = fitted_tree(schema_of(6), alike_people(rows), 2.0, noise_key(0)).parts
    assert part.tables
    least, most = (bound * part.std for bound in tree._ALIKE)
    assert (least <= part.totals.values.sum() < most) == near
    kept = (part.arrays()[f"shares.{place}"] for place in range(6))
    own = sum(np.abs(np.diff(shares, axis=0)).sum() for shares in kept)
    noisy = sum(np.abs(np.diff(shares_of(one, part.totals.values), axis=0)).sum() for one in part.noisy)
    assert own < 0.5 * noisy if near else own == pytest.approx(noisy)


def test_neighbours_in_the_chain_are_joined():
    (part,) = fitted_tree(schema_of(5), chained(6000, 5), 5.0).parts
    edges = {frozenset((table.edge.parent, table.edge.child)) for table in part.tables}
    assert edges == {frozenset((i, i + 1)) for i in range(4)}


def test_parents_are_drawn_before_their_children():
    (part,) = fitted_tree(schema_of(6), chained(6000, 6), math.inf).parts
    known = set(range(6)) - {table.edge.child for table in part.tables}
    for table in part.tables:
        assert table.edge.parent in known
        known.add(table.edge.child)
    assert known == set(range(6))


@pytest.mark.parametrize("epsilon", [0.02, 1.0])
def test_columns_that_do_not_depend_or_that_the_noise_hides_are_drawn_on_their_own(epsilon):
    rng = np.random.default_rng(0)
    independent = pa.table({**{f"x{i}": rng.random(2000) for i in range(4)}, "y": rng.integers(0, 2, 2000)})
    table = independent if epsilon == 1.0 else chained(2000, 4)
    (part,) = fitted_tree(schema_of(4), table, epsilon).parts
    assert part.tables == []


def test_without_edges_the_whole_budget_goes_to_the_histograms():
    rng = np.random.default_rng(0)
    table = pa.table({**{f"x{i}": rng.random(700) for i in range(3)}, "y": rng.integers(0, 2, 700)})
    mechanisms = fitted_tree(schema_of(3), table, 1.0).mechanisms
    assert [one.mechanism for one in mechanisms] == ["histograms", "scores of pairs", "histograms"]


def test_missing_cells_that_come_together_do_so_in_what_is_drawn():
    rng = np.random.default_rng(0)
    absent = rng.random(4000) < 0.4
    columns = {name: pa.array(rng.random(4000), mask=absent) for name in ("a", "b")}
    listed = [{"name": name, "type": "numeric", "bounds": [0, 1], "missing": True} for name in ("a", "b")]
    schema = Schema.from_dict({"unit": None, "columns": listed})
    drawn = fitted_tree(schema, pa.table(columns), 5.0).sample(4000, np.random.default_rng(0)).to_pandas()
    assert (drawn.a.isna() == drawn.b.isna()).mean() > 0.95
    assert drawn.a.isna().mean() == pytest.approx(0.4, abs=0.04)


# ---- groups of cells


def column_of(kind: str, missing: bool, cells: int) -> Column:
    if kind == "numeric":
        column = Column(name="x", type="numeric", bounds=(0, cells - 1), integer=True, missing=missing)
    else:
        names = tuple(f"c{i}" for i in range(cells))
        column = Column(name="x", type="categorical", categories=names, unknown="first", missing=missing)
    schema = Schema(unit=None, columns=(column,))
    return modelled_columns(schema)[0]


@settings(max_examples=examples(60))
@given(
    kind=st.sampled_from(["numeric", "categorical"]),
    missing=st.booleans(),
    weights=st.lists(st.floats(0, 100), min_size=2, max_size=20),
    most=st.integers(2, 20),
)
def test_groups_are_few_hold_every_cell_and_keep_missing_ones_apart(kind, missing, weights, most):
    column = column_of(kind, missing, len(weights))
    known = np.array([*weights, 5.0] if missing else weights)
    groups = grouping(column, known, most)
    assert len(groups.of_cell) == cell_count(column)
    present = groups.of_cell[: len(weights)]
    assert len(np.unique(present)) <= most
    assert set(groups.of_cell) == set(range(groups.count))
    assert (groups.of_cell[len(weights) :] == (present.max() + 1 if missing else 0)).all()
    if kind == "numeric":
        assert (np.diff(present) >= 0).all()
    shares = known[None] / max(known.sum(), 1.0)
    assert groups.sums(shares).sum() == pytest.approx(shares.sum())
    assert groups.within(shares).sum(axis=2) == pytest.approx(1)


def test_numbers_are_cut_into_groups_of_about_equal_weight():
    groups = grouping(column_of("numeric", False, 20), np.array([10.0] * 4 + [1.0] * 16), 4)
    weights = np.bincount(groups.of_cell[:20], np.array([10.0] * 4 + [1.0] * 16))
    assert groups.count == 4
    assert weights.max() <= 25


def test_the_heaviest_categories_stay_on_their_own():
    groups = grouping(column_of("categorical", False, 6), np.array([1.0, 9.0, 2.0, 8.0, 0.0, 3.0]), 3)
    assert groups.of_cell.tolist()[:6] == [2, 0, 2, 1, 2, 2]
