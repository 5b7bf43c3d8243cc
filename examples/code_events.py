"""Makes a table of events and a vocabulary out of MIMIC-III, MIMIC-IV or eICU, for `dpcgan prepare` and `train`.

    python examples/code_events.py mimic-iv  /data/mimiciv/3.1  --out mimic
    python examples/code_events.py mimic-iii /data/mimiciii/1.4 --out mimic
    python examples/code_events.py eicu      /data/eicu/2.0     --out eicu

Writes events.parquet (patient, sex, age, died, code: a row for each diagnosis, all admissions of a patient together),
codes.txt, the public list of the codes' first three characters, and schema.json, in which `n_units` is still to be
filled in with a figure that you know without these files, such as the published number of patients.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

CATEGORY = 3  # characters of an ICD code that name its category


def read(folder: Path, name: str, columns: list[str]) -> pa.Table:
    """Columns of a table of the data set, as text, by their names in lower case; its file may be compressed."""
    found = [path for path in folder.rglob("*") if path.name.lower() in (f"{name}.csv", f"{name}.csv.gz")]
    if not found:
        raise SystemExit(f"error: there is no {name}.csv or {name}.csv.gz beneath {folder}.")
    with pa.input_stream(found[0], compression="detect") as stream:
        header = pacsv.open_csv(stream).schema.names
    own = {column.lower(): column for column in header}
    lacking = [column for column in columns if column not in own]
    if lacking:
        raise SystemExit(f"error: {found[0]} has no column {lacking[0]}.")
    wanted = [own[column] for column in columns]
    options = pacsv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()))
    return pacsv.read_csv(found[0], convert_options=options).rename_columns(columns)


def category(version: pa.ChunkedArray | str, code: pa.ChunkedArray) -> pa.ChunkedArray:
    """`ICD9/572` of version 9 and code 5723; dots in a code do not count."""
    plain = pc.utf8_slice_codeunits(pc.replace_substring(code, ".", ""), 0, CATEGORY)
    return pc.binary_join_element_wise("ICD", version, "/", plain, "")


def mimic_iv(folder: Path) -> tuple[pa.Table, pa.ChunkedArray]:
    """Diagnoses of MIMIC-IV's hospital module."""
    diagnoses = read(folder, "diagnoses_icd", ["subject_id", "icd_code", "icd_version"])
    patients = read(folder, "patients", ["subject_id", "gender", "anchor_age"])
    died = _died(read(folder, "admissions", ["subject_id", "hospital_expire_flag"]), "subject_id", "1")
    dictionary = read(folder, "d_icd_diagnoses", ["icd_code", "icd_version"])
    events = pa.table(
        {"subject_id": diagnoses["subject_id"], "code": category(diagnoses["icd_version"], diagnoses["icd_code"])}
    )
    events = events.join(patients, "subject_id").join(died, "subject_id")
    return (
        events.rename_columns(["patient", "code", "sex", "age", "died"]),
        category(dictionary["icd_version"], dictionary["icd_code"]),
    )


def mimic_iii(folder: Path) -> tuple[pa.Table, pa.ChunkedArray]:
    """Diagnoses of MIMIC-III; the age is that at the first admission, and 90 for all who were older than 89."""
    diagnoses = read(folder, "diagnoses_icd", ["subject_id", "icd9_code"])
    patients = read(folder, "patients", ["subject_id", "gender", "dob"])
    admissions = read(folder, "admissions", ["subject_id", "admittime", "hospital_expire_flag"])
    first = admissions.group_by("subject_id").aggregate([("admittime", "min")])
    joined = patients.join(first, "subject_id")
    years = [pc.utf8_slice_codeunits(joined[column], 0, 4).cast(pa.int64()) for column in ("admittime_min", "dob")]
    age = pc.min_element_wise(pc.subtract(*years), 90)
    patients = pa.table({"subject_id": joined["subject_id"], "gender": joined["gender"], "age": age})
    dictionary = read(folder, "d_icd_diagnoses", ["icd9_code"])
    events = pa.table({"subject_id": diagnoses["subject_id"], "code": category("9", diagnoses["icd9_code"])})
    events = events.join(patients, "subject_id").join(_died(admissions, "subject_id", "1"), "subject_id")
    return events.rename_columns(["patient", "code", "sex", "age", "died"]), category("9", dictionary["icd9_code"])


