"""Pictures for the page: drawn once for a light and once for a dark background, as data URIs."""

import base64
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours of one background.

    The three data colours are from the palette of Okabe and Ito (2008), which readers with colour-blindness can tell
    apart; every figure also tells its series apart by position, label or line style.
    """

    paper: str
    ink: str
    muted: str
    line: str
    real: str
    synthetic: str
    baseline: str


LIGHT = Theme("#ffffff", "#1c2330", "#5a6472", "#d5dae1", "#0072b2", "#d55e00", "#8a8f98")
DARK = Theme("#171b22", "#e8ebf0", "#a3adba", "#3a424e", "#56b4e9", "#f08c3a", "#8d96a3")


@dataclass(frozen=True)
class Picture:
    """One figure for both backgrounds.

    light, dark: data URIs of SVG images
    alt:         what the figure shows, in words
    """

    light: str
    dark: str
    alt: str


def picture(draw: Callable[[Theme], Figure], alt: str) -> Picture:
    """Draws a figure for both backgrounds."""
    light, dark = (_data_uri(draw, theme) for theme in (LIGHT, DARK))
    return Picture(light, dark, alt)


def plain_axes(axes: Axes, grid: str = "") -> None:
    """Leaves only the axes that carry information.

    grid: "x" or "y" for grid lines across that axis
    """
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    if grid == "x":
        axes.grid(axis="x", linewidth=0.6)
        axes.spines["left"].set_visible(False)
    elif grid == "y":
        axes.grid(axis="y", linewidth=0.6)
        axes.spines["bottom"].set_visible(False)


def _data_uri(draw: Callable[[Theme], Figure], theme: Theme) -> str:
    style: dict[Any, Any] = {
        "text.parse_math": False,  # a column name may contain a dollar sign
        "svg.fonttype": "none",  # text stays text, so that a name in any script is legible
        "svg.hashsalt": "dpcgan_fast",
        "font.size": 9.0,
        "axes.titlesize": 9.5,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.facecolor": theme.paper,
        "figure.facecolor": theme.paper,
        "grid.color": theme.line,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.color": theme.muted,
        "ytick.labelcolor": theme.ink,
        "legend.frameon": False,
        "savefig.dpi": 200,
    }
    buffer = io.BytesIO()
    with mpl.rc_context(style), warnings.catch_warnings():
        # The browser has glyphs for names in scripts that the figure library's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        draw(theme).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
