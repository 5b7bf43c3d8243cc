"""What leaves a run tells of no one, but for what was noised: with one patient more, all else is the same to the byte.

The patient has a new category, of few and of many, a new maximum, a new code, wide text, and a thousand rows of events
or visits. Of what is noised the part that the data have in it is taken away: sums of clipped gradients are zero, and
statistics fixed. So it is with other labels of the same patients: what training does with classes, and how often a
synthetic row has one, follows from the counts that were released.
"""

import json

import numpy as np
import pytest

from dpcgan_fast.baselines.choice import MIXED, TREE, WAVES
from dpcgan_fast.cli import run
from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.privacy import releases
from dpcgan_fast.synthesis import releases as planning
from dpcgan_fast.synthesis.statistics import CLUSTERS_BY_AUTOENCODER
from tests.baselines.stand_ins import every_pair_clear, plan_always, short_races
from tests.synthesis.code_runs import PATIENTS, VOCABULARY, events, quick_runs, write_events

HEADER = ["patient", "age", "weight", "sex", "died", "dx", "note", "ward", "cost"]
NUMBER, CODE, SEX, NOTE = "987654321", "NEWCODE", "newsex", "wide text " * 500
VISITS_HEADER = ["patient", "day", "weight", "ward", "sex", "died", "dx"]
WARD, WARDS = "newward", [f"W{i:02}" for i in range(70)]
LISTS = {"sex": ["F", "M"], "dx": VOCABULARY[:3]}
WAVE = {"name": "wave", "columns": ["age", "weight", "cost"], "bounds": "private"}
FILES = {
    "config.json", "ledger.jsonl", "model.safetensors", "privacy_card.md", "schema.json", "train_log.jsonl",
}  # fmt: skip


def schema_values(codes, private):
    columns = [
        {"name": "age", "type": "numeric", "bounds": [0, 110], "integer": True},
        {"name": "weight", "type": "numeric", "bounds": "private", "missing": True},
        {"name": "sex", "type": "categorical", "categories": "private" if private else ["F", "M"]},
        {"name": "died", "type": "binary"},
        {"name": "ward", "type": "categorical", "categories": WARDS},
        {"name": "cost", "type": "numeric", "bounds": [0, 5000], "scale": "rank", "quantiles": "private"},
    ]
    if private:
        columns[-1]["bounds"] = "private"
    if codes:
        columns.append({"name": "dx", "type": "codes", "vocabulary": "private" if private else VOCABULARY})
    rows = {} if codes else {"max_rows_per_unit": 3}
    return {"unit": "patient", "n_units": PATIENTS, "label": "died", "columns": columns, **rows}


def rows_of(rows):
    return [[patient, age, f"{40 + len(code) + int(age)}", "FM"[int(age) % 2], died, code, "n", WARDS[int(age) % 70],
             f"{int(age) ** 2}"] for patient, age, died, code in rows]  # fmt: skip


def one_more():
    """Rows of another patient, who stands at the end of a table."""
    first = ["one more", NUMBER, NUMBER, SEX, "1", CODE, NOTE, WARD, NUMBER]
    return [first, *(["one more", "", "", "", "", f"{CODE}{i % 300}", "", "", ""] for i in range(1000))]


def other_labels(rows):
    """Every third patient has the other label, at all rows; labels are then rarer or more frequent by far."""
    return [[*row[:4], str(1 - int(row[4])) if int(row[0][1:]) % 3 == 0 else row[4], *row[5:]] for row in rows]


def visits_values(visits):
    """A schema of patients with visits; what a row is beside `VISITS_HEADER` is up to `visits`."""
    columns = [
        {"name": "day", "type": "numeric", "bounds": [0, 40]},
        {"name": "weight", "type": "numeric", "bounds": [0, 200], "missing": True},
        {"name": "ward", "type": "categorical", "categories": ["a", "b"]},
        {"name": "sex", "type": "categorical", "categories": "private"},
        {"name": "died", "type": "binary"},
        {"name": "dx", "type": "codes", "vocabulary": VOCABULARY},
    ]
    visits = {"time": "day", "columns": ["weight", "ward", "dx"], **visits}
    return {"unit": "patient", "n_units": PATIENTS, "label": "died", "columns": columns, "visits": visits}


