"""`dpcgan sample`, `dpcgan evaluate` and `dpcgan demo`."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from dpcgan_fast.cli.console import result, result_json, say
from dpcgan_fast.cli.options import Device, Json, epsilons_of
from dpcgan_fast.cli.progress import TerminalProgress, WorkProgress
from dpcgan_fast.cli.training import privacy_line
from dpcgan_fast.data.csr_files import is_matrix_file
from dpcgan_fast.data.datasets import load_support2, support2_schema, train_test_split
from dpcgan_fast.data.layouts import Layout, check_layout, open_sink
from dpcgan_fast.data.reading import column_names
from dpcgan_fast.data.records import read_records
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.visits import schema_of_sample
from dpcgan_fast.data.writing import TableWriter, check_output
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate import CurveGrid, Metrics, curve_in, curve_secret, utility_curve
from dpcgan_fast.evaluate import evaluate as evaluate_tables
from dpcgan_fast.evaluate.curve import RELEASES
from dpcgan_fast.files import make_private_folder
from dpcgan_fast.report import WARNING, write_report
from dpcgan_fast.synthesis import DPCGAN, FitHooks
from dpcgan_fast.train.stopping import stop_on_signals

_ADD_THE_COLUMN = "Add the column to the file, under the name that the run's schema has."
_QUICK = {"steps": 100, "autoencoder_steps": 200}


def sample(
    run: Annotated[Path, typer.Argument(help="Run folder of `dpcgan train`.")],
    rows: Annotated[int, typer.Option("-n", help="Number of rows; of people where the schema has visits.")],
    out: Annotated[
        Path,
        typer.Option(help="File to write; .csv, .csv.gz, .parquet, or .npz for codes alone. Replaced if it is there."),
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(help="column=value, repeatable. A label of preset auto is met exactly, all else by rejection."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Reproducible draw; costs no privacy.")] = None,
    layout: Annotated[
        Layout,
        typer.Option(
            help="records: a row a record, or a visit. For tables with codes also events: a row for each "
            "code, numbered by record; or meds: a folder in the MEDS standard."
        ),
    ] = "records",
    device: Device = "auto",
) -> None:
    """Draw a synthetic table from a trained run, in batches, so that it may be larger than memory."""
    if layout != "meds" and not is_matrix_file(out):
        check_output(out)
    model = DPCGAN.load(run, device)
    schema = model.released_schema
    check_layout(out, layout, schema)
    batches = model.sample_batches(rows, _conditions(where or []), seed)
    with open_sink(out, layout, schema, model.arrow_schema) as sink:
        for batch in batches:
            sink.write(batch)
    result(str(out))


def _conditions(texts: Sequence[str]) -> dict[str, object]:
    conditions: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError("A condition is written column=value", f"--where {name}", "For example: --where died=1.")
        if name in conditions:
            raise InputError("A column is named twice", f"--where {name}", "Give one value for each column.")
        conditions[name] = value
    return conditions


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of `dpcgan train`.")],
    real: Annotated[Path, typer.Option(help="Real held-out rows that took no part in training.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and report.html; those in it are replaced.")],
    train: Annotated[
        Path | None,
        typer.Option(help="Real training rows, for real-to-real figures, baselines of equal epsilon, and disclosure."),
    ] = None,
    synthetic: Annotated[
        Path | None, typer.Option(help="Synthetic table; without it one is drawn from the run.")
    ] = None,
    curve: Annotated[
        bool,
        typer.Option(
            "--curve",
            help="Also utility against epsilon, for a run that draws from statistics: they are released anew from the "
            "training rows at several epsilons. It reveals more than the run. The same --out goes on.",
        ),
    ] = False,
    curve_epsilons: Annotated[
        str | None,
        typer.Option(
            help="Of the curve: at least two, rising, such as 0.5,1,3,10. [default: 0.1, 0.3, 1, 3 and 10 times the "
            "run's own]"
        ),
    ] = None,
    curve_releases: Annotated[
        int | None, typer.Option(help=f"Releases at each epsilon of the curve, at least 2. [default: {RELEASES}]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare synthetic with real held-out rows. The figures are NOT differentially private: do not release them."""
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        # Found only on writing, it would cost the whole evaluation.
        raise InputError("The output is no folder: there is a file of that name", f"--out {out}", "Give a folder.")
    model = DPCGAN.load(run)
    if run.resolve() in (out.resolve(), *out.resolve().parents):
        say(
            f"warning: --out {out} is in the run's folder. The figures are not differentially private: take them out "
            "before you hand the folder on."
        )
    grid = _curve_grid(model, train, curve, curve_epsilons, curve_releases)
    schema = model.released_schema
    test_table = _read(real, schema)
    train_table = None if train is None else _read(train, schema)
    if synthetic is not None:
        synthetic_table = _read_synthetic(synthetic, schema)
    else:
        synthetic_table = model.sample(
            train_table.num_rows if train_table is not None else max(test_table.num_rows, 1000)
        )
    metrics, page = evaluate_run(model, schema, synthetic_table, test_table, train_table, out, grid)
    if as_json:
        result_json(metrics.to_dict())
        return
    for note in metrics.notes:
        if note.startswith(WARNING):
            say(note)
    _print_headline(metrics)
    result(f"report: {page}")
    result(f"metrics: {out / 'metrics.json'}")


