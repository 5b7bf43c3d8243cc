"""Baselines: synthetic rows from noisy counts and sums at the model's epsilon, each a private mechanism of its own; and
the statistics that preset auto draws its rows from.
"""

from dpcgan_fast.baselines.budget import noise_multiplier as noise_multiplier
from dpcgan_fast.baselines.choice import COUNTED as COUNTED
from dpcgan_fast.baselines.choice import INDEPENDENT as INDEPENDENT
from dpcgan_fast.baselines.choice import Baseline as Baseline
from dpcgan_fast.baselines.choice import FittedBaseline as FittedBaseline
from dpcgan_fast.baselines.choice import baselines_for as baselines_for
from dpcgan_fast.baselines.statistics import STATISTICS as STATISTICS
from dpcgan_fast.baselines.statistics import arrays_of as arrays_of
from dpcgan_fast.baselines.statistics import has_statistics as has_statistics
from dpcgan_fast.baselines.statistics import released_name as released_name
from dpcgan_fast.baselines.statistics import restored as restored
from dpcgan_fast.baselines.statistics import statistics_for as statistics_for
