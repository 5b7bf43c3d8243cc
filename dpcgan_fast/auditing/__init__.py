"""Empirical lower bounds on epsilon, of the engine and of a run: its mechanisms are run again, on canaries."""

from dpcgan_fast.auditing.engine import audit_engine as audit_engine
from dpcgan_fast.auditing.run import audit_run as audit_run
