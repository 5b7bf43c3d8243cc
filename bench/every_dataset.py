"""Every public data set through the commands: schema, prepare, train, sample, evaluate, each a process of its own.

    python bench/every_dataset.py --data FOLDER [--epsilon 3] [--only pbc2 mimic_meds] [--out FILE.md]

FOLDER holds the files by the names of `dpcgan_fast/data/datasets.py`, and `mimic_iv_demo_diagnoses.csv.gz`, of which a
folder in the MEDS standard is made as well. Each table is split 80/20 by its unit. The draft of a schema is made and
thrown away: one trains by the schemas of examples/ and of the package. What a command prints as a warning is shown.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from dpcgan_fast.bench.table import table
from dpcgan_fast.data.datasets import train_test_split

ROOT = Path(__file__).resolve().parents[1]


def meds_schema(events: pa.Table) -> dict[str, Any]:
    """Of the demo, which is public, and so is its list of codes: those of its 200 that come first by name."""
    vocabulary = sorted(set(events["code"].to_pylist()))[:200]
    return {
        "version": 1, "unit": "subject_id", "n_units": 80, "max_rows_per_unit": 1,
        "columns": [{"name": "code", "type": "codes", "vocabulary": vocabulary, "max_codes": 50}],
    }  # fmt: skip


def _csv(path: Path) -> pa.Table:
    delimiter = ";" if path.name.startswith("cardio") else ","
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    return pyarrow.csv.read_csv(
        path, parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter), convert_options=options
    )


def _as_csv(rows: pa.Table, path: Path) -> None:
    pyarrow.csv.write_csv(rows, path)


def _as_meds(events: pa.Table, path: Path) -> None:
    (path / "data").mkdir(parents=True)
    (path / "metadata").mkdir()
    (path / "metadata" / "dataset.json").write_text('{"dataset_name": "MIMIC-IV demo", "meds_version": "0.4.0"}')
    moments = events["admission_dttm"].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
    meds = pa.table({
        "subject_id": events["patient_id"].cast(pa.int64()), "time": moments, "code": events["code"],
        "numeric_value": pa.nulls(events.num_rows, pa.float32()),
    })  # fmt: skip
    pq.write_table(meds, path / "data" / "0.parquet")


# name -> file, schema or what makes it, unit, how rows are written, how synthetic rows are
DATASETS: dict[str, tuple[str, Any, str | None, Callable[[pa.Table, Path], None], Sequence[str]]] = {
    "cardio": ("cardio.csv.gz", "examples/cardio.json", "id", _as_csv, ["synthetic.csv"]),
    "support2": ("support2.csv.gz", "dpcgan_fast/data/embedded/support2_schema.json", None, _as_csv,
                 ["synthetic.parquet"]),
    "epileptic_seizure": ("epileptic_seizure.csv.gz", "examples/epileptic_seizure.json", None, _as_csv,
                          ["synthetic.parquet"]),
    "cervical_cancer": ("cervical_cancer.csv.gz", "examples/cervical_cancer.json", None, _as_csv, ["synthetic.csv.gz"]),
    "pbc2": ("pbc2.csv.gz", "examples/pbc2.json", "id", _as_csv, ["synthetic.csv"]),
    "pbc2_visits": ("pbc2.csv.gz", "examples/pbc2_visits.json", "id", _as_csv, ["synthetic.csv"]),
    "mimic_iv_demo": ("mimic_iv_demo_diagnoses.csv.gz", "examples/mimic_iv_demo.json", "patient_id", _as_csv,
                      ["synthetic.csv", "--layout", "events"]),
    "mimic_meds": ("mimic_iv_demo_diagnoses.csv.gz", meds_schema, "patient_id", _as_meds,
                   ["synthetic", "--layout", "meds"]),
}  # fmt: skip


def _run(*words: str | Path) -> tuple[float, str, dict[str, Any]]:
    """Seconds, warnings, and what a command printed as JSON. Raises AssertionError if it failed."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dpcgan_fast", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stderr}")
    warned = [line for line in done.stderr.splitlines() if "warning" in line.lower()]
    printed = json.loads(done.stdout) if "--json" in words else {}
    return time.perf_counter() - begin, "; ".join(warned), printed


def walk(name: str, data: Path, epsilon: float, work: Path) -> dict[str, Any]:
    """One data set through all commands, in a folder."""
    file, schema, unit, write, sampled = DATASETS[name]
    suffix = "" if write is _as_meds else ".csv"
    whole = _csv(data / file)
    train, test = train_test_split(whole, unit=unit)
    write(train, work / f"train{suffix}")
    write(test, work / f"test{suffix}")
    if isinstance(schema, str):
        schema = ROOT / schema
    else:
        (work / "schema.json").write_text(json.dumps(schema(whole)))
        schema = work / "schema.json"
    units = json.loads(Path(schema).read_text()).get("n_units") or train.num_rows
    out, form = work / sampled[0], sampled[1:]
    steps = {
        "schema": ["schema", work / f"train{suffix}", "--out", work / "draft.json"],
        "prepare": ["prepare", work / f"train{suffix}", "--schema", schema, "--out", work / "store"],
        "train": ["train", work / "store", "--schema", schema, "--epsilon", epsilon, "--delta", 1e-5,
                  "--out", work / "run", "--json"],
        "sample": ["sample", work / "run", "-n", units, "--out", out, *form],
        "evaluate": ["evaluate", work / "run", "--real", work / f"test{suffix}", "--train", work / f"train{suffix}",
                     "--synthetic", out, "--out", work / "report", "--json"],
    }  # fmt: skip
    row: dict[str, Any] = {"data": name, "rows": train.num_rows, "warnings": ""}
    for step, words in steps.items():
        row[step], warned, printed = _run(*words)
        row["warnings"] += f"{step}: {warned} " if warned else ""
        if step == "train":
            row["epsilon"] = printed["epsilon"]
    assert (work / "report" / "report.html").exists()
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The walks as a table; seconds of each command."""
    steps = ("schema", "prepare", "train", "sample", "evaluate")
    head = ["data", "rows", "epsilon", *(f"{step}, s" for step in steps), "warnings"]
    lines = [
        [row["data"], f"{row['rows']:,}", f"{row['epsilon']:.2f}", *(f"{row[step]:.1f}" for step in steps),
         row["warnings"] or "-"] for row in rows
    ]  # fmt: skip
    return "# Every data set through every command\n\nMade by `bench/every_dataset.py`.\n\n" + table(head, lines)


def main() -> None:
    """Walks, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--only", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "every_dataset.md")
    args = parser.parse_args()
    rows = []
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(walk(name, args.data, args.epsilon, Path(folder)))
        print(rows[-1], flush=True)
    args.out.write_text(markdown(rows), encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
