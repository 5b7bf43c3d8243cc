"""Stopped and crashed runs: what resumes, what stays charged, and what a resumed run must not change."""

import json

import pytest

from dpcgan_fast.errors import InputError, MachineError, PrivacyError, StoppedError
from dpcgan_fast.privacy import account, rdp_epsilon
from dpcgan_fast.privacy.ledger import Ledger, charged, read_ledger
from dpcgan_fast.synthesis import DPCGAN, FitHooks, checks, fitting
from dpcgan_fast.train import session as session_module
from dpcgan_fast.train.checkpoint import checkpoint_paths
from tests.synthesis.runs import CrashAfter, CrashError, Then, model_bytes, model_of, stopping_hooks
from tests.tables import make_schema, make_table


class TestStopping:
    @pytest.mark.parametrize(("phase", "steps"), [("autoencoder", 1), ("autoencoder", 5), ("critic", 2), ("critic", 4)])
    def test_a_seeded_run_that_was_stopped_and_resumed_equals_one_that_was_not(self, tmp_path, phase, steps):
        whole = model_of(seed=5).fit(make_table(), tmp_path / "whole")
        with pytest.raises(StoppedError, match=r"Go on with resume=True \(--resume\)"):
            model_of(seed=5).fit(make_table(), tmp_path / "run", hooks=stopping_hooks(phase, steps))
        resumed = model_of(seed=5).fit(make_table(), tmp_path / "run", resume=True)
        assert model_bytes(resumed) == model_bytes(whole), "rows that are sampled would hide small differences"
        assert resumed.privacy()["epsilon_spent"] == whole.privacy()["epsilon_spent"]

    @pytest.mark.parametrize("crash_after", [2, 5, 8, 11])
    def test_a_seeded_run_that_crashed_and_was_resumed_equals_one_that_did_not(self, tmp_path, crash_after):
        """The lost steps are taken again with the same noise on the same draws, and are charged once."""
        whole = model_of(seed=5).fit(make_table(), tmp_path / "whole")
        with pytest.raises(CrashError):
            model_of(seed=5).fit(make_table(), tmp_path / "run", hooks=FitHooks(progress=CrashAfter(crash_after)))
        resumed = model_of(seed=5).fit(make_table(), tmp_path / "run", resume=True)
        assert model_bytes(resumed) == model_bytes(whole), "rows that are sampled would hide small differences"
        assert resumed.privacy()["epsilon_spent"] == whole.privacy()["epsilon_spent"]

    def test_stopping_charges_the_steps_that_were_taken(self, tmp_path):
        with pytest.raises(StoppedError):
            model_of().fit(make_table(), tmp_path / "run", hooks=stopping_hooks("critic", 3))
        mechanisms = charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])
        assert sum(m.steps for m in mechanisms if m.mechanism == "critic") == 3
        with pytest.raises(InputError, match="The run is not finished"):
            DPCGAN.load(tmp_path / "run")
        model = model_of().fit(make_table(), tmp_path / "run", resume=True)
        assert model.privacy()["epsilon_spent"] <= 3.0

    def test_after_a_crash_the_lost_block_stays_charged_and_the_noise_is_fresh(self, tmp_path):
        with pytest.raises(CrashError):
            model_of().fit(make_table(), tmp_path / "run", hooks=FitHooks(progress=CrashAfter(9)))
        lines = read_ledger(tmp_path / "run" / "ledger.jsonl")[0]
        assert charged(lines)[-1].steps == 4, "the open block counts in full, though three of its steps were taken"
        model = model_of().fit(make_table(), tmp_path / "run", resume=True)
        lines = read_ledger(tmp_path / "run" / "ledger.jsonl")[0]
        assert len({line.key_id for line in lines}) == 2, "the resumed process has a key of its own"
        assert sum(m.steps for m in charged(lines) if m.mechanism == "critic") == 6
        assert model.privacy()["epsilon_spent"] <= 3.0
        assert "4 steps were lost to a crash" in model.privacy_card()

    def test_an_older_checkpoint_does_not_win_back_budget(self, tmp_path):
        with pytest.raises(StoppedError):
            model_of().fit(make_table(), tmp_path / "run", hooks=stopping_hooks("critic", 5))
        paths = checkpoint_paths(tmp_path / "run" / "checkpoints")
        paths[-1].unlink()  # back to the one before; the ledger stays
        model = model_of().fit(make_table(), tmp_path / "run", resume=True)
        mechanisms = charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])
        assert sum(m.steps for m in mechanisms if m.mechanism == "critic") == 6
        assert model.privacy()["epsilon_spent"] <= 3.0

    def test_a_ledger_older_than_the_checkpoint_is_refused(self, tmp_path):
        with pytest.raises(StoppedError):
            model_of().fit(make_table(), tmp_path / "run", hooks=stopping_hooks("critic", 5))
        ledger = tmp_path / "run" / "ledger.jsonl"
        ledger.write_text("".join(line + "\n" for line in ledger.read_text().splitlines()[:-4]))
        with pytest.raises(PrivacyError, match="The ledger is older than the checkpoint"):
            model_of().fit(make_table(), tmp_path / "run", resume=True)

    @pytest.mark.parametrize("damage", ["missing", "edited"])
    def test_a_missing_or_edited_ledger_is_refused(self, tmp_path, damage):
        with pytest.raises(StoppedError):
            model_of().fit(make_table(), tmp_path / "run", hooks=stopping_hooks("critic", 5))
        ledger = tmp_path / "run" / "ledger.jsonl"
        if damage == "missing":
            ledger.unlink()
        else:
            ledger.write_text(ledger.read_text().replace('"steps":4', '"steps":2', 1))
        with pytest.raises(PrivacyError):
            model_of().fit(make_table(), tmp_path / "run", resume=True)

    def test_a_torn_ledger_line_costs_a_block(self, tmp_path):
        with pytest.raises(StoppedError):
            model_of().fit(make_table(), tmp_path / "run", hooks=stopping_hooks("critic", 1))
        ledger = tmp_path / "run" / "ledger.jsonl"
        ledger.write_text(ledger.read_text() + '{"closes":')
        model = model_of().fit(make_table(), tmp_path / "run", resume=True)
        mechanisms = charged(read_ledger(ledger)[0])
        assert sum(m.steps for m in mechanisms if m.mechanism == "critic") == 6
        assert "4 steps were lost" in model.privacy_card()

    @pytest.mark.parametrize(
        "change", [dict(epsilon=4.0), dict(steps=7), dict(critic_batch=40), dict(seed=1), dict(max_grad_norm=2.0)]
    )
    def test_other_settings_do_not_resume_a_run(self, tmp_path, change):
        with pytest.raises(StoppedError):
            model_of().fit(make_table(), tmp_path / "run", hooks=stopping_hooks("critic", 3))
        with pytest.raises(InputError, match="Settings differ from those of the run"):
            model_of(**change).fit(make_table(), tmp_path / "run", resume=True)
        other = make_schema(n_units=399)
        with pytest.raises(InputError, match="The schema is not that of the run"):
            model_of(other).fit(make_table(), tmp_path / "run", resume=True)

    def test_a_finished_run_is_not_trained_on(self, tmp_path):
        model = model_of().fit(make_table(), tmp_path / "run")
        with pytest.raises(PrivacyError, match="its budget is spent"):
            model_of().fit(make_table(), tmp_path / "run", resume=True)
        with pytest.raises(PrivacyError, match="is spent by the first fit"):
            model.fit(make_table(), tmp_path / "other")

    def test_a_run_that_another_process_trains_is_left_alone(self, tmp_path):
        with pytest.raises(StoppedError):
            model_of().fit(make_table(), tmp_path / "run", hooks=stopping_hooks("critic", 3))
        with (
            Ledger(tmp_path / "run" / "ledger.jsonl"),
            pytest.raises(PrivacyError, match="Another process is writing the ledger"),
        ):
            model_of().fit(make_table(), tmp_path / "run", resume=True)

    @pytest.mark.parametrize("closing", [3, 4, 5, 6])  # the first two are releases before the first checkpoint
    @pytest.mark.parametrize("seed", [5, None])
    def test_a_crash_between_a_checkpoint_and_the_closing_line_repeats_nothing(
        self, tmp_path, monkeypatch, closing, seed
    ):
        """The checkpoint has the block's steps; they are not taken again, and are charged once."""
        calls = []

        def dying(ledger, seq, steps, real=Ledger.close):
            calls.append(seq)
            if len(calls) == closing:
                raise CrashError
            real(ledger, seq, steps)

        monkeypatch.setattr(Ledger, "close", dying)
        with pytest.raises(CrashError):
            model_of(seed=seed).fit(make_table(), tmp_path / "run")
        monkeypatch.undo()
        resumed = model_of(seed=seed).fit(make_table(), tmp_path / "run", resume=True)
        steps = [json.loads(line)["steps"] for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
        assert steps[-1] == {"autoencoder": 6, "critic": 6}
        mechanisms = charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])
        assert {n: sum(m.steps for m in mechanisms if m.mechanism == n) for n in steps[-1]} == steps[-1]
        if seed is not None:
            whole = model_of(seed=seed).fit(make_table(), tmp_path / "whole")
            assert resumed.sample(30, seed=1).equals(whole.sample(30, seed=1))

    def test_the_log_reports_what_the_ledger_charges_also_after_a_crash(self, tmp_path):
        with pytest.raises(CrashError):
            model_of().fit(make_table(), tmp_path / "run", hooks=FitHooks(progress=CrashAfter(9)))
        model_of().fit(make_table(), tmp_path / "run", resume=True)
        last = json.loads((tmp_path / "run" / "train_log.jsonl").read_text().splitlines()[-1])
        assert last["steps"]["critic"] == 2, "four steps were lost, and were spent all the same"
        spent = rdp_epsilon(charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0]), 1e-4)
        assert last["epsilon_rdp"] == pytest.approx(spent, rel=1e-12)

    def test_a_torn_line_after_a_crash_is_charged_to_the_mechanism_that_had_steps_to_reserve(self, tmp_path):
        """The autoencoder lost steps, but all of its steps are charged: the torn line can only be the critic's."""
        with pytest.raises(CrashError):
            model_of().fit(make_table(), tmp_path / "run", hooks=FitHooks(progress=CrashAfter(5)))
        ledger = tmp_path / "run" / "ledger.jsonl"
        ledger.write_text(ledger.read_text() + '{"delta":')
        model = model_of().fit(make_table(), tmp_path / "run", resume=True)
        mechanisms = charged(read_ledger(ledger)[0])
        assert sum(m.steps for m in mechanisms if m.mechanism == "critic") == 6
        assert "6 steps were lost" in model.privacy_card(), "two of the autoencoder, four of the critic"

    def test_a_full_disk_at_a_checkpoint_stops_before_more_noise_and_can_be_resumed(self, tmp_path, monkeypatch):
        def full(*_):
            raise MachineError("The disk is full", "checkpoint", "Free some space and run the same command again.")

        hooks = FitHooks(progress=Then(7, lambda: monkeypatch.setattr(session_module, "write_checkpoint", full)))
        with pytest.raises(MachineError, match="The disk is full"):
            model_of().fit(make_table(), tmp_path / "run", hooks=hooks)
        monkeypatch.undo()
        model = model_of().fit(make_table(), tmp_path / "run", resume=True)
        assert model.privacy()["epsilon_spent"] <= 3.0


