"""Baselines: synthetic rows from noisy counts and sums at the model's epsilon, each a private mechanism of its own."""

from dpcgan_fast.baselines.budget import noise_multiplier as noise_multiplier
from dpcgan_fast.baselines.choice import INDEPENDENT as INDEPENDENT
from dpcgan_fast.baselines.choice import Baseline as Baseline
from dpcgan_fast.baselines.choice import FittedBaseline as FittedBaseline
from dpcgan_fast.baselines.choice import baselines_for as baselines_for
