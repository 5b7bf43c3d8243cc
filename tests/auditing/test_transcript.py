"""Scores of releases: log likelihood ratios, also where what is released follows from earlier answers."""

import math

import numpy as np
import pytest
import torch

from dpcgan_fast.auditing.transcript import OtherwiseReleasedError, Replay, Transcript, release_score, same
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.parts import Totals
from dpcgan_fast.ops import NoiseKey, gaussian_noise_
from dpcgan_fast.privacy.releases import noisy_release


def scores(release, trials):
    """Of a canary that is there, and of one that is not."""
    return [np.array([release_score(release, included) for _ in range(trials)]) for included in (True, False)]


def test_a_transcript_keeps_values_with_and_without_noise():
    key, first, second = Transcript(), torch.arange(3.0, dtype=torch.float64), torch.ones(2, 2)
    gaussian_noise_([first, second], 0.5, key)
    (answer,) = key.answers
    np.testing.assert_array_equal(answer.exact, [0, 1, 2, 1, 1, 1, 1])
    np.testing.assert_array_equal(answer.noisy, [*first.tolist(), *second.flatten().tolist()])
    assert answer.std == 0.5
    assert not key.seeded
    assert (answer.noisy != answer.exact).all()


def test_a_replay_gives_the_same_answers_to_other_values():
    key, tensor = Transcript(), torch.zeros(4, dtype=torch.float64)
    gaussian_noise_([tensor], 2.0, key)
    replay, other = Replay(key.answers), torch.full((2, 2), 7.0, dtype=torch.float64)
    gaussian_noise_([other], 2.0, replay)
    np.testing.assert_array_equal(other.flatten(), tensor)
    np.testing.assert_array_equal(replay.exact[0], np.full(4, 7.0))
    with pytest.raises(OtherwiseReleasedError):
        gaussian_noise_([other], 2.0, replay)


@pytest.mark.parametrize("noise", [0.8, 3.0])
def test_scores_of_one_release_have_the_law_of_gaussian_likelihood_ratios(noise):
    """Of separation mu: N(+-mu^2 / 2, mu^2); a canary moves two of five entries, together by the sensitivity."""

    def release(included, key):
        values = np.array([3.0, 0.0, 1.0, -2.0, 0.0]) + included * np.array([0, 1.2, 0, -1.6, 0])
        return noisy_release("a release", values, 2.0, noise, key, "row")

    trials, separation = 3000, 1 / noise
    for found, sign in zip(scores(release, trials), (1, -1), strict=True):
        assert abs(found.mean() - sign * separation**2 / 2) < 5 * separation / math.sqrt(trials)
        assert abs(found.std() / separation - 1) < 5 / math.sqrt(2 * trials)


def test_releases_that_follow_from_earlier_answers_add_up():
    """The second release is of values that the first answer picks, and has half of the budget, as the first has."""

    def release(included, key):
        budget = Budget(1.5, key)
        first = budget.release("first", np.array([included * 1.0, 0.0]), 1.0, 0.5)
        place = int(np.argmax(first.values))
        values = np.zeros(3)
        values[place] = included
        return budget.release("second", values, 1.0, 0.5)

    trials, separation = 3000, 1 / 1.5
    present, absent = scores(release, trials)
    assert abs(present.mean() - separation**2 / 2) < 5 * separation / math.sqrt(trials)
    assert abs(absent.mean() + separation**2 / 2) < 5 * separation / math.sqrt(trials)


def test_draws_of_who_is_looked_at_tell_nothing():
    def release(included, key):
        return included is not None, Budget(1.0, key).some_of(50, 0.3)

    assert release_score(release, included=True) == release_score(release, included=False) == 0.0


@pytest.mark.parametrize("kind", ["more", "fewer", "another", "wider noise"])
def test_what_is_released_otherwise_tells_for_sure(kind):
    def release(included, key):
        noise = 2.0 if included and kind == "wider noise" else 1.0
        tensors = [torch.zeros(3 + (included and kind == "more") - (included and kind == "fewer"), dtype=torch.float64)]
        gaussian_noise_(tensors, noise, key)
        if included and kind == "another":
            gaussian_noise_(tensors, 1.0, key)

    assert release_score(release, included=True) == math.inf
    assert release_score(release, included=False) == -math.inf


@pytest.mark.parametrize("kind", ["no noise", "noise of its own", "beside the noise"])
def test_what_leaves_without_the_key_s_noise_tells_for_sure(kind):
    """A value whose noise is 0 asks the key for none, so that its transcript is empty."""

    def release(included, key):
        values = np.array([3.0 + included, 1.0])
        if kind == "noise of its own":
            return values + np.random.default_rng().normal(size=2)
        made = noisy_release("a release", values, 1.0, 0.0 if kind == "no noise" else 50.0, key, "row")
        return made, {"rows": values[0]} if kind == "beside the noise" else None

    assert release_score(release, included=True) == math.inf
    assert release_score(release, included=False) == -math.inf


def test_what_is_made_of_the_same_answers_tells_nothing_more():
    """However data are rounded on the way; names, lists and places that answers pick are alike too."""

    def release(included, key):
        noisy = noisy_release("a release", np.arange(5.0) + included, 3.0, 100.0, key, "row").values
        order = np.argsort(noisy)
        return {"order": order, "names": [f"n{place}" for place in order], "mean": float(noisy.mean()), "none": None}

    assert abs(release_score(release, included=True)) < 1


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (1.0, 1.0 + 1e-12, True),
        (1.0, 1.001, False),
        (math.nan, math.nan, True),
        (1, 1.0, False),
        (np.array([1.0, np.nan]), np.array([1.0 + 1e-12, np.nan]), True),
        (np.zeros(2), np.zeros(3), False),
        (np.array(["a"]), np.array(["b"]), False),
        ((1, [2.0, {"a": "b"}]), (1, [2.0, {"a": "b"}]), True),
        ((1, [2.0, {"a": "b"}]), (1, [2.0, {"b": "b"}]), False),
        ([1], [1, 2], False),
        (Totals(np.ones(2), 1.0), Totals(np.ones(2), 1.0), True),
        (Totals(np.ones(2), 1.0), Totals(np.ones(2), 2.0), False),
    ],
)
def test_results_are_the_same_where_all_that_they_hold_is(one, other, alike):
    assert same(one, other) is alike


def test_noise_without_a_transcript_is_as_it_was():
    """The stream of a seeded key is what it is for a key that keeps its answers."""
    plain, kept = torch.zeros(100, dtype=torch.float64), torch.zeros(100, dtype=torch.float64)
    gaussian_noise_([plain[:50]], 1.0, key := NoiseKey(3))
    gaussian_noise_([plain[50:]], 1.0, key)
    NoiseKey(3).add_to([kept[:50]], 1.0)
    later = NoiseKey(3, key.position // 2)
    gaussian_noise_([kept[50:]], 1.0, later)
    torch.testing.assert_close(plain, kept, rtol=0, atol=0)
