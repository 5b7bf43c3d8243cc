"""Names that someone may have meant in the place of one that is not there."""

import difflib
from collections.abc import Iterable

_ALIKE = 0.8  # difflib's ratio, blind to case. A file without a header has cells for names: others are not to be quoted


def did_you_mean(name: str, names: Iterable[str], quote: str = "") -> str:
    """A question with the name most like one that is not there, such as "did you mean age?"; empty if none is alike."""
    by_folded = {other.casefold(): other for other in names if other.isprintable()}
    found = difflib.get_close_matches(name.casefold(), by_folded, 1, _ALIKE)
    return f"did you mean {quote}{by_folded[found[0]]}{quote}?" if found else ""
