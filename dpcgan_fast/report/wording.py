"""Numbers and names as the page shows them."""

import math
from collections.abc import Mapping
from typing import Any

NAME_LIMIT = 60
NOT_KNOWN = "n/a"
_DIGITS = 4  # significant ones, of a parameter
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def shown(text: object, limit: int = NAME_LIMIT) -> str:
    """A name from the user as visible text: control, bidirectional and zero-width characters become their code points.

    They could reorder the text around them or hide in it, and some may not stand in an image at all.
    """
    visible = "".join(map(_visible, str(text)))
    return visible if len(visible) <= limit else visible[: limit - 1] + "…"


def shown_lines(text: str) -> str:
    """A longer text, line by line as `shown`."""
    return "\n".join("".join(map(_visible, line)) for line in text.splitlines())


def number(value: object, digits: int = 3) -> str:
    """A figure with a fixed number of decimals; "n/a" for None, "infinite" for infinity."""
    if value is None:
        return NOT_KNOWN
    figure = float(str(value))
    figure = round(figure, digits) + 0.0  # no "-0.00"
    return f"{figure:.{digits}f}" if math.isfinite(figure) else "infinite"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; "n/a" for None."""
    return NOT_KNOWN if value is None else f"{value:.{digits}%}"


def count(value: int | None) -> str:
    """A number of rows with thousands marked; "n/a" for None."""
    return NOT_KNOWN if value is None else f"{value:,}"


def significant(value: object) -> str:
    """A parameter with four significant digits, powers of ten for very small or large ones; "n/a" for None."""
    if value is None:
        return NOT_KNOWN
    figure = float(str(value))
    if not math.isfinite(figure):
        return "infinite"
    if figure == 0 or 1e-3 <= abs(figure) < 1e6:
        return f"{figure:.{_DIGITS}g}" if figure != int(figure) else f"{int(figure):,}"
    mantissa, exponent = f"{figure:.{_DIGITS - 1}e}".split("e")
    return f"{float(mantissa):g} \u00d7 {power_of_ten(10.0 ** int(exponent))}"


def power_of_ten(value: float) -> str:
    """10 with the exponent of a power of ten."""
    return f"10{str(round(math.log10(value))).translate(_SUPERSCRIPTS)}"


def not_private_reasons(privacy: Mapping[str, Any]) -> list[str]:
    """Why the model itself protects nobody; empty for a model that is differentially private."""
    if float(privacy["epsilon"]) == math.inf:
        return ["It was trained without noise (epsilon is infinite)."]
    if privacy.get("private", True):
        return []
    return [
        "Its noise is not secret: it came from a seed, so that whoever knows or guesses the seed can subtract it. The "
        "epsilon below holds for the same training with secret noise only."
    ]


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else f"\\u{ord(letter):04x}"
