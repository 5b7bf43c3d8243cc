"""DP-SGD for any supported module, in one backward pass."""

from dpcgan_fast.engine.capture import Capture as Capture
from dpcgan_fast.engine.capture import CudaGraph as CudaGraph
from dpcgan_fast.engine.capture import RunAgain as RunAgain
from dpcgan_fast.engine.graph import GraphedBackward as GraphedBackward
from dpcgan_fast.engine.graph import GraphedStep as GraphedStep
from dpcgan_fast.engine.private_step import PrivateStep as PrivateStep
from dpcgan_fast.engine.report import LayerReport as LayerReport
from dpcgan_fast.engine.report import StepReport as StepReport
from dpcgan_fast.engine.row_mixing import refuse_mixing_modules as refuse_mixing_modules
