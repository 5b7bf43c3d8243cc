"""Tables of codes that are damaged or hostile: exit 2, one line that quotes nothing, and nothing left behind."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import scipy.sparse

from dpcgan_fast.cli import run
from tests.data.preparations import write_meds
from tests.synthesis.code_runs import HEADER, VOCABULARY, code_schema, events, quick_runs, write_events

SENTINEL = "S3NTINEL_VALUE"
# What train and prepare say beside errors.
NOTES = ("epsilon so far is an upper bound", "Synthetic rows are drawn from", "groups of rows", "records: ")
COMMANDS = ["schema", "prepare", "train", "evaluate"]


def schema_of(form):
    """The schema for sources of a form: events with other columns, or codes alone, in MEDS in the column `code`."""
    if form == "events":
        return code_schema().model_dump(mode="json")
    unit, name = {"meds": ("subject_id", "code"), "matrix": (None, "dx")}[form]
    values = code_schema(columns=["dx"], unit=unit).model_dump(mode="json")
    return {**values, "columns": [{**values["columns"][0], "name": name}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Schema files, and a run of each form to evaluate."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [[patient, code] for patient, _, _, code in events(60) if code in VOCABULARY]
    sources = {
        "events": write_events(folder / "events.csv", events(60)),
        "meds": write_meds(folder / "meds", [[(int(patient[1:]), code) for patient, code in rows]]),
        "matrix": folder / "codes.npz",
    }
    scipy.sparse.save_npz(sources["matrix"], scipy.sparse.random_array((60, 12), density=0.3, format="csr"))
    for form, source in sources.items():
        (folder / f"{form}.json").write_text(json.dumps(schema_of(form)))
        with quick_runs():
            assert run(arguments_of("train", source, form, folder, folder / f"run-{form}")) == 0
    return folder


def arguments_of(command, source, form, place, out):
    if command == "schema":
        return ["schema", str(source), "--out", str(out)]
    if command == "evaluate":
        return ["evaluate", str(place / f"run-{form}"), "--real", str(source), "--out", str(out)]
    arguments = [command, str(source), "--schema", str(place / f"{form}.json"), "--out", str(out)]
    if command == "train":
        options = {
            "epsilon": "inf",
            "delta": 1e-4,
            "steps": 1,
            "autoencoder-steps": 1,
            "batch-size": 8,
            "device": "cpu",
        }
        arguments += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return arguments


def check_refusal(command, source, form, place, out, capsys, what=""):
    capsys.readouterr()
    assert run(arguments_of(command, source, form, place, out)) == 2
    said, err = capsys.readouterr()
    lines = err.splitlines()
    errors = [line for line in lines if not line.startswith(NOTES)]
    assert len(errors) == 1, err
    assert lines[-1] == errors[0]
    assert errors[0].startswith("error: ")
    assert what in errors[0]
    assert SENTINEL not in said + err
    assert said == ""
    assert not out.exists()
    assert not list(out.parent.glob(".*partial*"))


# ---- events in CSV

ROW = f"p1,50,1,{SENTINEL}\n".encode()
HEAD = ",".join(HEADER).encode() + b"\n"
CSV = {
    "empty": (b"", "empty"),
    "no rows": (HEAD, "no rows"),
    "ragged": (HEAD + ROW + f"p1,{SENTINEL}\n".encode(), "row 2"),
    "too long": (HEAD + ROW + ROW + f"p1,50,1,a,{SENTINEL}\n".encode(), "row 3"),
    "not UTF-8": (HEAD + ROW + f"p1,50,1,{SENTINEL}\xff\n".encode("latin-1"), "row 2"),
    "header not UTF-8": (b"patient,age,died,dx,\xe9\n" + ROW, "UTF-8"),
    "UTF-16": ((HEAD + ROW).decode().encode("utf-16"), ""),
    "NUL in the header": (b"\0" + HEAD + ROW, "not a text file"),
    "header twice": (b"patient,age,died,dx,dx\n" + b"p1,50,1,a,b\n", "columns 4 and 5"),
    "open quote": (HEAD + ROW + f'p1,"50,1,{SENTINEL}\n'.encode() + ROW, "row 2"),
    "open quote in the header": (b'patient,age,died,"dx\n' + ROW, "quotation mark"),
    "lacking column": (f"{SENTINEL},age,died\n".encode() + b"p1,50,1\n", "column"),
    "missing id": (HEAD + ROW + f" NA ,50,1,{SENTINEL}\n".encode(), "row 2"),
}
NO_FAULT_TO_A_DRAFT = {"lacking column", "missing id"}  # it does not know which columns there should be


@pytest.mark.parametrize(
    ("command", "name"),
    [(c, name) for c in COMMANDS for name in CSV if c != "schema" or name not in NO_FAULT_TO_A_DRAFT],
)
def test_malformed_events(place, tmp_path, capsys, command, name):
    content, what = CSV[name]
    (tmp_path / "table.csv").write_bytes(content)
    check_refusal(command, tmp_path / "table.csv", "events", place, tmp_path / "out", capsys, what)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_table_that_is_not_there(place, tmp_path, capsys, command):
    for name in ("none.csv", "none.npz", "none.parquet"):
        form = "matrix" if name == "none.npz" else "events"
        check_refusal(command, tmp_path / name, form, place, tmp_path / "out", capsys, "does not exist")


# ---- folders in the MEDS standard


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["readme.txt", "more.csv", "0/x.json"])
def test_a_meds_folder_with_a_foreign_file(place, tmp_path, capsys, command, name):
    folder = write_meds(tmp_path / "meds", [[(1, SENTINEL)], [(2, "b")]])
    path = folder / "data" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"subject_id,code\n1,{SENTINEL}\n")
    check_refusal(command, folder, "meds", place, tmp_path / "out", capsys, "not Parquet")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", ["cut", "text", "empty", "no shards"])
def test_a_meds_folder_with_a_damaged_shard(place, tmp_path, capsys, command, damage):
    folder = write_meds(tmp_path / "meds", [[(1, SENTINEL)] * 9, [(2, "b")]])
    shard = folder / "data" / "0.parquet"
    content = shard.read_bytes()
    shard.write_bytes({"cut": content[:-9], "text": f"code\n{SENTINEL}".encode()}.get(damage, b""))
    if damage == "no shards":
        for path in (folder / "data").iterdir():
            path.unlink()
    check_refusal(command, folder, "meds", place, tmp_path / "out", capsys)


_FLIPS = """
import contextlib, io, json, random, resource, shutil, sys
from pathlib import Path
from dpcgan_fast.cli import run
from dpcgan_fast.models import auto
auto._CALIBRATION_ROWS, auto._CALIBRATION_ROUNDS = 64, 2  # what most of a short run goes to
commands, folder, seeds = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
shard, out = folder / "data" / "0.parquet", Path(sys.argv[4])
whole = shard.read_bytes()
resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))
for seed in range(seeds):
    rng = random.Random(seed)
    damaged = bytearray(whole)
    for _ in range(rng.choice([1, 1, 3, 20])):
        damaged[rng.randrange(4, len(damaged))] ^= 1 << rng.randrange(8)
    shard.write_bytes(damaged)
    for arguments in commands:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = run(arguments)
        print(json.dumps([seed, arguments[0], code, said.getvalue(), out.exists()]), flush=True)
        if out.is_dir():
            shutil.rmtree(out)
        out.unlink(missing_ok=True)
