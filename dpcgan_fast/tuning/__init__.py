"""Choosing settings: by a search that is paid for (private selection), or on a public table, where nothing is paid."""

from dpcgan_fast.tuning.candidates import Candidates as Candidates
from dpcgan_fast.tuning.candidates import read_candidates as read_candidates
from dpcgan_fast.tuning.private_search import search_privately as search_privately
from dpcgan_fast.tuning.public_search import search_on_public as search_on_public
