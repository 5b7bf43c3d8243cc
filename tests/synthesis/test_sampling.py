"""Sampling, saving and loading."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.errors import InputError
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.synthesis import sampling as sampling_module
from dpcgan_fast.train.checkpoint import digest, pack, unpack
from tests.baselines.tables import LENGTH, signal_schema, signals
from tests.tables import FEW_STEPS, make_schema, make_table


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    fitted = DPCGAN(make_schema(), 3.0, 1e-4, device="cpu", **FEW_STEPS)
    return fitted.fit(make_table(), tmp_path_factory.mktemp("model") / "run")


def test_rows_have_the_schemas_columns_types_and_bounds(model):
    table = model.sample(500)
    assert table.column_names == ["age", "sodium", "sex", "smoker", "died"]
    assert table.schema == model.arrow_schema
    age = np.array(table["age"])
    assert table["age"].type == pa.int64()
    assert age.min() >= 0
    assert age.max() <= 110
    assert set(table["sex"].to_pylist()) <= {"F", "M"}
    assert set(table["died"].to_pylist()) <= {0, 1}
    assert table["sodium"].null_count > 0, "missing cells are reproduced"


def test_a_condition_on_the_label_is_met_by_every_row(model):
    for value in (1, 1.0, True, "1", np.int64(1)):
        assert set(model.sample(40, where={"died": value})["died"].to_pylist()) == {1}


def test_conditions_on_other_columns_are_met_by_rejection(model):
    table = model.sample(40, where={"sex": "F", "smoker": 0, "died": 0})
    assert table.num_rows == 40
    assert set(table["sex"].to_pylist()) == {"F"}
    assert set(table["smoker"].to_pylist()) == {0}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"heart": 1}, r"There is no such column \(where heart\)"),
        ({"died": 2}, r"The label has no such class \(where died\). Choose one of 0, 1"),
        ({"age": "old"}, r"The value does not fit the column \(where age\)"),
        ({"age": 200}, r"The value is outside the column's bounds \(where age\)"),
        ({"sex": "f"}, r"The column has no such category \(where sex\). Choose from F, M"),
        ({"smoker": 3}, r"The column has no such category \(where smoker\). Choose from 0, 1"),
    ],
)
def test_conditions_that_cannot_be_are_refused(model, where, message):
    with pytest.raises(InputError, match=message):
        model.sample(5, where=where)


def test_rows_that_do_not_come_up_end_with_an_error(model, monkeypatch):
    monkeypatch.setattr(sampling_module, "_MOST_TRIES", 2)
    monkeypatch.setattr(sampling_module, "BATCH_ROWS", 100)
    with pytest.raises(InputError, match=r"Too rare: no such row came up among 200 synthetic ones \(where sodium\)"):
        model.sample(5, where={"sodium": 123.456})


def test_rows_that_are_too_rare_for_the_number_asked_for_end_with_an_error_and_not_never(model, monkeypatch):
    monkeypatch.setattr(sampling_module, "_MOST_TRIES", 3)
    monkeypatch.setattr(sampling_module, "BATCH_ROWS", 100)
    where = {"sex": "F", "smoker": 1, "died": 1}
    with monkeypatch.context() as patch:
        patch.setattr(sampling_module, "_RAREST", 1)
        message = r"Too rare: \d+ such rows came up among 300 .* \(where sex, smoker\). Ask for fewer rows"
        with pytest.raises(InputError, match=message):
            model.sample(300, where=where, seed=1)
    assert model.sample(300, where=where, seed=1).num_rows == 300, (
        "more than one in ten thousand is drawn until it is enough"
    )


@pytest.mark.parametrize("rows", [0, -5])
def test_the_number_of_rows_must_be_positive(model, rows):
    with pytest.raises(InputError, match="must be at least 1"):
        model.sample(rows)


def test_batches_bound_the_memory_and_add_up(model, monkeypatch):
    monkeypatch.setattr(sampling_module, "BATCH_ROWS", 64)
    sizes = [batch.num_rows for batch in model.sample_batches(300)]
    assert sum(sizes) == 300
    assert max(sizes) <= 64


@pytest.mark.parametrize("statistics", [True, False])
def test_of_long_records_fewer_are_drawn_at_once(monkeypatch, tmp_path, statistics):
    """Also where rows are drawn from statistics: a batch of them has all samples of all its rows."""
    few = {**FEW_STEPS, "statistics": statistics}
    model = DPCGAN(signal_schema(), 3.0, 1e-4, device="cpu", **few).fit(signals(300, 0), tmp_path / "run")
    monkeypatch.setattr(sampling_module, "_BATCH_FLOATS", 10 * LENGTH)
    sizes = [batch.num_rows for batch in model.sample_batches(30)]
    assert sum(sizes) == 30
    assert max(sizes) <= 10


def test_a_seed_makes_a_draw_reproducible_and_none_does_not(model):
    assert model.sample(20, seed=1).equals(model.sample(20, seed=1))
    assert not model.sample(20, seed=1).equals(model.sample(20, seed=2))
    assert not model.sample(20).equals(model.sample(20))


def test_rows_of_a_seed_do_not_depend_on_the_number_of_threads(model, monkeypatch):
    monkeypatch.setattr(sampling_module, "BATCH_ROWS", 64)
    before, tables = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            tables.append([model.sample(300, seed=1), model.sample(300, {"sex": "F"}, seed=1)])
    finally:
        torch.set_num_threads(before)
    assert tables[0] == tables[1]


def test_blocks_of_rows_differ(model, monkeypatch):
    monkeypatch.setattr(sampling_module, "BATCH_ROWS", 40)
    first, second = model.sample_batches(80, seed=1)
    assert not first.equals(second)


def test_a_saved_model_is_the_model(model, tmp_path):
    model.save(tmp_path / "copy")
    loaded = DPCGAN.load(tmp_path / "copy", device="cpu")
    assert loaded.sample(30, seed=1).equals(model.sample(30, seed=1))
    assert loaded.privacy() == model.privacy()
    assert loaded.privacy_card() == model.privacy_card()
    assert loaded.schema == model.schema
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    with pytest.raises(InputError, match="There is something at the output path already"):
        model.save(tmp_path / "copy")


def test_a_model_without_a_folder_lives_in_a_private_one_until_it_is_saved(tmp_path):
    fitted = DPCGAN(make_schema(), 3.0, 1e-4, device="cpu", **FEW_STEPS).fit(make_table())
    assert fitted.folder.stat().st_mode & 0o077 == 0
    fitted.save(tmp_path / "kept")
    assert DPCGAN.load(tmp_path / "kept").sample(3).num_rows == 3


def test_the_random_state_of_sampling_is_its_own(model):
    """Sampling draws from the label rates that were released, not from the labels of the data."""
    rates = np.mean(np.array(model.sample(4000)["died"]))
    released = json.loads((model.folder / "config.json").read_text())["released"]["rates"]
    assert rates == pytest.approx(released[1], abs=0.04)


def test_a_model_file_with_a_flipped_bit_is_refused(model, tmp_path):
    model.save(tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="checksum does not match"):
        DPCGAN.load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("model.safetensors", "checksum does not match"),
        ("config.json", "configuration cannot be read"),
        ("schema.json", "not valid JSON"),
    ],
)
def test_a_file_that_broke_off_is_refused(model, tmp_path, file, what):
    model.save(tmp_path / "copy")
    (tmp_path / "copy" / file).write_bytes(b"{")
    with pytest.raises(InputError, match=what):
        DPCGAN.load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("settings", []), ("user_schema", "a"), ("data", None), ("finished", 1), ("released", []), ("privacy", None),
        ("model_sha256", 5),
    ],
)  # fmt: skip
def test_a_configuration_that_lacks_a_part_is_refused(model, tmp_path, part, other):
    model.save(tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text())
    for damaged in ({**config, part: other}, {name: own for name, own in config.items() if name != part}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=rf"The run's configuration is damaged \(.*config.json: {part}\)"):
            DPCGAN.load(tmp_path / "copy")


def test_a_run_that_is_not_finished_has_no_model_yet_and_is_not_damaged(model, tmp_path):
    model.save(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "checkpoints")  # there is none before what was released is written
    path = tmp_path / "copy" / "config.json"
    first = ("version", "settings", "user_schema", "data", "plan")
    parts = {name: own for name, own in json.loads(path.read_text()).items() if name in first}
    path.write_text(json.dumps({**parts, "finished": False}))
    with pytest.raises(InputError, match="The run is not finished"):
        DPCGAN.load(tmp_path / "copy")


@pytest.mark.parametrize(
    "values", [{}, [], {"rates": None}, {"rates": 0.5}, {"rates": ["a"]}, {"rates": [-1.0, 2.0]}, {"rates": [1e39]}]
)
def test_a_model_file_without_class_rates_is_refused(model, tmp_path, values):
    """One that the configuration vouches for, so that no checksum tells."""
    model.save(tmp_path / "copy")
    path, config = tmp_path / "copy" / "model.safetensors", tmp_path / "copy" / "config.json"
    content = pack(unpack(path.read_bytes(), "model").tensors, values)
    path.write_bytes(content)
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_sha256": digest(content)}))
    with pytest.raises(InputError, match="The model file holds no class rates"):
        DPCGAN.load(tmp_path / "copy")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="This is no run folder"):
        DPCGAN.load(tmp_path)


@pytest.mark.parametrize(
    "call", [lambda m: m.sample(1), lambda m: m.privacy(), lambda m: m.save("x"), lambda m: m.folder]
)
def test_a_model_that_is_not_fitted_says_so(call):
    with pytest.raises(InputError, match="The model is not fitted"):
        call(DPCGAN(make_schema(), 3.0, 1e-4))


def test_data_frames_are_tables_too(tmp_path):
    fitted = DPCGAN(make_schema(), 3.0, 1e-4, device="cpu", **FEW_STEPS)
    assert fitted.fit(make_table().to_pandas(), tmp_path / "run").sample(3).num_rows == 3


def test_without_a_label_there_is_one_class(tmp_path):
    fitted = DPCGAN(make_schema(label=None), 3.0, 1e-4, device="cpu", **FEW_STEPS)
    table = fitted.fit(make_table(), tmp_path / "run").sample(20)
    assert set(table["died"].to_pylist()) <= {0, 1}


def test_records_that_the_networks_generate_become_rows_with_no_further_activation():
    """If the networks gave the real records themselves, sampling would give the real table, cell for cell."""
    table, codec = make_table(), RecordCodec(make_schema(), joint=False)
    records = torch.from_numpy(codec.encode(table, "data").records)

    class RealRecords(torch.nn.Module):
        def generate(self, labels, randomness):  # noqa: ARG002
            return records[: len(labels)]

    sampler = sampling_module.Sampler(RealRecords(), codec, torch.tensor([0.5, 0.5]), conditional=True)
    (rows,) = sampler.batches(table.num_rows, {}, torch.Generator())
    for name in ("age", "sex", "smoker"):
        assert rows[name].to_pylist() == table[name].to_pylist()
    sodium, expected = (t["sodium"].to_numpy(zero_copy_only=False) for t in (rows, table))
    assert np.isnan(sodium).tolist() == np.isnan(expected).tolist()
    assert np.nan_to_num(sodium) == pytest.approx(np.nan_to_num(expected), abs=1e-4)


def test_sampling_uses_the_statistics_that_the_generator_was_trained_with(model):
    """The published generator has BatchNorm; in training mode a row would depend on which others are drawn with it."""
    for opened in (model, DPCGAN.load(model.folder, "cpu")):
        assert not any(module.training for module in opened._sampler.networks.modules())
