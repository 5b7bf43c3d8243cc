"""What grows with the number of patients, and what must not: preparing, private steps, memory, loading, sampling."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dpcgan_fast.bench.code_tables import CodeTable, EventFormat, write_events, write_store
from dpcgan_fast.bench.resident import Resident, with_resident
from dpcgan_fast.bench.store_steps import EPSILON, StoreRun
from dpcgan_fast.bench.targets import Verdict, judge
from dpcgan_fast.bench.timing import WARM_UPS, interleaved
from dpcgan_fast.data.preparing import prepare
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.writing import TableWriter
from dpcgan_fast.errors import StoppedError
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.train.plan import AUTOENCODER, CRITIC
from dpcgan_fast.train.session import Silent

SIZES, WIDTHS = (100_000, 1_000_000), (1_000, 10_000)
BATCH = 256  # expected, whatever the number of patients
PREPARE_MB, STEP_GROWTH, MEMORY_GIB, LOADED_SPEED = 50.0, 1.10, 4.0, 0.95  # targets
FROM_STORE, IN_MEMORY = "by turns with rows in memory", "rows in memory"
_TRAINED_STEPS = 20  # of each mechanism, where memory is measured
_SAMPLED_CELLS = 1 << 25
_GIB = 1 << 30

Say = Callable[[str], None]
Row = dict[str, Any]


def _row(measure: str, table: CodeTable, figures: Row, verdicts: dict[str, Verdict]) -> Row:
    head = {"measure": measure, "patients": table.patients, "codes": table.codes}
    return {**head, **figures, "verdicts": {name: asdict(verdict) for name, verdict in verdicts.items()}}


def _target(verdict: Verdict) -> str:
    met = "missed" if verdict.standing == "missed" else "met"
    return f"{verdict.value:.2f} (at {'least' if verdict.least else 'most'} {verdict.must:g}: {met})"


def _memory(resident: Resident | None) -> tuple[Row, str]:
    if resident is None:
        return {}, "memory not measured on this system"
    text = f"peak {resident.total / _GIB:.2f} GiB, {resident.anonymous / _GIB:.2f} of it no mapped files"
    return {"peak_bytes": resident.total, "peak_anonymous_bytes": resident.anonymous}, text


# ---- preparing


def _prepare(data: Path, schema: Path, out: Path) -> float:
    """Seconds."""
    begin = time.perf_counter()
    prepare(data, Schema.from_json(schema), out, Silent(), lambda: False)
    return time.perf_counter() - begin


def bench_prepare(table: CodeTable, kind: EventFormat, work: Path, say: Say) -> Row:
    """Makes a store of events in a process of its own."""
    files = write_events(table, work / "table", kind)
    seconds, resident = with_resident(_prepare, files.data, files.schema, work / "store")
    shutil.rmtree(work / "table")
    shutil.rmtree(work / "store")
    speed = files.size / 1e6 / seconds
    # Parquet's bytes are few, for all that they hold, and have no target.
    verdicts = {"megabytes a second": judge(speed, PREPARE_MB, least=True)} if kind == "csv" else {}
    memory, text = _memory(resident)
    figures = {"format": kind, "events": files.events, "megabytes": files.size / 1e6, "seconds": seconds,
               "megabytes_per_second": speed, "events_per_second": files.events / seconds, **memory}  # fmt: skip
    shown = _target(verdicts["megabytes a second"]) if verdicts else f"{speed:.1f}"
    say(f"prepare, {kind}, {table.patients:,} patients, {table.codes:,} codes: {shown} MB/s, "
        f"{files.events / seconds:,.0f} events/s; {text}")  # fmt: skip
    return _row("prepare", table, figures, verdicts)


def bench_interrupted(table: CodeTable, work: Path, say: Say) -> Row:
    """Makes a store in one go, and another that is stopped half-way and gone on with; whether their bytes are equal."""
    files = write_events(table, work / "table", "csv")
    schema, asked = Schema.from_json(files.schema), 0

    def stopped(at: int | None) -> Callable[[], bool]:
        nonlocal asked
        asked = 0

        def ask() -> bool:
            nonlocal asked
            asked += 1
            return asked == at

        return ask

    prepare(files.data, schema, work / "whole", Silent(), stopped(None))
    times = asked
    half = max(1, times // 2)
    with suppress(StoppedError):
        prepare(files.data, schema, work / "resumed", Silent(), stopped(half))
        raise AssertionError("the work was not stopped")
    prepare(files.data, schema, work / "resumed", Silent(), stopped(None))
    names = sorted(path.name for path in (work / "whole").iterdir())
    equal = names == sorted(path.name for path in (work / "resumed").iterdir()) and all(
        (work / "whole" / name).read_bytes() == (work / "resumed" / name).read_bytes() for name in names
    )
    for folder in ("table", "whole", "resumed"):
        shutil.rmtree(work / folder)
    say(f"prepare, stopped after {half} of {times} parts and resumed: the store is {'' if equal else 'not '}the same")
    figures = {"stopped_after": half, "parts": times, "same_bytes": equal}
    return _row("prepare, resumed", table, figures, {"same bytes": judge(float(equal), 1.0, least=True)})


# ---- steps


def bench_steps(
    tables: Sequence[CodeTable], stores: Sequence[Path], calls: int, device: torch.device, work: Path, say: Say
) -> list[Row]:
    """Steps on the stores of tables of one width by turns, and on the largest by turns with rows in memory."""
    runs = []
    for number, (table, store) in enumerate(zip(tables, stores, strict=True)):
        runs.append(StoreRun(store, table.schema(), BATCH, device, work / f"run-{table.codes}-{number}"))
        say(f"store of {table.patients:,} patients, {table.codes:,} codes: open in {runs[-1].opening_seconds:.2f} s")
    return [_steps(name, tables, runs, calls, say) for name in (AUTOENCODER, CRITIC)]


def _steps(name: str, tables: Sequence[CodeTable], runs: Sequence[StoreRun], calls: int, say: Say) -> Row:
    with ExitStack() as opened:
        steps = [opened.enter_context(run.steps(name)) for run in runs]
        given = iter(runs[-1].draws(name, calls + WARM_UPS))
        stores: dict[str, Callable[[], object]] = {
            f"{table.patients}": next_step for table, (next_step, _) in zip(tables, steps, strict=True)
        }
        timings = interleaved(stores, calls)
        # By themselves: these two share networks, which whoever comes after other networks finds out of the caches.
        largest, on_rows = steps[-1]
        pair = interleaved({FROM_STORE: largest, IN_MEMORY: lambda: on_rows(next(given))}, calls)
    medians = [timings[f"{table.patients}"].median for table in tables]
    timings |= pair
    loaded = pair[IN_MEMORY].median / pair[FROM_STORE].median
    verdicts = {"speed against rows in memory": judge(loaded, LOADED_SPEED, least=True)}
    if len(tables) > 1:
        verdicts["largest / smallest"] = judge(medians[-1] / medians[0], STEP_GROWTH)
    shown = ", ".join(f"{name} {timing.median:.1f}" for name, timing in timings.items())
    judged = "; ".join(f"{what} {_target(verdict)}" for what, verdict in verdicts.items())
    say(f"{name}, {tables[-1].codes:,} codes, ms a step by patients: {shown}; {judged}")
    figures = {
        "milliseconds": {name: asdict(timing) for name, timing in timings.items()}, "batch": BATCH,
        "opening_seconds": {f"{t.patients}": run.opening_seconds for t, run in zip(tables, runs, strict=True)},
    }  # fmt: skip
    return _row(f"step of {name}", tables[-1], figures, verdicts)


# ---- memory, sampling


def _train(store: Path, schema: Schema, device: str) -> float:
    """Seconds of a whole training with few steps."""
    assert schema.n_units is not None
    begin = time.perf_counter()
    delta = 1 / (10 * schema.n_units)
    DPCGAN(schema, EPSILON, delta, device=device, steps=_TRAINED_STEPS, autoencoder_steps=_TRAINED_STEPS).fit(store)
    return time.perf_counter() - begin


def bench_memory(table: CodeTable, store: Path, device: str, say: Say) -> Row:
    """A training of few steps with the default batch, in a process of its own."""
    seconds, resident = with_resident(_train, store, table.schema(), device)
    figures, text = _memory(resident)
    verdicts = {"GiB": judge(resident.total / _GIB, MEMORY_GIB)} if resident is not None else {}
    shown = f"; GiB {_target(verdicts['GiB'])}" if verdicts else ""
    say(f"training, {table.patients:,} patients, {table.codes:,} codes: {text}{shown}; {seconds:.0f} s")
    return _row("training", table, {"seconds": seconds, **figures}, verdicts)


def bench_sampling(table: CodeTable, store: Path, device: str, work: Path, say: Say) -> Row:
    """Records a second to a Parquet file, after a training of one step: released counts make them realistic."""
    delta = 1 / (10 * table.patients)
    model = DPCGAN(table.schema(), EPSILON, delta, device=device, steps=1, autoencoder_steps=1).fit(store)
    count, entries = max(1, _SAMPLED_CELLS // table.codes), 0
    begin = time.perf_counter()
    with TableWriter(work / "sampled.parquet", model.arrow_schema) as writer:
        for batch in model.sample_batches(count):
            writer.write(batch)
            entries += sum(len(chunk.flatten()) for chunk in batch.column(0).chunks)
    speed = count / (time.perf_counter() - begin)
    say(f"sampling to Parquet, {table.codes:,} codes: {speed:,.0f} records a second of {entries / count:.1f} codes")
    return _row("sampling", table, {"records_per_second": speed, "codes_a_record": entries / count}, {})


def bench_scale(
    sizes: Sequence[int], widths: Sequence[int], calls: int, device: torch.device, folder: Path | None, say: Say
) -> list[Row]:
    """All measurements for tables of so many patients and codes; a row for each.

    sizes:  numbers of patients, rising; stores of each are made for steps, of the last one for memory. The events of
            the first and the last are written out: those of ten million patients take 14 GB, and their store 4 more
    calls:  timed steps on each store
    folder: where files are made, which are removed at the end; None for the system's folder of temporary files
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="dpcgan-bench-", dir=folder) as name:
        work = Path(name)
        rows.append(bench_interrupted(CodeTable(sizes[0], widths[-1]), work, say))
        for size in dict.fromkeys((sizes[0], sizes[-1])):
            rows.append(bench_prepare(CodeTable(size, widths[-1]), "csv", work, say))
        rows.append(bench_prepare(CodeTable(sizes[0], widths[-1]), "parquet", work, say))
        for width in widths:
            tables = [CodeTable(size, width) for size in sizes]
            stores = [work / f"store-{width}-{size}" for size in sizes]
            for table, store in zip(tables, stores, strict=True):
                write_store(table, store)
            rows += bench_steps(tables, stores, calls, device, work, say)
            rows.append(bench_memory(tables[-1], stores[-1], device.type, say))
            rows.append(bench_sampling(tables[0], stores[0], device.type, work, say))
            for store in stores:
                shutil.rmtree(store)
    return rows
