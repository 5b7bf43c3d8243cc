"""The embedded data set is what its card says; others are found, or the error says where to get them."""

import hashlib
import runpy
from pathlib import Path

import pooch
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpcgan_fast.data.datasets import (
    DATA_SETS,
    data_folder,
    dataset_path,
    load_support2,
    support2_schema,
    train_test_split,
)
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
LEAKS = {
    "death", "d.time", "surv2m", "surv6m", "prg2m", "prg6m", "dnr", "dnrday", "sfdm2", "slos", "charges", "totcst",
    "totmcst",
}  # fmt: skip
# The files that tests and benchmarks were run with.
SHA256 = {
    "cardio": "c93f817b0df9637b3839858459c3e836410598a3bee63d6759aa395f8fe8ccc2",
    "cervical_cancer": "b3da541717d116d9dbe055eee49c505df1f69efd6e235df2c8b8dd1dcd623b0f",
    "epileptic_seizure": "1dab5441be457189bb6aadc3af4f288ad090e4f7877a7a1e329c85054792cb19",
    "mimic_iv_demo_diagnoses": "4241a8d5530bee9e9005957426ded5f3a00b26f27deafb005c8d8ca2e483d896",
    "pbc2": "9481c0207bd7cb03d48e74510272c49ddd9eb07d9173b79738f419a792dba788",
    "support2": "a0c44cb22090bf9543e0180bb60bb3b114e1d17555a239c525fc71994c9ea46f",
}
with_data = pytest.mark.skipif(data_folder() is None, reason="no folder with the public data sets")


# ---- SUPPORT2


def test_support2_has_the_schemas_columns_and_no_leak():
    table, schema = load_support2(), support2_schema()
    assert table.num_rows == 9105
    assert tuple(table.column_names) == schema.column_names()
    assert not LEAKS & set(table.column_names)
    assert schema.label == "hospdead"
    assert schema.label_column().rates is None
    assert sum(table["hospdead"].to_pylist()) / 9105 == pytest.approx(0.259, abs=1e-3)


def test_support2_has_the_types_that_its_schema_says():
    assert load_support2().schema.equals(RecordCodec(support2_schema()).arrow_schema)


def test_support2_encodes_and_its_public_facts_fit_the_data():
    table, schema = load_support2(), support2_schema()
    encoded = RecordCodec(schema).encode(table)
    assert encoded.kept.all()
    assert schema.n_units == train_test_split(table)[0].num_rows
    for column in schema.columns:
        cells = [cell for cell in table[column.name].to_pylist() if cell is not None]
        assert column.missing or len(cells) >= 9104, column.name
        if column.type == "categorical":
            assert set(cells) == set(column.categories)
            assert column.unknown == "first"
        elif column.type == "numeric":
            inside = [column.bounds[0] <= cell <= column.bounds[1] for cell in cells]
            assert sum(inside) / len(inside) > 0.995, column.name


def test_the_card_names_every_column_and_the_licence():
    card = (ROOT / "dpcgan_fast/data/embedded/support2_card.md").read_text()
    for name in LEAKS | set(load_support2().column_names):
        assert f"`{name}`" in card, name
    assert "CC BY 4.0" in card
    assert "Vanderbilt" in card


@with_data
def test_support2_is_the_public_file_unchanged():
    """Cell by cell against the CSV file, by another parser."""
    pandas = pytest.importorskip("pandas")
    source = pandas.read_csv(dataset_path("support2"), keep_default_na=False, na_values=[""], low_memory=False)
    table = load_support2()
    assert set(source.columns) - LEAKS == set(table.column_names)
    for name in table.column_names:
        wanted = [None if cell != cell else cell for cell in source[name].tolist()]
        assert table[name].to_pylist() == wanted, name


# ---- splitting


def test_a_split_is_by_row_keeps_order_and_is_the_same_everywhere():
    table = pa.table({"x": list(range(20))})
    train, test = train_test_split(table, seed=0, test_share=0.25)
    assert test["x"].to_pylist() == [2, 3, 11, 13, 15]  # also with another numpy, on another machine
    assert sorted(train["x"].to_pylist() + test["x"].to_pylist()) == list(range(20))
    assert train["x"].to_pylist() == sorted(train["x"].to_pylist())
    assert not train_test_split(table, seed=1, test_share=0.25)[1].equals(test)


def test_a_split_by_unit_shares_no_unit():
    units = [i % 10 for i in range(100)]
    train, test = train_test_split(pa.table({"id": units}), test_share=0.3, unit="id")
    assert len(set(test["id"].to_pylist())) == 3
    assert not set(train["id"].to_pylist()) & set(test["id"].to_pylist())


def test_rows_without_a_unit_are_for_training():
    train, test = train_test_split(pa.table({"id": ["a", None, "b"]}), test_share=1.0, unit="id")
    assert (train.num_rows, test.num_rows) == (1, 2)


def test_a_share_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match="test_share"):
        train_test_split(pa.table({"x": [1]}), test_share=1.5)


# ---- registered data sets


def test_the_data_folder_is_what_the_variable_names(tmp_path, monkeypatch):
    monkeypatch.setenv("DPCGAN_DATA_DIR", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.setenv("DPCGAN_DATA_DIR", str(tmp_path / "none"))
    assert data_folder() is None


@pytest.mark.parametrize("ending", [".csv.gz", ".csv", ".parquet"])
def test_a_file_in_the_data_folder_is_found(tmp_path, monkeypatch, ending):
    monkeypatch.setenv("DPCGAN_DATA_DIR", str(tmp_path))
    (tmp_path / f"cardio{ending}").write_bytes(b"x")
    assert dataset_path("cardio") == tmp_path / f"cardio{ending}"


@pytest.mark.parametrize("name", sorted(set(DATA_SETS) - {"pbc2"}))
def test_a_file_that_is_not_there_is_asked_for(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DPCGAN_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"https://.* DPCGAN_DATA_DIR"):
        dataset_path(name)


def test_a_data_set_with_an_address_is_fetched_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("DPCGAN_DATA_DIR", str(tmp_path))
    asked = []

    def retrieve(url, known_hash, **_):
        asked.append((url, known_hash))
        return str(tmp_path / "fetched.csv")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert dataset_path("pbc2") == tmp_path / "fetched.csv"
    assert asked == [(DATA_SETS["pbc2"].url, f"sha256:{DATA_SETS['pbc2'].sha256}")]


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("another hash")])
def test_a_data_set_that_cannot_be_fetched_is_asked_for(tmp_path, monkeypatch, error):
    def retrieve(*_, **__):
        raise error

    monkeypatch.setenv("DPCGAN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(InputError, match=r"pbc2\.csv"):
        dataset_path("pbc2")


def test_a_name_that_is_not_registered_is_refused():
    with pytest.raises(InputError, match="cardio"):
        dataset_path("none")


@with_data
@pytest.mark.parametrize("name", sorted(SHA256))
def test_the_files_are_those_that_figures_were_measured_with(name):
    path = dataset_path(name)
    if path.suffixes != [".csv", ".gz"]:
        pytest.skip("another form of the data set")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name]


@with_data
def test_the_converter_makes_the_embedded_file(tmp_path):
    program = runpy.run_path(str(ROOT / "bench/make_support2.py"))
    program["make"](dataset_path("support2"), tmp_path / "made.parquet")
    assert pq.read_table(tmp_path / "made.parquet").equals(load_support2())
