"""The file of candidates: what it may hold, and what is said of the rest."""

import json

import pytest

from dpcgan_fast.errors import InputError
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.train import TrainSettings
from dpcgan_fast.tuning import read_candidates
from dpcgan_fast.tuning.candidates import _OPTIONS, Candidate
from tests.synthesis.code_runs import code_schema
from tests.tables import make_schema, signal_schema


def written(tmp_path, content):
    path = tmp_path / "candidates.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def settings_of(values):
    return Candidate.model_validate(values).settings(make_schema(), 3.0, 1e-4, None)


def test_settings_go_by_their_own_names_or_by_those_of_the_options_of_train(tmp_path):
    path = written(tmp_path, [{}, {"critic_lr": 0.01, "max_grad_norm": 2}, {"steps": 7, "preset": "rdpcgan-uci"}])
    plain, rates, published = read_candidates(path).each
    assert plain.given() == {}
    assert rates.given() == {"critic_lr": 0.01, "max_grad_norm": 2}
    assert published.settings(make_schema(), 3.0, 1e-4, None).critic_steps == 7
    assert settings_of({"critic_steps": 7}) == settings_of({"steps": 7})
    assert settings_of({"autoencoder_batch": 50, "critic_batch": 50}) == settings_of({"batch_size": 50})
    assert settings_of({"statistics": False}) == settings_of({"networks_only": True})
    assert settings_of({"networks_only": False}).statistics is True


@pytest.mark.parametrize("schema", [code_schema(columns=("died", "dx")), make_schema(), signal_schema()])
@pytest.mark.parametrize("changes", [{}, {"statistics": False}, {"preset": "rdpcgan-uci"}, {"release_share": 0.3}])
def test_a_candidate_has_the_settings_that_training_with_the_same_changes_has(schema, changes):
    """With codes and networks alone, releases take 0.4 of epsilon, not 0.1."""
    candidate = Candidate.model_validate(changes)
    assert candidate.settings(schema, 3.0, 1e-4, 5) == DPCGAN(schema, 3.0, 1e-4, seed=5, **changes).settings


def test_every_setting_but_the_budget_the_seed_and_the_checkpoints_can_be_searched_for():
    fixed = {"epsilon", "delta", "n_units", "seed", "checkpoint_interval"}
    assert set(Candidate.model_fields) - set(_OPTIONS) == set(TrainSettings.__dataclass_fields__) - fixed


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("[{", "not valid JSON"),
        ('[{"steps": 1, "steps": 2}]', "a name stands twice"),
        ("{}", "no list"),
        ("[]", "an empty one"),
        ([{}, 3], r"an object is needed here|do not fit.*candidate 2"),
        ([{}, {"learning_rate": 1}], r"there is no such field \(.*candidate 2, learning_rate\). Settings are preset"),
        ([{"epsilon": 1.0}], "there is no such field"),
        ([{"steps": "7"}], r"a whole number is needed here \(.*candidate 1, steps\)"),
        ([{"steps": True}], "a whole number is needed here"),
        ([{"steps": 0}], "greater than or equal to 1"),
        ([{"critic_lr": -1}], "greater than 0"),
        ('[{"critic_lr": NaN}]', "a number is needed here"),
        ('[{"critic_lr": 1e999}]', "a number is needed here"),
        ([{"beta1": 1.0}], "less than 1"),
        ([{"networks_only": 1}], "true or false"),
        ([{"critic_loss": "log"}], "hinge"),
        ([{"preset": "best"}], "auto"),
        ([{"steps": 7, "critic_steps": 8}], "steps and critic_steps are the same setting"),
    ],
)
def test_what_is_wrong_is_named_with_its_candidate(tmp_path, content, what):
    with pytest.raises(InputError, match=what):
        read_candidates(written(tmp_path, content))


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(InputError, match="The candidates file does not exist"):
        read_candidates(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="The candidates file cannot be read"):
        read_candidates(tmp_path / "binary.json")


@pytest.mark.parametrize(
    ("values", "what"),
    [({"batch_size": 5000}, "larger than n_units"), ({"preset": "rdpcgan-uci"}, "takes records of length 179")],
)
def test_settings_that_fit_neither_each_other_nor_the_schema_name_their_candidate(tmp_path, values, what):
    candidates = read_candidates(written(tmp_path, [{}, values]))
    with pytest.raises(InputError, match=rf"{what}.*candidate 2"):
        candidates.check(make_schema(), 3.0, 1e-4)


def test_the_published_presets_need_public_lists_here_as_in_training(tmp_path):
    columns = [*make_schema().model_dump(mode="json")["columns"], {
        "name": "ward", "type": "categorical", "categories": "private"}]  # fmt: skip
    candidates = read_candidates(written(tmp_path, [{}, {"preset": "rdpcgan-uci"}]))
    with pytest.raises(InputError, match=r"lists of categories and codes.*candidate 2"):
        candidates.check(make_schema(columns=columns), 3.0, 1e-4)
