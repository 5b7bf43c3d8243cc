"""Secret keys come from the operating system, in their full width."""

import pytest

from dpcgan_fast.privacy import noise_key, sampling_key

KEYS = 2000  # of 10,000 possible ones, as many without a repetition are left to a chance of e^-200


@pytest.mark.parametrize(
    "fresh", [lambda: sampling_key("critic"), lambda: bytes(noise_key().take(0)[0].numpy())], ids=["draws", "noise"]
)
def test_keys_without_a_seed_are_not_a_few(fresh):
    """A key that is one of some thousands can be found by trial, and then the noise can be subtracted."""
    keys = {fresh() for _ in range(KEYS)}
    assert len(keys) == KEYS
    assert all(len(key) == 32 for key in keys)
    for position in range(32):
        assert len({key[position] for key in keys}) > 200, "no byte is fixed"


def test_the_name_of_a_key_says_nothing_about_it():
    """The ledger publishes the name."""
    for _ in range(20):
        key = noise_key()
        words = bytes(key.take(0)[0].numpy())
        assert bytes.fromhex(key.key_id) not in words


def test_keys_of_two_purposes_differ_also_under_one_seed():
    assert sampling_key("autoencoder", 3) != sampling_key("critic", 3)
    assert sampling_key("critic", 3) != bytes(noise_key(3).take(0)[0].numpy())
