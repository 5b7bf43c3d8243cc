"""Privacy: keys, Poisson sampling, accounting, the ledger, and the privacy card.

Keys and samplers import with torch alone; the accountant loads dp-accounting when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dpcgan_fast.privacy.keys import noise_key as noise_key
from dpcgan_fast.privacy.keys import sampling_key as sampling_key
from dpcgan_fast.privacy.mechanism import Mechanism as Mechanism
from dpcgan_fast.privacy.mechanism import release_shares as release_shares
from dpcgan_fast.privacy.sampling import PoissonSampler as PoissonSampler

if TYPE_CHECKING:
    from dpcgan_fast.privacy.accountant import PrivacySpent as PrivacySpent
    from dpcgan_fast.privacy.accountant import account as account
    from dpcgan_fast.privacy.accountant import rdp_epsilon as rdp_epsilon
    from dpcgan_fast.privacy.calibration import calibrate_noise_multiplier as calibrate_noise_multiplier
    from dpcgan_fast.privacy.ledger import Ledger as Ledger

_LAZY = {
    "PrivacySpent": "accountant",
    "account": "accountant",
    "rdp_epsilon": "accountant",
    "calibrate_noise_multiplier": "calibration",
    "Ledger": "ledger",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
