"""Rows as releases count them: block by block, so that what is in memory at once is not many times the table."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.baselines import arrays_of, rows, statistics_for
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import noise_key
from tests.baselines.tables import signal_schema, signals
from tests.baselines.test_tree import chained
from tests.baselines.test_tree import schema_of as schema_of_chained
from tests.baselines.test_within_bins import rounded_people
from tests.baselines.test_within_bins import schema_of as schema_of_people


def people(count: int) -> pa.Table:
    """Two or three rows of each; neither they nor what is known of them end where a block does."""
    table = rounded_people(count)
    depends = table["weight"].to_numpy() + 20 * table["y"].to_numpy()
    table = table.append_column("after", pa.array(depends + np.random.default_rng(1).normal(0, 3, count)))
    return table.append_column("person", pa.array(np.arange(count) * 2 // 5))


def people_schema() -> Schema:
    after = {"name": "after", "type": "numeric", "bounds": [20, 200]}
    columns = [*(column.model_dump() for column in schema_of_people().columns), after]
    return Schema.from_dict({"unit": "person", "max_rows_per_unit": 3, "label": "y", "columns": columns})


def test_weights_of_a_unit_sum_to_no_more_than_one_and_exactly():
    """Whole multiples of 2^-20, as in `unit_weights`: the order of rows does not matter, nor how many there are."""
    weights = Rows.of(people(500), people_schema()).weights
    assert ((weights * 2**20) % 1 == 0).all()
    sums = np.bincount(np.arange(500) * 2 // 5, weights)
    assert sums.max() == 1
    assert sums.min() > 1 - 4 * 2**-20


def in_small_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rows, "_BLOCK", 1)
    patch.setattr(rows, "_LEAST_ROWS", 257)


def test_blocks_are_all_rows_in_their_order(monkeypatch):
    in_small_blocks(monkeypatch)
    whole = Rows.of(people(1000), people_schema())
    blocks = list(whole.blocks(4))
    assert [len(block.classes) for _, block in blocks] == [257, 257, 257, 229]
    for name in ("classes", "weights"):
        assert np.array_equal(np.concatenate([getattr(block, name) for _, block in blocks]), getattr(whole, name))
    assert pa.concat_tables([block.table for _, block in blocks]).equals(whole.table)
    assert np.array_equal(np.concatenate([whole.weights[part] for part, _ in blocks]), whole.weights)
    assert not list(Rows.of(people(0), people_schema()).blocks(4))


def test_the_wider_rows_are_the_fewer_are_in_a_block_but_never_very_few():
    whole = Rows.of(people(5000), people_schema())
    assert [len(list(whole.blocks(width))) for width in (0, 1, 2000, 10**9)] == [1, 1, 3, 3]


@pytest.mark.parametrize("kind", ["a tree", "waves"])
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_statistics_do_not_depend_on_blocks(monkeypatch, kind, noise):
    table, schema = (people(6000), people_schema()) if kind == "a tree" else (signals(3000, 0), signal_schema())
    whole = arrays_of(statistics_for(schema).release(table, noise, noise_key(0)))
    in_small_blocks(monkeypatch)
    blocks = arrays_of(statistics_for(schema).release(table, noise, noise_key(0)))
    assert ("0.factors" in whole) == (kind == "a tree")
    assert whole.keys() == blocks.keys()
    for name, values in whole.items():
        assert values == pytest.approx(blocks[name], rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("kind", ["a tree", "waves"])
def test_statistics_of_more_rows_take_little_more_memory_than_the_table(monkeypatch, kind):
    """All rows at once as numbers would take several times as much. The table itself, Arrow's, is not counted."""
    monkeypatch.setattr(rows, "_BLOCK", 1 << 12)
    tree = kind == "a tree"
    peaks, sizes = [], []
    for count in (10_000, 40_000):
        table, schema = (chained(count, 16), schema_of_chained(16)) if tree else (signals(count, 0), signal_schema())
        tracemalloc.start()
        released = statistics_for(schema).release(table, 1.0, NoiseKey())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(table.nbytes)
        assert ("0.factors" in arrays_of(released)) == tree
    assert np.diff(peaks)[0] < 1.5 * np.diff(sizes)[0]
