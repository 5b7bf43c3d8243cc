"""Baselines: synthetic rows from noisy counts at the model's own epsilon, each a private mechanism of its own."""

from dpcgan_fast.baselines.budget import noise_multiplier as noise_multiplier
from dpcgan_fast.baselines.yardsticks import INDEPENDENT as INDEPENDENT
from dpcgan_fast.baselines.yardsticks import Fitted as Fitted
from dpcgan_fast.baselines.yardsticks import Yardstick as Yardstick
from dpcgan_fast.baselines.yardsticks import yardsticks_for as yardsticks_for
