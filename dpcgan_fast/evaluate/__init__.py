"""How good a synthetic table is, judged on real held-out rows; nothing here is differentially private.

The exceptions are the baselines: what they release is differentially private, how they are judged is not.
"""

from dpcgan_fast.evaluate.code_columns import CodeView as CodeView
from dpcgan_fast.evaluate.code_columns import code_view as code_view
from dpcgan_fast.evaluate.code_figures import code_distances as code_distances
from dpcgan_fast.evaluate.curve import CurveGrid as CurveGrid
from dpcgan_fast.evaluate.curve import curve_in as curve_in
from dpcgan_fast.evaluate.curve import curve_secret as curve_secret
from dpcgan_fast.evaluate.curve import utility_curve as utility_curve
from dpcgan_fast.evaluate.fidelity import Fidelity as Fidelity
from dpcgan_fast.evaluate.fidelity import fidelity as fidelity
from dpcgan_fast.evaluate.metrics import NOTICE as NOTICE
from dpcgan_fast.evaluate.metrics import Metrics as Metrics
from dpcgan_fast.evaluate.metrics import evaluate as evaluate
from dpcgan_fast.evaluate.utility import train_and_test as train_and_test
