"""The search that is paid for: what it releases, what it says, and that nothing else is left of it."""

import json
import re
import stat

import pytest

from dpcgan_fast import ops
from dpcgan_fast.errors import InputError, PrivacyError, StoppedError
from dpcgan_fast.privacy import account
from dpcgan_fast.privacy.ledger import charged, read_ledger, taken_by_run
from dpcgan_fast.privacy.selection import RunCount, Selection
from dpcgan_fast.synthesis import DPCGAN, FitHooks, fitting
from dpcgan_fast.train.stopping import StopRequest
from dpcgan_fast.tuning import private_search, workplace
from tests.synthesis.runs import CrashError, model_of
from tests.tables import make_schema, make_table, schema_values
from tests.tuning.searches import FILES, candidates_of, fixed, search


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """The folder of a finished search, in which nothing else is."""
    out = tmp_path_factory.mktemp("search") / "run"
    search(out)
    return out


def scores_of(monkeypatch, *scores):
    """Runs score so, one after the other; the folders that were scored."""
    runs, left = [], list(scores)

    def scored(run, *_):
        runs.append(run)
        return left.pop(0)

    monkeypatch.setattr(private_search, "_scored", scored)
    return runs


class TestWhatIsReleased:
    def test_is_a_run_folder_of_the_same_files_for_its_owner_alone(self, chosen):
        assert {path.name for path in chosen.iterdir()} == FILES
        assert chosen.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o077 == 0 for path in chosen.rglob("*.*"))

    def test_nothing_else_is_left(self, chosen):
        assert list(chosen.parent.iterdir()) == [chosen]

    def test_can_be_loaded_and_sampled(self, chosen):
        assert DPCGAN.load(chosen, "cpu").sample(20, where={"died": 1}).num_rows == 20

    def test_files_do_not_tell_when_in_the_search_they_were_made(self, chosen):
        assert len({path.stat().st_mtime_ns for path in chosen.rglob("*")}) == 1

    def test_no_file_holds_a_score(self, chosen):
        text = "".join(path.read_text() for path in chosen.iterdir() if path.suffix in (".json", ".jsonl", ".md"))
        assert not re.search(r'"(score|auroc|best_score)":', text)
        assert set(json.loads((chosen / "config.json").read_text())["privacy"]["tuning"]) == {
            "search", "runs_distribution", "runs_mean", "candidates", "settings"
        }  # fmt: skip

    @pytest.mark.parametrize(("scores", "best"), [((0.1, 0.9, 0.5), 1), ((0.7, 0.2, 0.1), 0), ((0.0, 0.1, 0.2), 2)])
    def test_is_the_run_that_scored_best_and_the_others_are_destroyed_at_once(
        self, tmp_path, monkeypatch, scores, best
    ):
        runs = scores_of(monkeypatch, *scores)
        ledgers, alive = [], []
        real = fitting.start

        def spy(*arguments, **named):
            folder = real(*arguments, **named)
            ledgers.append(folder.ledger.read_bytes())
            alive.append(len(list(folder.path.parent.iterdir())))
            assert stat.S_IMODE(folder.path.parent.stat().st_mode) == 0o700
            return folder

        monkeypatch.setattr(fitting, "start", spy)
        search(tmp_path / "run", fixed(3))
        assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == ledgers[best]
        assert alive == [1, 2, 2], "the best one so far, and that at work"
        assert len(set(runs)) == 3
        assert not any(run.exists() for run in runs)

    @pytest.mark.parametrize("damaged", [{0}, {2}, {0, 1, 2}])
    def test_is_no_run_that_cannot_be_loaded_unless_there_is_no_other(self, tmp_path, monkeypatch, damaged):
        """What a run released can be at fault, so that an error would tell of one that is to be destroyed."""
        ledgers, real = [], fitting.start

        def damaging(*arguments, **named):
            folder = real(*arguments, **named)
            if len(ledgers) in damaged:
                folder.model.write_bytes(b"{")
            ledgers.append(folder.ledger.read_bytes())
            return folder

        monkeypatch.setattr(fitting, "start", damaging)
        if len(damaged) == 3:
            with pytest.raises(InputError, match="The model file is damaged"):
                search(tmp_path / "run", fixed(3))
        else:
            search(tmp_path / "run", fixed(3))
        assert len(ledgers) == 3
        released = (tmp_path / "run" / "ledger.jsonl").read_bytes()
        (of,) = (number for number, own in enumerate(ledgers) if released.startswith(own))
        assert of not in damaged or len(damaged) == 3
        assert list(tmp_path.iterdir()) == [tmp_path / "run"]

    def test_each_run_draws_one_of_all_candidates(self, tmp_path, monkeypatch):
        scores_of(monkeypatch, *([0.5] * 8))
        picked = []
        real = private_search._choice
        monkeypatch.setattr(
            private_search, "_choice", lambda plan, one, pick: (picked.append(pick), real(plan, one, pick))[1]
        )
        quick = candidates_of(*({"steps": 1, "autoencoder_steps": 1, "critic_lr": rate} for rate in (0.1, 0.2)))
        search(tmp_path / "run", fixed(8), quick, seed=1)
        assert set(picked) == {0, 1}

    def test_is_nothing_where_the_number_of_runs_is_drawn_as_0_and_the_budget_counts_as_spent(self, tmp_path):
        with pytest.raises(PrivacyError, match=r"drawn as 0.*counts as spent"):
            search(tmp_path / "run", fixed(0))
        assert not list(tmp_path.iterdir())


