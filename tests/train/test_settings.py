"""Settings follow from the preset and public facts, and are checked before anything runs."""

import math

import pytest

from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.train.settings import DEFAULT_SAMPLE_RATE, LARGEST_DELTA, PRESETS, TrainSettings, default_settings


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("n_units", [None, 312, 7284, 56_000, 10_000_000])
@pytest.mark.parametrize("epsilon", [0.1, 3.0, math.inf])
def test_defaults_fit_every_public_size(preset, n_units, epsilon):
    settings = default_settings(preset, epsilon, 1e-8, n_units)
    for batch in (settings.autoencoder_batch, settings.critic_batch):
        assert 0 < settings.sample_rate(batch) <= 1
        assert n_units is None or settings.sample_rate(batch) == batch / n_units
    assert 0.1 <= settings.release_share <= 0.25
    assert TrainSettings.from_dict(settings.to_dict()) == settings


def test_without_a_public_size_the_sample_rate_is_a_public_constant():
    settings = default_settings("auto", 1.0, 1e-5, None)
    assert settings.autoencoder_batch is None
    assert settings.sample_rate(settings.critic_batch) == DEFAULT_SAMPLE_RATE


def test_settings_of_the_paper():
    settings = default_settings("rdpcgan-uci", 1.0, 1e-5, 9200)
    assert (settings.autoencoder_batch, settings.critic_batch) == (64, 128)
    assert (settings.critic_lr, settings.beta1, settings.beta2) == (1e-3, 0.9, 0.999)
    assert (settings.decoder_lr, settings.max_grad_norm, settings.critic_loss) == (1e-4, 1.0, "wasserstein")
    assert default_settings("rdpcgan-mimic", 1.0, 1e-5, 9200).critic_batch == 64


def test_a_record_that_is_one_signal_has_rates_of_its_own_in_preset_auto_alone():
    usual, signal = (default_settings("auto", 1.0, 1e-5, 9200, one_signal=own) for own in (False, True))
    assert (usual.generator_ema, signal.generator_ema) == (0.0, 0.99)
    assert signal.generator_lr == signal.decoder_lr > usual.generator_lr
    assert default_settings("auto", 1.0, 1e-5, 9200, one_signal=True, generator_ema=0.5).generator_ema == 0.5
    published = [default_settings("rdpcgan-uci", 1.0, 1e-5, 9200, one_signal=own) for own in (False, True)]
    assert published[0] == published[1]


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_epsilon_must_be_positive(epsilon):
    with pytest.raises(InputError, match="epsilon must be greater than 0"):
        default_settings("auto", epsilon, 1e-5, 100)


@pytest.mark.parametrize("delta", [0.0, 1.0, 1.5, -1e-5, math.nan])
def test_delta_must_lie_between_0_and_1(delta):
    with pytest.raises(InputError, match="delta must lie between 0 and 1"):
        default_settings("auto", 1.0, delta, 100)


def test_delta_above_one_in_n_units_is_refused_for_privacy():
    with pytest.raises(PrivacyError, match=r"delta is greater than 1 / n_units = 0.01"):
        default_settings("auto", 1.0, 0.011, 100)
    default_settings("auto", 1.0, 0.01, 100)


def test_without_a_public_size_delta_has_a_public_cap():
    with pytest.raises(PrivacyError, match=r"delta is greater than 0.001, .* where n_units is not public"):
        default_settings("auto", 1.0, 0.0011, None)
    default_settings("auto", 1.0, LARGEST_DELTA, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(steps=0), "critic_steps must be at least 1"),
        (dict(autoencoder_steps=-1), "autoencoder_steps must be at least 1"),
        (dict(critic_batch=0), "critic_batch must be at least 1"),
        (dict(critic_batch=101), "The expected batch is larger than n_units"),
        (dict(max_grad_norm=0.0), "max_grad_norm must be positive"),
        (dict(max_grad_norm=math.inf), "max_grad_norm must be positive"),
        (dict(release_share=1.0), "release_share must lie between 0 and 1"),
        (dict(preset="rdpcgan"), "There is no such preset"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        default_settings(**{**dict(preset="auto", epsilon=1.0, delta=1e-5, n_units=100), **change})


def test_settings_of_another_version_are_refused():
    with pytest.raises(InputError, match="settings of the run do not fit"):
        TrainSettings.from_dict({"preset": "auto"})
