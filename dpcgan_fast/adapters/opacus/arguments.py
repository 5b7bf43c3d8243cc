"""Which keyword arguments the methods of a `PrivacyEngine` have.

Opacus passes whatever else it is given on to what drops the names that it does not know: a misspelt
`poisson_sampling=False` or `clipping="adaptive"` would train something else than was meant, unsaid.
"""

# Opacus has no type stubs, and leaves much of what it has without types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from opacus.accountants import create_accountant
from opacus.accountants.utils import get_noise_multiplier


def arguments_of(function: Callable[..., Any]) -> set[str]:
    """Names of the arguments of a function, without those that stand for any other."""
    any_other = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name for name, p in inspect.signature(function).parameters.items() if p.kind not in any_other} - {"self"}


def arguments_of_search(accountant: str) -> set[str]:
    """Names of the settings of Opacus's search for a noise multiplier, and of an accountant's epsilon within it."""
    own = {"target_epsilon", "target_delta", "sample_rate", "epochs", "steps", "accountant", "delta"}
    found = arguments_of(get_noise_multiplier) | arguments_of(create_accountant(accountant).get_epsilon)
    return found - own


def refuse_unknown(method: str, given: Iterable[str], known: set[str]) -> None:
    """Raises TypeError for the first argument given that is not known, with the nearest one that is."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, sorted(known), 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{method}() got an unexpected keyword argument {name!r}.{meant}")
