"""Fitting from a table to a run folder: what is written, in which order."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from dpcgan_fast import ops
from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.privacy import account
from dpcgan_fast.privacy.ledger import charged, read_ledger
from dpcgan_fast.synthesis import DPCGAN, FitHooks
from dpcgan_fast.train import session as session_module
from dpcgan_fast.train.checkpoint import checkpoint_paths, read_checkpoint
from tests.synthesis.runs import CrashAfter, CrashError, model_of
from tests.tables import FEW_STEPS, make_schema, make_table, schema_values


class TestRunFolder:
    def test_holds_the_files_of_the_contract_for_its_owner_alone(self, tmp_path):
        model_of().fit(make_table(), tmp_path / "run")
        run = tmp_path / "run"
        names = {path.name for path in run.iterdir()}
        assert names == {
            "config.json", "schema.json", "ledger.jsonl", "model.safetensors", "privacy_card.md", "checkpoints",
            "train_log.jsonl",
        }  # fmt: skip
        assert run.stat().st_mode & 0o777 == 0o700
        for path in run.rglob("*.*"):
            assert path.stat().st_mode & 0o077 == 0, f"{path.name} can be read by others"

    def test_the_ledger_composes_to_the_epsilon_that_is_stated(self, tmp_path):
        model = model_of().fit(make_table(), tmp_path / "run")
        lines, _ = read_ledger(tmp_path / "run" / "ledger.jsonl")
        mechanisms = charged(lines)
        steps = {name: sum(m.steps for m in mechanisms if m.mechanism == name) for name in ("autoencoder", "critic")}
        assert steps == {"autoencoder": 6, "critic": 6}
        spent = account(mechanisms, 1e-4)
        assert model.privacy()["epsilon_spent"] == spent.epsilon <= 3.0
        assert "(3, 0.0001)-differentially private" in model.privacy_card()

    def test_the_log_holds_public_quantities_only(self, tmp_path):
        model_of().fit(make_table(), tmp_path / "run")
        for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines():
            assert set(json.loads(line)) == {"steps", "epsilon_rdp"}

    def test_checkpoints_hold_no_gradient_and_no_record(self, tmp_path):
        """Networks, what Adam keeps of noised gradients, and public randomness: nothing else has a place."""
        model_of().fit(make_table(), tmp_path / "run")
        checkpoint = read_checkpoint(checkpoint_paths(tmp_path / "run" / "checkpoints")[-1])
        for name in checkpoint.tensors:
            assert name.startswith(("networks.", "optimizer.", "released.")) or name == "randomness"
            if name.startswith("optimizer."):
                assert name.rsplit(".", 1)[1] in ("step", "exp_avg", "exp_avg_sq")
        assert set(checkpoint.values) == {
            "steps", "rates", "divisors", "fitted", "ledger_seq", "ledger_head", "noise_position"
        }  # fmt: skip
        assert checkpoint.values["noise_position"] is None, "a secret stream's position is not kept"

    def test_nothing_is_left_behind_if_the_data_does_not_fit(self, tmp_path):
        table = make_table().drop_columns(["age"])
        with pytest.raises(InputError, match="age"):
            model_of().fit(table, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_cell_that_cannot_be_read_is_found_before_the_budget_is_touched(self, tmp_path):
        table = make_table()
        broken = table.set_column(0, "age", pa.array(["forty"] + ["40"] * (table.num_rows - 1)))
        with pytest.raises(InputError, match="row 1") as error:
            model_of().fit(broken, tmp_path / "run")
        assert "forty" not in str(error.value)
        assert not (tmp_path / "run").exists()

    def test_an_output_folder_that_is_not_empty_is_refused(self, tmp_path):
        (tmp_path / "kept.txt").write_text("mine")
        with pytest.raises(InputError, match="There is something at the output path already"):
            model_of().fit(make_table(), tmp_path)
        assert (tmp_path / "kept.txt").read_text() == "mine"


class TestWhatTouchesTheData:
    def test_every_noise_draw_comes_after_its_reservation_is_on_disk(self, tmp_path, monkeypatch):
        """At each draw, the ledger on disk already charges all draws that were made, this one included."""
        run, draws = tmp_path / "run", []
        real = ops.NoiseKey.take

        def spy(key, blocks):
            charged_steps = sum(m.steps for m in charged(read_ledger(run / "ledger.jsonl")[0]))
            draws.append(charged_steps)
            assert charged_steps >= len(draws), "noise was drawn before its reservation"
            return real(key, blocks)

        monkeypatch.setattr(ops.NoiseKey, "take", spy)
        model_of(statistics=False).fit(make_table(), run)
        assert len(draws) == 1 + 6 + 6, "one release, and once for every step"

    def test_training_uses_the_very_noise_clip_and_rate_that_the_ledger_states(self, tmp_path, monkeypatch):
        from dpcgan_fast.privacy import PoissonSampler

        made, drawn = [], []
        real = session_module.PrivateStep

        def spy(module, optimizer, **settings):
            made.append(settings)
            return real(module, optimizer, **settings)

        monkeypatch.setattr(session_module, "PrivateStep", spy)
        real_draw = PoissonSampler.draw
        monkeypatch.setattr(
            PoissonSampler, "draw", lambda self, step: (drawn.append(self.sample_rate), real_draw(self, step))[1]
        )
        model_of().fit(make_table(), tmp_path / "run")
        ledger = {m.mechanism: m for m in charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])}
        for settings, name in zip(made, ("autoencoder", "critic"), strict=True):
            assert settings["noise_multiplier"] == ledger[name].noise_multiplier
            assert settings["max_grad_norm"] == ledger[name].max_grad_norm
            assert settings["expected_batch_size"] == pytest.approx(ledger[name].sample_rate * 400)
        assert set(drawn) == {ledger["critic"].sample_rate}

    def test_the_divisor_is_public_whatever_the_number_of_rows(self, tmp_path, monkeypatch):
        seen = []
        real = session_module.PrivateStep

        def spy(module, optimizer, **settings):
            seen.append(settings["expected_batch_size"])
            return real(module, optimizer, **settings)

        monkeypatch.setattr(session_module, "PrivateStep", spy)
        for rows in (390, 400, 800):
            model_of().fit(make_table(rows), tmp_path / f"run{rows}")
        assert len(set(seen)) == 1

    def test_without_a_public_size_the_divisor_follows_a_paid_count(self, tmp_path):
        model = model_of(make_schema(n_units=None), autoencoder_batch=None, critic_batch=None)
        model.fit(make_table(), tmp_path / "run")
        values = read_checkpoint(checkpoint_paths(tmp_path / "run" / "checkpoints")[-1]).values
        names = [m.mechanism for m in charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])]
        assert "unit count" in names
        assert values["divisors"]["critic"] != 0.02 * 400, "the exact number of rows would be free knowledge"
        assert values["divisors"]["critic"] == pytest.approx(0.02 * 400, rel=0.8)

    def test_class_rates_are_noisy_and_paid_for(self, tmp_path):
        model = model_of(epsilon=1.0)
        table = make_table()
        model.fit(table, tmp_path / "run")
        rates = read_checkpoint(checkpoint_paths(tmp_path / "run" / "checkpoints")[-1]).values["rates"]
        exact = np.mean(np.array(table["died"]))
        assert rates[1] != pytest.approx(exact, abs=1e-6)
        assert rates[1] == pytest.approx(exact, abs=0.2)
        assert any(m.mechanism == "label histogram" for m in charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0]))

    def test_bounds_and_categories_that_are_private_are_estimated_and_paid_for(self, tmp_path):
        columns = schema_values()["columns"]
        columns[0]["bounds"] = "private"
        columns[2] = {"name": "sex", "type": "categorical", "categories": "private"}
        model = model_of(make_schema(columns=columns), epsilon=50.0)
        model.fit(make_table(), tmp_path / "run")
        released = json.loads((tmp_path / "run" / "config.json").read_text())["released"]
        low, high = released["bounds"]["age"]
        assert low <= 30
        assert high >= 85
        assert set(released["categories"]["sex"]) == {"F", "M"}
        assert set(model.sample(50)["sex"].to_pylist()) <= {"F", "M", "__other__"}
        assert account(charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0]), 1e-4).epsilon <= 50.0

    def test_a_new_person_changes_no_artefact_but_the_noised_ones(self, tmp_path):
        """Neighbouring tables, the added row extreme in every column: files that carry no noise are byte-equal."""
        columns = schema_values()["columns"]
        columns[4]["rates"] = [0.6, 0.4]
        schema = make_schema(columns=columns)
        table = make_table()
        extreme = pa.table({
            "age": pa.array([10**6]), "sodium": pa.array([math.inf]), "sex": pa.array(["never seen"]),
            "smoker": pa.array([1]), "died": pa.array([1]),
        }, schema=table.schema)  # fmt: skip
        for name, rows in (("a", table), ("b", pa.concat_tables([table, extreme]))):
            model_of(schema, seed=11).fit(rows, tmp_path / name)
        for path in ("schema.json", "ledger.jsonl", "privacy_card.md", "train_log.jsonl"):
            assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
        configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
        for config in configs:
            del config["model_sha256"]
        assert configs[0] == configs[1]
        sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in "ab"]
        assert sizes[0] == sizes[1]

    def test_patients_with_several_rows_are_units(self, tmp_path):
        schema = make_schema(unit="patient", n_units=60, max_rows_per_unit=3)
        model = DPCGAN(schema, 3.0, 1e-4, device="cpu", **{**FEW_STEPS, "autoencoder_batch": 10, "critic_batch": 10})
        model.fit(make_table(patients=60), tmp_path / "run")
        mechanisms = charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])
        assert {m.unit for m in mechanisms} == {"patient"}
        assert "all rows with one value of `patient`, of which at most 3 rows are used" in model.privacy_card()
        assert "patient" not in model.sample(5).column_names


class TestModes:
    def test_infinite_epsilon_is_the_non_private_baseline_and_says_so(self, tmp_path):
        model = model_of(epsilon=math.inf).fit(make_table(), tmp_path / "run")
        privacy = model.privacy()
        assert privacy["private"] is False
        assert privacy["epsilon"] == privacy["epsilon_spent"] == "inf"
        assert "Not private: epsilon is inf" in model.privacy_card()
        assert all(m.noise_multiplier == 0 for m in charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0]))

    def test_a_seed_marks_the_run_not_private_everywhere(self, tmp_path):
        model = model_of(seed=3).fit(make_table(), tmp_path / "run")
        assert model.privacy()["private"] is False
        assert "Not private: seeded noise" in model.privacy_card()
        assert '"key_id":"seeded"' in (tmp_path / "run" / "ledger.jsonl").read_text()

    def test_two_runs_without_a_seed_share_neither_noise_nor_draws_whatever_the_global_seeds(self, tmp_path):
        import random

        samples = []
        for name in ("a", "b"):
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            samples.append(model_of().fit(make_table(), tmp_path / name).sample(50, seed=1))
        assert not samples[0].equals(samples[1])

    def test_two_runs_with_one_seed_are_equal(self, tmp_path):
        samples = [model_of(seed=4).fit(make_table(), tmp_path / name).sample(50, seed=1) for name in ("a", "b")]
        assert samples[0].equals(samples[1])

    def test_the_global_random_state_stays_as_it_was(self, tmp_path):
        torch.manual_seed(1)
        expected = torch.rand(3)
        torch.manual_seed(1)
        model_of().fit(make_table(), tmp_path / "run").sample(5)
        assert torch.equal(torch.rand(3), expected)

    @pytest.mark.parametrize("paired", [False, True])
    def test_the_papers_joint_form_and_the_separate_one_both_train(self, tmp_path, paired):
        model = model_of(paired_fakes=paired).fit(make_table(), tmp_path / "run")
        assert model.sample(5).num_rows == 5

    def test_a_published_preset_trains_on_records_of_its_length(self, tmp_path):
        rng = np.random.default_rng(0)
        names = [f"X{i}" for i in range(1, 179)]
        table = pa.table({name: rng.normal(0, 100, 60) for name in names} | {"y": rng.integers(0, 2, 60)})
        schema = make_schema(
            n_units=60, label="y", columns=[{"name": "y", "type": "binary"}],
            signals=[{"name": "eeg", "columns": ["X1", "...", "X178"], "bounds": [-500, 500]}],
        )  # fmt: skip
        batches = {"autoencoder_batch": 16, "critic_batch": 16}
        model = DPCGAN(schema, 3.0, 1e-4, preset="rdpcgan-uci", device="cpu", **{**FEW_STEPS, **batches})
        drawn = model.fit(table, tmp_path / "run").sample(20)
        assert drawn.num_rows == 20
        assert drawn.column_names == ["y", *names]
        seen = drawn["y"][0].as_py()  # after so few steps the label of every record may be one class
        assert set(model.sample(20, where={"y": seen})["y"].to_pylist()) == {seen}

    def test_a_published_preset_refuses_another_length_before_reading_the_data(self, tmp_path):
        model = DPCGAN(make_schema(), 3.0, 1e-4, preset="rdpcgan-uci", **FEW_STEPS)
        with pytest.raises(InputError, match="takes records of length 179, but the schema gives 9"):
            model.fit(tmp_path / "no such file.csv", tmp_path / "run")

    def test_the_critic_runs_once_for_all_rows_of_a_batch(self, tmp_path, monkeypatch):
        """No loop over records: the number of forwards does not grow with the batch."""
        from dpcgan_fast.models.auto import Critic

        calls = []
        real = Critic.forward
        monkeypatch.setattr(Critic, "forward", lambda self, *args: (calls.append(len(args[0])), real(self, *args))[1])
        model_of(critic_batch=200).fit(make_table(), tmp_path / "run")
        per_step = 2 + 0.5  # real, fake, and the generator's every other step
        of_batches = [rows for rows in calls if rows > 10]  # the check for mixed rows, once, is of a handful of rows
        assert len(calls) - len(of_batches) < 10
        assert max(of_batches) > 100
        assert len(of_batches) <= 6 * per_step


class TestOneBudget:
    """A model has one budget, also after a fit that failed."""

    def test_after_a_fit_that_failed_only_its_run_can_go_on(self, tmp_path):
        model = model_of()
        with pytest.raises(CrashError):
            model.fit(make_table(), tmp_path / "run", hooks=FitHooks(progress=CrashAfter(9)))
        for again in (
            {}, {"out": tmp_path / "run"}, {"out": tmp_path / "other"}, {"out": tmp_path / "other", "resume": True}
        ):  # fmt: skip
            with pytest.raises(PrivacyError, match=r"has begun to spend its epsilon of 3 \(.*run\)"):
                model.fit(make_table(), **again)
        assert not (tmp_path / "other").exists()
        assert model.fit(make_table(), resume=True).folder == tmp_path / "run"
        assert model.privacy()["epsilon_spent"] <= 3.0

    def test_a_run_in_a_temporary_folder_is_still_there_after_it_failed(self):
        model = model_of()
        with pytest.raises(CrashError):
            model.fit(make_table(), hooks=FitHooks(progress=CrashAfter(9)))
        with pytest.raises(PrivacyError, match="has begun to spend"):
            model.fit(make_table())
        assert model.fit(make_table(), resume=True).sample(3).num_rows == 3

    def test_a_fit_that_failed_before_it_touched_the_data_has_spent_nothing(self, tmp_path):
        model = model_of()
        with pytest.raises(InputError):
            model.fit(make_table().drop_columns(["age"]), tmp_path / "run")
        assert model.fit(make_table(), tmp_path / "run").sample(3).num_rows == 3


def test_no_error_of_a_fit_shows_a_cell(tmp_path):
    sentinel = "S3NTINEL"
    table = make_table()
    for column in ("age", "sodium", "smoker", "died"):
        index = table.column_names.index(column)
        broken = table.set_column(index, column, pa.array([sentinel] * table.num_rows))
        with pytest.raises(InputError) as error:
            model_of().fit(broken, tmp_path / "run")
        assert sentinel not in str(error.value)
    assert not (tmp_path / "run").exists()
