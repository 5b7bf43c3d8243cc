"""Opacus's API on our engine: change the import, keep the loop.

    from dpcgan_fast.adapters.opacus import PrivacyEngine      # was: from opacus import PrivacyEngine

`GradSampleModule` and the optimizers stand for Opacus's classes of the same names. Opacus itself must be installed
(the extra `opacus`): its loaders, validators, accountants and schedulers are used as they are.
"""

try:
    import opacus as _opacus  # noqa: F401  # pyright: ignore  only whether it is there
except ImportError as error:
    raise ImportError(
        "dpcgan_fast.adapters.opacus needs Opacus, whose API it has: pip install 'opacus>=1.6,<1.7'"
    ) from error

from dpcgan_fast.adapters.opacus.accelerate import accelerate as accelerate
from dpcgan_fast.adapters.opacus.batches import BatchMemoryManager as BatchMemoryManager
from dpcgan_fast.adapters.opacus.engine import PrivacyEngine as PrivacyEngine
from dpcgan_fast.adapters.opacus.module import GradSampleHooks as GradSampleHooks
from dpcgan_fast.adapters.opacus.module import GradSampleModule as GradSampleModule
from dpcgan_fast.adapters.opacus.optimizer import AdaClipDPOptimizer as AdaClipDPOptimizer
from dpcgan_fast.adapters.opacus.optimizer import DPOptimizer as DPOptimizer
from dpcgan_fast.adapters.opacus.optimizer import DPPerLayerOptimizer as DPPerLayerOptimizer