def visits_of(rows):
    """Each event is a visit on a day of its own."""
    return [[patient, str(i % 37), f"{40 + int(age)}", "ab"[i % 2], "FM"[int(age) % 2], died, code]
            for i, (patient, age, died, code) in enumerate(rows)]  # fmt: skip


def one_more_with_visits():
    """Visits of another patient, on more days, of more weight and in another ward than anybody has."""
    return [["one more", NUMBER if i % 2 else f"{i / 40}", NUMBER, f"ward {i}", SEX, "1", CODE] for i in range(1000)]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_runs():
        yield


@pytest.fixture(autouse=True)
def no_signal(monkeypatch):
    """C = 0, and statistics without the data; noise, draws and fakes stay as they are."""
    noisy, step = releases.noisy_release, PrivateStep.step

    def fixed(name, values, *rest):
        return noisy(name, np.full(len(values), 30.0), *rest)

    def named(_names, _counts, mechanism, *_rest):
        kept = LISTS[mechanism.mechanism.split(": ")[1]]
        return list(kept), np.linspace(60.0, 30.0, len(kept))

    def nothing_of_the_data(self):
        self._private_sum = {}
        step(self)

    monkeypatch.setattr(releases, "noisy_release", fixed)
    monkeypatch.setattr(releases, "thresholded_names", named)
    monkeypatch.setattr(PrivateStep, "step", nothing_of_the_data)


