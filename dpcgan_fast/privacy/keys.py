"""Keys of the noise and of the Poisson draws: without a seed, from the operating system, and in memory alone."""

import secrets

from dpcgan_fast.ops import KEY_BYTES, NoiseKey, derive_key


def noise_key(seed: int | None = None, position: int = 0) -> NoiseKey:
    """A key for `ops.gaussian_noise_` and `PrivateStep`.

    seed:     None for a fresh secret key. With a seed the noise is reproducible, and whoever knows the seed can
              subtract it: that run is not private
    position: first block to use, to continue a seeded run; 0 without a seed
    """
    return NoiseKey(seed, position)


def sampling_key(purpose: str, seed: int | None = None) -> bytes:
    """32 bytes that key the Poisson draws of one mechanism; as secret as the noise, and independent of its key."""
    if seed is None:
        return secrets.token_bytes(KEY_BYTES)
    return derive_key(str(seed).encode(), f"poisson {purpose}")