class TestWhatIsStated:
    def test_every_epsilon_is_that_of_the_selection_as_a_whole(self, chosen):
        lines, _ = read_ledger(chosen / "ledger.jsonl")
        (whole,) = charged(lines)
        assert isinstance(whole, Selection)
        spent = account([whole], 1e-4)
        privacy, card = DPCGAN.load(chosen, "cpu").privacy(), (chosen / "privacy_card.md").read_text()
        assert 2.9 < spent.epsilon <= 3.0
        assert privacy["epsilon"] == 3.0
        assert privacy["epsilon_spent"] == privacy["epsilon_rdp"] == spent.epsilon
        assert privacy["epsilon_pld"] == "inf"
        assert "(3, 0.0001)-differentially private" in card
        assert f"| spent by Renyi DP | {spent.epsilon:.6g} |" in card
        log = [json.loads(line) for line in (chosen / "train_log.jsonl").read_text().splitlines()]
        assert {line["epsilon_rdp"] for line in log} == {spent.epsilon}

    def test_the_chosen_run_alone_would_have_another_epsilon(self, chosen):
        """What an account of its own mechanisms would find, and nothing states."""
        from dataclasses import replace

        lines, _ = read_ledger(chosen / "ledger.jsonl")
        plain = [replace(m, event=m.event.removeprefix("selected_")) for m in taken_by_run(lines)]
        alone = account(plain, 1e-4)
        assert alone.epsilon < 0.8 * account(charged(lines), 1e-4).epsilon
        for path in chosen.iterdir():
            if path.suffix in (".json", ".jsonl", ".md"):
                for epsilon in (alone.epsilon_rdp, alone.epsilon_pld):
                    assert f"{epsilon:.4g}" not in path.read_text()

    def test_the_ledger_has_what_the_run_took_the_score_last(self, chosen):
        lines, _ = read_ledger(chosen / "ledger.jsonl")
        taken = taken_by_run(lines)
        assert [m.mechanism for m in taken] == ["label histogram", "autoencoder", "critic", "score"]
        assert lines[0].mechanism.holds(taken)
        assert {line.closes for line in lines if line.closes is not None} == {1, 3, 5, 7}

    def test_mode_distribution_and_number_of_candidates_are_named(self, tmp_path):
        model = search(tmp_path / "run", RunCount("geometric", 1.0), candidates_of({}, {}, {"critic_lr": 0.5}))
        tuning = model.privacy()["tuning"]
        assert tuning["search"] == "private selection"
        assert (tuning["runs_distribution"], tuning["runs_mean"], tuning["candidates"]) == ("geometric", 1.0, 3)
        card = model.privacy_card()
        assert "a geometric distribution of mean 1, each took one of 3 candidates at random" in card
        assert json.dumps(tuning["settings"], sort_keys=True) in card
        lines = [line.split(" | ") for line in card.splitlines() if line.startswith("| ") and "selected_" in line]
        assert lines, "what the chosen run took is listed, and has no epsilon of its own"
        assert {line[-1] for line in lines} == {"- |"}
        assert "The schema, the settings and the number of steps were chosen without" not in card
        first = json.loads((tmp_path / "run" / "ledger.jsonl").read_text().splitlines()[0])
        assert (first["event"], first["candidates"], first["runs_distribution"]) == (
            "repeat_and_select",
            3,
            "geometric",
        )

    def test_a_run_whose_settings_nobody_searched_for_says_none(self, tmp_path):
        assert model_of().fit(make_table(), tmp_path / "run").privacy()["tuning"] is None

    def test_nothing_is_told_of_the_runs_while_they_go_on(self, tmp_path, capfd):
        class Loud:
            def start(self, *_):
                raise AssertionError("a run was told of")

            advance = start

        search(tmp_path / "run", fixed(2), hooks=FitHooks(progress=Loud()))
        assert capfd.readouterr() == ("", "")

    def test_a_seed_makes_a_search_reproducible_and_not_private(self, tmp_path):
        runs = [search(tmp_path / name, RunCount("geometric", 2.0), seed=5) for name in "ab"]
        assert runs[0].sample(30, seed=1).equals(runs[1].sample(30, seed=1))
        assert runs[0].privacy()["private"] is False
        assert "Not private: seeded noise" in runs[0].privacy_card()

    def test_runs_of_a_seeded_search_have_noise_of_their_own(self, tmp_path, monkeypatch):
        runs = scores_of(monkeypatch, 0.1, 0.2, 0.3)
        kept = []
        real = private_search.destroy
        monkeypatch.setattr(
            private_search, "destroy", lambda run: (kept.append((run / "model.safetensors").read_bytes()), real(run))
        )
        search(tmp_path / "run", fixed(3), candidates_of(), seed=5)
        kept.append((tmp_path / "run" / "model.safetensors").read_bytes())
        assert len(runs) == len(set(kept)) == 3