class TestPlan:
    """A run keeps to the plan that it was started with, and the ledger to what the run claims."""

    @pytest.fixture
    def stopped(self, tmp_path):
        with pytest.raises(StoppedError):
            model_of().fit(make_table(), tmp_path / "run", hooks=stopping_hooks("critic", 2))
        return tmp_path / "run"

    @staticmethod
    def edit(run, change):
        config = json.loads((run / "config.json").read_text())
        change(config)
        (run / "config.json").write_text(json.dumps(config))

    def test_it_is_written_before_anything_is_released(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise CrashError

        monkeypatch.setattr(fitting, "make_releases", refuse)
        with pytest.raises(CrashError):
            model_of().fit(make_table(), tmp_path / "run")
        plan = json.loads((tmp_path / "run" / "config.json").read_text())["plan"]
        assert [m["mechanism"] for m in plan["mechanisms"]] == [
            "label histogram", "statistics", "autoencoder", "critic",
        ]  # fmt: skip

    def test_a_run_goes_on_by_it_and_makes_no_other(self, stopped, monkeypatch):
        monkeypatch.setattr(checks, "make_plan", lambda *_: pytest.fail("the plan was made anew"))
        model_of().fit(make_table(), stopped, resume=True)
        mechanisms = charged(read_ledger(stopped / "ledger.jsonl")[0])
        assert len({m.noise_multiplier for m in mechanisms if m.mechanism == "critic"}) == 1

    def test_a_ledger_that_does_not_fit_it_is_refused(self, stopped):
        self.edit(stopped, lambda config: config["plan"]["mechanisms"][-1].update(noise_multiplier=0.1))
        with pytest.raises(PrivacyError, match="does not fit the plan of the run: critic"):
            model_of().fit(make_table(), stopped, resume=True)
        self.edit(stopped, lambda config: config.pop("plan"))
        with pytest.raises(PrivacyError, match="The plan of the run cannot be read"):
            model_of().fit(make_table(), stopped, resume=True)

    @pytest.mark.parametrize("change", [lambda c: c.pop("released"), lambda c: c.update(released=None)])
    def test_without_what_was_released_the_configuration_is_damaged(self, stopped, change):
        self.edit(stopped, change)
        with pytest.raises(InputError, match=r"The run's configuration is damaged \(.*config.json: released\)"):
            model_of().fit(make_table(), stopped, resume=True)

    def test_no_block_is_reserved_beyond_the_claim_whatever_the_plan_says(self, stopped):
        self.edit(stopped, lambda config: config["plan"]["mechanisms"][-1].update(steps=6000))
        with pytest.raises(PrivacyError, match="more than the 3 that the run claims"):
            model_of().fit(make_table(), stopped, resume=True)
        assert account(charged(read_ledger(stopped / "ledger.jsonl")[0]), 1e-4).epsilon <= 3.0

    def test_no_model_leaves_a_run_that_spent_more_than_it_claims(self, stopped, monkeypatch):
        self.edit(stopped, lambda config: config["plan"]["mechanisms"][-1].update(steps=60))
        monkeypatch.setattr(session_module, "refuse_overspending", lambda *_: None)
        with pytest.raises(PrivacyError, match="more than the 3 that the run claims"):
            model_of().fit(make_table(), stopped, resume=True)
        assert not (stopped / "model.safetensors").exists()