def artefacts(folder, rows, values, form, monkeypatch, capsys, header=HEADER, **more):
    """Trains in a folder of its own, always by the same command; everything that comes of it."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_events(folder / "events.csv", rows, header)
    (folder / "schema.json").write_text(json.dumps(values))
    source = "events.csv"
    if form == "store":
        assert run(["prepare", source, "--schema", "schema.json", "--out", "store"]) == 0
        capsys.readouterr()
        source = "store"
    options = {
        "schema": "schema.json", "epsilon": 20, "delta": 1e-4, "out": "run", "steps": 6, "autoencoder-steps": 6,
        "batch-size": 20, "seed": 5, "device": "cpu", **more,
    }  # fmt: skip
    arguments = ["train", source, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    code = run(arguments)
    said = capsys.readouterr()
    code_of_sample = run(["sample", "run", "-n", "50", "--seed", "1", "--out", "synthetic.parquet"])
    sampled = capsys.readouterr()
    paths = [path for path in (folder / "run").rglob("*") if path.is_file()]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in [*paths, folder / "synthetic.parquet"]}
    return (code, code_of_sample), (said.out, said.err, sampled.out, sampled.err), files


@pytest.mark.parametrize(
    ("codes", "private", "form"),
    [
        (False, False, "table"), (False, True, "store"), (True, False, "table"), (True, False, "store"),
        (True, True, "table"), (True, True, "store"),
    ],
)  # fmt: skip
def test_one_patient_more_changes_nothing_but_what_is_noised(tmp_path, monkeypatch, capsys, codes, private, form):
    rows, values = rows_of(events()), schema_values(codes, private)
    with_one = [*rows, *one_more()]
    got = [artefacts(tmp_path / name, table, values, form, monkeypatch, capsys)
           for name, table in (("without", rows), ("with", with_one))]  # fmt: skip
    nothing_tells(*got)
    released = json.loads(got[0][2]["run/config.json"])["released"]
    assert (len(released["quantiles"]["cost"]), len(released["category_rates"]["ward"][0])) == (95, 71)


@pytest.mark.parametrize(
    ("names", "form", "clusters", "drawn_from"),
    [
        (("age", "weight", "sex", "died", "cost"), "table", "mixture", TREE),
        (("died", "wave"), "store", "mixture", WAVES),
        (("died", "dx"), "table", "mixture", MIXED),
        (("died", "dx"), "store", "autoencoder", MIXED + CLUSTERS_BY_AUTOENCODER),
    ],
    ids=["a tree", "a signal", "codes", "codes by an autoencoder"],
)
def test_one_patient_more_changes_no_statistics_but_by_what_is_noised(
    tmp_path, monkeypatch, capsys, names, form, clusters, drawn_from
):
    """Neither what rows are drawn from nor, to the byte, the rows."""
    plan_always(monkeypatch, rounds=2)
    short_races(monkeypatch)
    monkeypatch.setattr(planning, "cluster_steps", lambda _: 5)
    every_pair_clear(monkeypatch)
    rows, values = rows_of(events()), schema_values("dx" in names, False)
    values["columns"] = [column for column in values["columns"] if column["name"] in names]
    values["signals"] = [signal for signal in [WAVE] if signal["name"] in names]
    got = [artefacts(tmp_path / name, table, values, form, monkeypatch, capsys, clusters=clusters)
           for name, table in (("without", rows), ("with", [*rows, *one_more()]))]  # fmt: skip
    nothing_tells(*got)
    assert json.loads(got[0][2]["run/config.json"])["released"]["statistics"] == drawn_from


@pytest.mark.parametrize("form", ["table", "store"])
@pytest.mark.parametrize(
    "visits",
    [
        {"max_visits": 3, "max_gap": 10, "key": None},
        {"max_visits": 3, "from_first": True, "key": "day"},
        {"bins": {"width": 10, "count": 3}},
    ],
    ids=["each row", "by key", "in bins"],
)
def test_one_patient_more_with_visits_changes_nothing_but_what_is_noised(tmp_path, monkeypatch, capsys, form, visits):
    rows, values = visits_of(events()), visits_values(visits)
    with_one = [*rows, *one_more_with_visits()]
    nothing_tells(*(artefacts(tmp_path / name, table, values, form, monkeypatch, capsys, VISITS_HEADER)
                    for name, table in (("without", rows), ("with", with_one))))  # fmt: skip


def nothing_tells(got_without, got_with):
    """What came of two tables is the same to the byte, and shows no cell of the patient more."""
    (codes_without, said_without, without), (codes_with, said_with, with_one) = got_without, got_with
    assert codes_without == codes_with == (0, 0)
    assert said_without == said_with
    assert set(without) == set(with_one)
    assert {name.removeprefix("run/") for name in without} >= FILES
    assert any("checkpoints" in name for name in without)
    for name, content in without.items():
        assert content == with_one[name], name
    everything = b"".join(with_one.values()) + "".join(said_with).encode()
    for cell in (NUMBER, CODE, SEX, NOTE, WARD, "one more"):
        assert cell.encode() not in everything


@pytest.mark.parametrize(("codes", "form"), [(False, "table"), (True, "table"), (True, "store")])
def test_other_labels_change_nothing_but_what_is_noised(tmp_path, monkeypatch, capsys, codes, form):
    rows, values = rows_of(events()), schema_values(codes, False)
    before, after = (
        artefacts(tmp_path / name, table, values, form, monkeypatch, capsys)
        for name, table in (("before", rows), ("after", other_labels(rows)))
    )
    assert sum(a != b for a, b in zip(rows, other_labels(rows), strict=True)) > len(rows) / 4
    assert before == after


@pytest.mark.parametrize(
    ("change", "shows"),  # the schema has the paid quantiles
    [(lambda rows: [*rows, *one_more()], {"schema.json"}), (other_labels, set())],
)
def test_the_twin_that_must_fail(tmp_path, monkeypatch, capsys, change, shows):
    """With the statistics as they are, the change shows in what was released: so the comparison sees it."""
    monkeypatch.undo()
    rows, values = rows_of(events()), schema_values(True, False)
    _, _, without = artefacts(tmp_path / "without", rows, values, "table", monkeypatch, capsys)
    _, _, with_one = artefacts(tmp_path / "with", change(rows), values, "table", monkeypatch, capsys)
    files = {name for name in without if "checkpoints" not in name}  # whose names have a sum of their content
    changed = {name.removeprefix("run/") for name in files if without[name] != with_one[name]}
    assert {"config.json", "model.safetensors", *shows} <= changed
    assert not ({"ledger.jsonl", "schema.json", "train_log.jsonl"} - shows) & changed
    assert len(without) == len(with_one)
    assert len(without["run/model.safetensors"]) == len(with_one["run/model.safetensors"])