class TestOrder:
    def test_every_noise_draw_comes_after_its_line_is_on_disk_that_of_the_score_included(self, tmp_path, monkeypatch):
        draws = []
        real = ops.NoiseKey.take

        def spy(key, blocks):
            (ledger,) = tmp_path.glob(".run.*.search/*/ledger.jsonl")
            reserved = sum(m.steps for m in taken_by_run(read_ledger(ledger)[0]))
            draws.append(reserved)
            assert reserved >= len(draws), "noise was drawn before its reservation"
            return real(key, blocks)

        monkeypatch.setattr(ops.NoiseKey, "take", spy)
        search(tmp_path / "run", fixed(1), candidates_of())
        assert len(draws) == 1 + 4 + 4 + 1, "class rates, once for every step, and the score"

    def test_the_score_is_given_the_very_noise_that_the_ledger_states(self, tmp_path, monkeypatch):
        given = []
        real = private_search.noisy_score
        monkeypatch.setattr(private_search, "noisy_score", lambda *args: (given.append(args[3]), real(*args))[1])
        search(tmp_path / "run", fixed(1))
        assert given == [
            m for m in taken_by_run(read_ledger(tmp_path / "run" / "ledger.jsonl")[0]) if m.mechanism == "score"
        ]

    def test_the_runs_of_a_search_share_no_noise(self, tmp_path, monkeypatch):
        ids = []
        real = private_search.destroy

        def spy(run):
            ids.append({line.key_id for line in read_ledger(run / "ledger.jsonl")[0]})
            real(run)

        monkeypatch.setattr(private_search, "destroy", spy)
        search(tmp_path / "run", fixed(3))
        ids.append({line.key_id for line in read_ledger(tmp_path / "run" / "ledger.jsonl")[0]})
        assert [len(own) for own in ids] == [2, 2, 2]
        assert len(set.union(*ids)) == 6


class TestGivingUp:
    def test_an_error_in_a_run_leaves_nothing(self, tmp_path, monkeypatch):
        real, calls = fitting.start, []

        def failing(*arguments, **named):
            calls.append(real(*arguments, **named))
            if len(calls) == 2:
                raise CrashError
            return calls[-1]

        monkeypatch.setattr(fitting, "start", failing)
        with pytest.raises(CrashError):
            search(tmp_path / "run", fixed(3))
        assert len(calls) == 2
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("after", [0, 1, 3])
    def test_a_stop_leaves_nothing_and_says_so(self, tmp_path, monkeypatch, after):
        """During the first run, the second, and when all are done."""
        stop, runs = StopRequest(), []
        real = private_search._scored

        def stopping(*arguments, **named):
            runs.append(arguments)
            stop.signal_name = "SIGTERM" if len(runs) >= after else None
            return real(*arguments, **named)

        monkeypatch.setattr(private_search, "_scored", stopping)
        stop.signal_name = "SIGTERM" if after == 0 else None
        with pytest.raises(StoppedError, match=r"Stopped by SIGTERM; .* removed: nothing was released") as error:
            search(tmp_path / "run", fixed(3), hooks=FitHooks(stop=stop))
        assert len(runs) == after
        assert "--resume" not in str(error.value)
        assert not list(tmp_path.iterdir())

    def test_a_second_signal_during_the_removal_does_not_keep_the_rest_of_it(self, tmp_path, monkeypatch):
        real, calls = workplace.destroy, []

        def interrupted(folder):
            calls.append(folder)
            if len(calls) == 1:
                raise StoppedError("Stopped by SIGTERM", "", "")
            real(folder)

        monkeypatch.setattr(workplace, "destroy", interrupted)
        stop = StopRequest()
        stop.signal_name = "SIGTERM"
        with pytest.raises(StoppedError, match="nothing was released"):
            search(tmp_path / "run", fixed(3), hooks=FitHooks(stop=stop))
        assert not list(tmp_path.iterdir())

    def test_a_table_that_does_not_fit_leaves_nothing(self, tmp_path):
        weight = {"name": "weight", "type": "numeric", "bounds": [0, 200]}
        schema = make_schema(columns=[*schema_values()["columns"], weight])
        with pytest.raises(InputError, match="weight"):
            search(tmp_path / "run", schema=schema)
        assert not list(tmp_path.iterdir())

    def test_an_output_folder_that_is_not_empty_is_refused(self, tmp_path):
        (tmp_path / "kept.txt").write_text("mine")
        with pytest.raises(InputError, match="There is something at the output path already"):
            search(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]

    def test_a_chosen_run_cannot_be_gone_on_with(self, chosen):
        model = DPCGAN(make_schema(), 3.0, 1e-4, device="cpu")
        model.settings = DPCGAN.load(chosen, "cpu").settings
        with pytest.raises((PrivacyError, InputError)):
            model.fit(make_table(), chosen, resume=True)
