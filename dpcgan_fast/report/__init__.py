"""The page that says how good synthetic data are and what their privacy rests on; it is itself not private."""

from dpcgan_fast.report.page import WARNING as WARNING
from dpcgan_fast.report.page import write_report as write_report
