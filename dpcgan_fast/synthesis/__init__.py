"""The product's Python interface: a model that is fitted, sampled, saved and loaded."""

from dpcgan_fast.synthesis.api import DPCGAN as DPCGAN
from dpcgan_fast.synthesis.fitting import FitHooks as FitHooks
