"""Made-up tables of codes look like real ones, and what is measured on them is what is said."""

import itertools
import json

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import linregress, ttest_ind

from dpcgan_fast.bench import bench_scale, code_tables, read_results, scale, write_results
from dpcgan_fast.bench.code_tables import CONDITIONS, MOST_CODES, CodeTable, write_events, write_store
from dpcgan_fast.bench.resident import Resident, with_resident
from dpcgan_fast.bench.scale import FROM_STORE, IN_MEMORY
from dpcgan_fast.bench.store_steps import StoreRun
from dpcgan_fast.bench.timing import Timing
from dpcgan_fast.cli import run
from dpcgan_fast.data.preparing import prepare
from dpcgan_fast.data.records import read_records
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.store import read_store
from dpcgan_fast.train.plan import AUTOENCODER
from dpcgan_fast.train.session import Silent
from tests.bench.results import MACHINE

HALF_GIB = 1 << 29


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(code_tables, "_BLOCK_EVENTS", 1 << 10)


def flags(table: CodeTable) -> np.ndarray:
    """(patients, codes), whether each patient has each code."""
    blocks = [np.zeros((len(rows), table.codes), bool) for rows in table.blocks()]
    for block, rows in zip(blocks, table.blocks(), strict=True):
        block[rows.row_of_entry(), rows.positions] = True
    return np.concatenate(blocks)


def pairs_of(patients: np.ndarray, codes: np.ndarray) -> set[tuple[int, int]]:
    return set(zip(patients.tolist(), codes.tolist(), strict=True))


# ---- the generator


def test_a_table_follows_from_its_seed():
    table, again, other = (CodeTable(3000, 200, seed) for seed in (1, 1, 2))
    assert np.array_equal(flags(table), flags(again))
    assert not np.array_equal(flags(table), flags(other))


@pytest.mark.usefixtures("small_blocks")
def test_blocks_are_made_one_at_a_time_and_alike_in_a_longer_table():
    short, endless = CodeTable(3000, 200), CodeTable(80_000_000, 200)
    assert short.block_patients < 500
    for own, longer in itertools.islice(zip(short.blocks(), endless.blocks(), strict=False), 3):
        assert np.array_equal(own.positions, longer.positions)


@pytest.mark.parametrize(("codes", "patients"), [(1000, 20_000), (10_000, 3000)])
def test_patients_have_a_few_codes_and_no_more_than_the_cap(codes, patients):
    counts = np.concatenate([np.diff(rows.starts) for rows in CodeTable(patients, codes).blocks()])
    assert len(counts) == patients
    assert counts.min() >= 1
    assert counts.max() <= MOST_CODES
    assert 0.005 < counts.mean() / codes < 0.02
    assert counts.std() > 0.3 * counts.mean()


def test_frequencies_follow_the_power_law():
    table = CodeTable(100_000, 1000)
    found = sum(np.bincount(rows.positions, minlength=1000) for rows in table.blocks())
    assert (np.sort(found)[::-1][:10] < table.patients).all(), "no code is everybody's"
    by_rank = np.argsort(-table.frequencies)
    law = linregress(np.log(np.arange(1, 1001) + code_tables.OFFSET), np.log(found[by_rank]))
    assert law.rvalue**2 > 0.98
    assert law.slope == pytest.approx(-code_tables.EXPONENT, rel=0.08)


def test_codes_of_a_condition_occur_together_more_than_by_chance():
    table = CodeTable(20_000, 400)
    common = np.argsort(-table.frequencies)[:120]
    correlation = np.corrcoef(flags(table)[:, common].T)
    same = table.condition_of[common][:, None] == table.condition_of[common][None]
    upper = np.triu(np.ones_like(same), 1)
    within, between = correlation[same & upper], correlation[~same & upper]
    assert ttest_ind(within, between, equal_var=False, alternative="greater").pvalue < 1e-12
    assert within.mean() > between.mean() + 0.01
    assert len(np.unique(table.condition_of)) == CONDITIONS


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_events_are_those_of_the_patients_spread_over_shards(tmp_path, kind):
    table = CodeTable(1000, 300)
    files = write_events(table, tmp_path / "t", kind)
    assert json.loads(files.schema.read_text())["columns"][0]["vocabulary"] == "codes.txt"
    shards = []
    for path in sorted(files.data.iterdir()):
        shard = pacsv.read_csv(path) if kind == "csv" else pq.read_table(path)
        codes = [int(code[1:]) for code in shard["code"].to_pylist()]
        shards.append(pairs_of(shard["subject_id"].to_numpy() - 10_000_000, np.array(codes)))
        assert kind == "csv" or shard.column_names == ["subject_id", "time", "code", "numeric_value"]
    assert pairs_of(*np.nonzero(flags(table))) == set().union(*shards)
    assert sum(map(len, shards)) == files.events
    several = {patient for patient, _ in shards[0]} & {patient for patient, _ in shards[-1]}
    assert len(several) > 50