def _print_headline(metrics: Metrics) -> None:
    """The headline, and in the same place that it is not differentially private: whoever keeps one keeps both."""
    result(str(metrics.verdict["headline"]))
    if metrics.curve is not None:
        for sentence in metrics.curve["sentences"]:
            result(sentence)
    result(metrics.notice)


def _curve_grid(
    model: DPCGAN, train: Path | None, asked: bool, epsilons: str | None, releases: int | None
) -> CurveGrid | None:
    """What is asked for; None for no curve. Raises InputError where there can be none."""
    if not asked:
        for option, given in (("--curve-epsilons", epsilons), ("--curve-releases", releases)):
            if given is not None:
                raise InputError("The option has no use without a curve", option, "Add --curve, or leave it out.")
        return None
    if train is None:
        raise InputError("A curve is made from the training rows", "--curve", "Give them with --train.")
    own = model.statistics_anew().epsilon
    count = RELEASES if releases is None else releases
    if epsilons is None:
        return CurveGrid.around(own, count)
    return CurveGrid(epsilons_of(epsilons, "--curve-epsilons", "0.5,1,3,10"), count)


def _read(path: Path, schema: Schema) -> pa.Table:
    return read_records(path, schema, str(path), _ADD_THE_COLUMN)[0]


def _read_synthetic(path: Path, schema: Schema) -> pa.Table:
    """A table of records has no unit column; one of events or visits has its records' numbers in it."""
    if schema.visits is not None:
        return _read(path, schema_of_sample(schema, column_names(path)))
    numbered = schema.merges_rows and not is_matrix_file(path) and schema.unit in column_names(path)
    return _read(path, schema if numbered else schema.model_copy(update={"unit": None}))


def evaluate_run(
    model: DPCGAN, schema: Schema, synthetic: pa.Table, test: pa.Table, train: pa.Table | None, out: Path,
    grid: CurveGrid | None = None,
) -> tuple[Metrics, Path]:  # fmt: skip
    """Evaluates, and writes metrics.json and report.html into `out`; gives the metrics and the report's path.

    They show real rows' statistics, so that a folder that is made for them is its owner's alone.
    grid: of a curve, for which there must be a training table; metrics.json is written again after each release, and
          curve.secret tells a later call whether it is of the same tables
    """
    privacy = model.privacy()
    metrics = evaluate_tables(synthetic, test, schema, train=train, privacy=privacy)
    make_private_folder(out)
    path = out / "metrics.json"
    if grid is None or train is None:
        metrics.write(path)
    else:
        metrics = _with_curve(metrics, model, schema, test, train, path, grid)
    page = write_report(out, metrics, synthetic, test, schema, privacy, model.privacy_card())
    return metrics, page


def _with_curve(
    metrics: Metrics, model: DPCGAN, schema: Schema, test: pa.Table, train: pa.Table, path: Path, grid: CurveGrid
) -> Metrics:
    secret = curve_secret(path.with_name("curve.secret"))
    curves = utility_curve(model.statistics_anew(), train, test, schema, grid, secret, curve_in(path))
    with WorkProgress() as progress:
        for step, curve in enumerate(curves):
            if step == 0:
                there = {point["epsilon"]: len(point["runs"]) for point in curve["points"]}
                missing = sum(max(0, grid.releases - there[epsilon]) for epsilon in grid.epsilons)
                progress.start("curve, releases", missing, 0)
            else:
                progress.advance(step)
            metrics = replace(metrics, curve=curve)
            metrics.write(path)
    return metrics


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder to make. [default: dpcgan-demo, or the next free dpcgan-demo-N]")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Fewer network steps; rows come from statistics and hardly change."),
    ] = False,
    device: Device = "auto",
) -> None:
    """Train on the embedded SUPPORT2 data at epsilon 3 and delta 1e-5, sample, evaluate, and write a report."""
    out = out if out is not None else _free_folder("dpcgan-demo")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError("There is something at the output path already", str(out), "Choose a new folder with --out.")
    schema = support2_schema()
    train_table, test_table = train_test_split(load_support2())
    say(f"SUPPORT2: {train_table.num_rows} patients for training, {test_table.num_rows} held out")
    model = DPCGAN(schema, 3.0, 1e-5, device=device, **(_QUICK if quick else {}))  # type: ignore[arg-type]
    make_private_folder(out)
    with stop_on_signals() as stop, TerminalProgress(model.draws_from_statistics) as progress:
        model.fit(train_table, out / "run", hooks=FitHooks(progress, stop))
    synthetic = model.sample(train_table.num_rows)
    table_path = out / "synthetic.csv"
    with TableWriter(table_path, model.arrow_schema) as writer:
        writer.write(synthetic)
    say("evaluating: three classifiers on synthetic and on real rows, and the baselines of equal epsilon")
    metrics, page = evaluate_run(model, schema, synthetic, test_table, train_table, out)
    result(privacy_line(model.privacy()))
    _print_headline(metrics)
    result(f"report:          {page.resolve()}")
    result(f"synthetic table: {table_path.resolve()}")
    result(f"privacy card:    {(model.folder / 'privacy_card.md').resolve()}")
    assert math.isfinite(float(model.privacy()["epsilon"]))


def _free_folder(name: str) -> Path:
    """`name`, or `name-2`, `name-3` and so on if there is something of that name."""
    candidates = (Path(name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in candidates if not path.exists())