def eicu(folder: Path) -> tuple[pa.Table, pa.ChunkedArray]:
    """Diagnoses of eICU. It has no dictionary: its vocabulary is every category that a code of ICD-9 or 10 can have."""
    diagnoses = read(folder, "diagnosis", ["patientunitstayid", "icd9code"])
    stays = read(folder, "patient", ["patientunitstayid", "uniquepid", "gender", "age", "hospitaldischargestatus"])
    died = _died(stays.select(["uniquepid", "hospitaldischargestatus"]), "uniquepid", "Expired")
    age = pc.replace_substring(stays["age"], "> 89", "90")
    stays = stays.set_column(stays.column_names.index("age"), "age", age)
    events = diagnoses.join(stays.select(["patientunitstayid", "uniquepid", "gender", "age"]), "patientunitstayid")
    # A cell holds the code of ICD-9 and that of ICD-10, "428.0, I50.9"; the first one is taken.
    first = pc.list_element(pc.split_pattern(pc.fill_null(events["icd9code"], ""), ","), 0)
    version = pc.if_else(pc.match_substring_regex(first, "^[0-9EV]"), "9", "10")
    code = pc.if_else(pc.equal(first, ""), None, category(version, first))
    events = pa.table(
        {"uniquepid": events["uniquepid"], "code": code, "gender": events["gender"], "age": events["age"]}
    ).join(died, "uniquepid")
    return events.rename_columns(["patient", "code", "sex", "age", "died"]), pa.chunked_array([list(_all_categories())])


def _all_categories() -> Iterator[str]:
    """Every category that the two versions of ICD have room for."""
    for number in range(1000):
        yield f"ICD9/{number:03}"
    for number in range(100):
        yield f"ICD9/V{number:02}"
        yield f"ICD9/E{number:02}"
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
        for number in range(100):
            yield f"ICD10/{letter}{number:02}"


def _died(table: pa.Table, patient: str, value: str) -> pa.Table:
    """Patients, and 1 for those of whom the last column says so in any row, else 0."""
    flags = pc.equal(table.column(table.num_columns - 1), value).fill_null(False).cast(pa.int64())
    return pa.table({patient: table[patient], "died": flags}).group_by(patient).aggregate([("died", "max")])


SOURCES: dict[str, Callable[[Path], tuple[pa.Table, pa.ChunkedArray]]] = {
    "mimic-iv": mimic_iv, "mimic-iii": mimic_iii, "eicu": eicu
}  # fmt: skip


def schema(sexes: list[str]) -> dict[str, object]:
    """The schema of the events. Ages and sexes are as the data sets' documents describe them."""
    return {
        "version": 1, "unit": "patient", "n_units": None, "max_rows_per_unit": 1, "label": "died",
        "columns": [
            {"name": "sex", "type": "categorical", "categories": sexes},
            {"name": "age", "type": "numeric", "bounds": [0, 90], "integer": True, "missing": True},
            {"name": "died", "type": "binary"},
            {"name": "code", "type": "codes", "vocabulary": "codes.txt", "max_codes": 100},
        ],
        "signals": [],
    }  # fmt: skip


def main() -> None:
    """Reads the arguments, and writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("folder", type=Path, help="where the data set's CSV files are")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    arguments = parser.parse_args()
    events, codes = SOURCES[arguments.source](arguments.folder)
    arguments.out.mkdir(parents=True, mode=0o700)
    pq.write_table(events, arguments.out / "events.parquet")
    vocabulary = sorted(set(codes.drop_null().to_pylist()))
    (arguments.out / "codes.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    sexes = ["Female", "Male"] if arguments.source == "eicu" else ["F", "M"]
    (arguments.out / "schema.json").write_text(json.dumps(schema(sexes), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{arguments.out}: {events.num_rows:,} events, {len(vocabulary):,} codes\n")


if __name__ == "__main__":
    main()