def test_a_store_without_events_is_the_one_that_events_give(tmp_path):
    table = CodeTable(500, 300)
    write_store(table, tmp_path / "store")
    columns = read_store(tmp_path / "store", table.schema())["code"].to_pylist()
    files = write_events(table, tmp_path / "t", "csv")
    prepare(files.data, Schema.from_json(files.schema), tmp_path / "prepared", Silent(), lambda: False)
    prepared, _ = read_records(tmp_path / "prepared", table.schema(), "store")
    order = np.argsort([int(unit) for unit in prepared["subject_id"].to_pylist()])
    assert [set(codes) for codes in columns] == [set(prepared["code"][int(i)].as_py()) for i in order]
    rows = next(table.blocks())
    assert columns[0] == [f"C{code:05}" for code in rows.positions[: rows.starts[1]]]


# ---- measurements


def fill(size: int) -> int:
    return len(torch.ones(size // 4))


def test_the_memory_of_a_process_is_what_it_holds_beyond_the_package():
    size, resident = with_resident(fill, HALF_GIB)
    assert size == HALF_GIB // 4
    if resident is not None:
        assert HALF_GIB <= resident.anonymous <= resident.total + (1 << 26)
        assert resident.total < HALF_GIB + (1 << 28)


def test_rows_in_memory_are_those_of_the_stores_draws(tmp_path):
    table = CodeTable(400, 120)
    write_store(table, tmp_path / "store")
    device = torch.device("cpu")
    opened = StoreRun(tmp_path / "store", table.schema(), 64, device, tmp_path / "run")
    drawn, taken = opened.draws(AUTOENCODER, 3), []
    with opened.steps(AUTOENCODER) as (next_step, step_on):
        step_on(drawn[0])
        before = {name: value.clone() for name, value in opened.state.networks.state_dict().items()}
        for chunks in drawn:
            taken.append(sum(len(chunk.records) for chunk in chunks))
            next_step()
    assert opened.state.steps[AUTOENCODER] == 2, "the last one counts when another one is asked for"
    assert any(not torch.equal(before[name], value) for name, value in opened.state.networks.state_dict().items())
    assert all(20 < rows < 120 for rows in taken)
    table_flags = flags(table)
    rows = drawn[0][0].records.numpy().astype(bool)
    assert all((table_flags == row).all(1).any() for row in rows)


@pytest.mark.slow
def test_figures_are_ratios_of_medians_and_held_to_their_targets(tmp_path, monkeypatch):
    medians = {"300": 10.0, "600": 11.5, FROM_STORE: 11.2, IN_MEMORY: 11.0}
    monkeypatch.setattr(scale, "interleaved", lambda made, calls: {n: Timing(medians[n], 1, 1, 1, calls) for n in made})
    monkeypatch.setattr(scale, "with_resident", lambda work, *given: (work(*given), Resident(5 << 30, 1 << 30)))
    monkeypatch.setattr(scale, "_SAMPLED_CELLS", 100 * 64)
    monkeypatch.setattr(scale, "_train", lambda *_: 1.0)
    monkeypatch.setattr(scale, "BATCH", 32)
    monkeypatch.setattr("dpcgan_fast.data.preparing._GROUP", 1 << 14)
    work = tmp_path / "work"
    work.mkdir()
    said: list[str] = []
    rows = bench_scale([300, 600], [64], 2, torch.device("cpu"), work, said.append)
    assert list(work.iterdir()) == [], "nothing is left behind"
    by_name = {(row["measure"], row["patients"], row.get("format")): row for row in rows}
    assert len(by_name) == len(rows) == len([line for line in said if "open in" not in line])
    for name in ("autoencoder", "critic"):
        step = by_name[f"step of {name}", 600, None]
        growth, speed = step["verdicts"]["largest / smallest"], step["verdicts"]["speed against rows in memory"]
        assert (growth["value"], growth["standing"]) == (1.15, "missed")
        assert (speed["value"], speed["standing"]) == (11.0 / 11.2, "must")
    resumed = by_name["prepare, resumed", 300, None]
    assert resumed["verdicts"]["same bytes"]["standing"] == "must"
    assert 0 < resumed["stopped_after"] < resumed["parts"]
    csv = by_name["prepare", 600, "csv"]
    assert csv["megabytes_per_second"] == pytest.approx(csv["megabytes"] / csv["seconds"])
    assert csv["verdicts"]["megabytes a second"]["value"] == csv["megabytes_per_second"]
    assert csv["megabytes"] == pytest.approx(16e-6 * csv["events"], rel=0.05), "a line has sixteen bytes"
    assert by_name["training", 600, None]["verdicts"]["GiB"]["standing"] == "missed"
    assert by_name["sampling", 300, None]["records_per_second"] > 0
    results = {"suite": "scale", "machine": MACHINE, "results": rows}
    write_results(results, tmp_path / "s.json")
    assert read_results(tmp_path / "s.json") == results
    text = (tmp_path / "s.md").read_text()
    assert "largest / smallest: 1.15 (≤ 1.1) ✗" in text
    assert "| training | 600 | 64 |" in text


@pytest.mark.parametrize("sizes", ["", "1e5,1e4", "1e5,1e5", "ten", "3", "1e99", "nan"])
def test_sizes_that_make_no_tables_are_refused(tmp_path, capsys, sizes):
    assert run(["bench", "--suite", "scale", "--out", str(tmp_path / "b.json"), "--sizes", sizes]) == 2
    assert "no sizes of tables" in capsys.readouterr().err
