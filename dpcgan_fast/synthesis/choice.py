"""How the settings of a run were chosen, where a search chose them and not the user."""

from dataclasses import dataclass
from typing import Any

from dpcgan_fast.privacy import Mechanism
from dpcgan_fast.privacy.selection import Selection
from dpcgan_fast.train.plan import BudgetPlan


@dataclass(frozen=True)
class Choice:
    """What ledger, card and `DPCGAN.privacy()` say of the search.

    opening:    first line of the ledger: the private selection; of a search on public data a mechanism of no steps,
                which costs nothing and names the table
    facts:      JSON values of `DPCGAN.privacy()["tuning"]`
    sentences:  for the card
    assumption: what must be true of the settings
    plan:       of one run inside the selection; None where nothing is paid for the search
    run:        everything that one run inside the selection takes from the data, its score included
    """

    opening: Mechanism | Selection
    facts: dict[str, Any]
    sentences: tuple[str, ...]
    assumption: str
    plan: BudgetPlan | None = None
    run: tuple[Mechanism, ...] = ()