"""


def test_shards_with_flipped_bits(place, tmp_path):
    """Of 20 seeds: a flip in a cell may pass for another cell; all else is refused, and the process lives."""
    rows = [(i % 50, SENTINEL if i % 9 == 0 else VOCABULARY[i % 12]) for i in range(300)]
    folder, out = write_meds(tmp_path / "meds", [rows, rows]), tmp_path / "out"
    commands = [arguments_of(command, folder, "meds", place, out) for command in ("schema", "prepare", "train")]
    done = subprocess.run(
        [sys.executable, "-c", _FLIPS, json.dumps(commands), str(folder), "20", str(out)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == 20 * len(commands)
    assert done.stderr == ""
    for _, _, code, err, left in results:
        assert code in (0, 2), err
        assert left == (code == 0)
        assert SENTINEL not in err
        if code == 2:
            assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert sum(code == 2 for _, _, code, _, _ in results) >= 20


# ---- sparse matrices


def npy(array):
    content = io.BytesIO()
    np.lib.format.write_array(content, array, allow_pickle=True)
    return content.getvalue()


def hostile(path, name):
    matrix = scipy.sparse.random_array((60, 12), density=0.3, format="csr", rng=np.random.default_rng(0))
    members = {
        "indices": npy(matrix.indices.astype(np.int32)), "indptr": npy(matrix.indptr.astype(np.int32)),
        "format": npy(np.array(b"csr")), "shape": npy(np.array(matrix.shape)), "data": npy(matrix.data),
    }  # fmt: skip
    if name == "bomb":
        members["data"] = npy(np.zeros(1 << 26, np.int8))
    elif name == "objects":
        members["data"] = npy(np.array([SENTINEL] * matrix.nnz, object))
    elif name == "out of range":
        members["indices"] = npy(np.full(matrix.nnz, 12, np.int32))
    elif name == "path":
        members["../data"] = members["data"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(f"{member}.npy", content)
        if name == "twice":
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr("data.npy", members["data"])
    if name == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif name == "text":
        path.write_text(SENTINEL)
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["twice", "bomb", "objects", "out of range", "path", "cut", "text"])
def test_hostile_matrices(place, tmp_path, capsys, command, name):
    source = hostile(tmp_path / "codes.npz", name)
    check_refusal(command, source, "matrix", place, tmp_path / "out", capsys)


# ---- vocabularies

LISTS = {
    "missing": (None, "not a file"),
    "empty": (b"\n \n", "holds no code"),
    "not UTF-8": (b"a\n\xff\n", "cannot be read"),
    "twice": (f"a\n{SENTINEL}\n{SENTINEL}\n".encode(), "stands twice"),
    "separator": (b"a|b\nc\n", "holds the separator"),
    "means missing": (b"a\nNA\n", "means a missing cell"),
    "UTF-16": ("a\nb\n".encode("utf-16"), "cannot be read"),
}


@pytest.mark.parametrize("command", ["prepare", "train"])
@pytest.mark.parametrize("name", LISTS)
def test_malformed_vocabularies(place, tmp_path, capsys, command, name):
    content, what = LISTS[name]
    values = schema_of("events")
    values["columns"][2]["vocabulary"] = "codes.txt"
    (tmp_path / "events.json").write_text(json.dumps(values))
    if content is not None:
        (tmp_path / "codes.txt").write_bytes(content)
    check_refusal(command, place / "events.csv", "events", tmp_path, tmp_path / "out", capsys, what)
