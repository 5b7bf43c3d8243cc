"""The figures of the page, from the metrics and from the tables."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullFormatter

from dpcgan_fast.data.public_cells import (
    bin_edges,
    cell_shares,
    coded_names,
    modelled_columns,
    numbers,
    sample_of,
    signal_columns,
)
from dpcgan_fast.data.schema import Column, Schema, Signal
from dpcgan_fast.evaluate.learners import LEARNER_NAMES
from dpcgan_fast.evaluate.spectra import class_spectra
from dpcgan_fast.report.plotting import Picture, Theme, picture, plain_axes
from dpcgan_fast.report.wording import percent, power_of_ten, shown

WIDTH = 8.6  # inches; the page scales it
COLUMNS_CHARTED = 25
COLUMNS_OVERLAID = 6
CATEGORIES_NAMED = 10
TICKS_NAMED = 36
SIGNAL_ROWS = 2_000
SIGNALS_SHOWN = 4
TRACES = 3
SPECTRA_SHOWN = 6  # classes of a signal
SERIES = (
    ("trtr", "real", "trained on real rows"),
    ("tstr", "synthetic", "trained on synthetic rows"),
    ("baseline", "baseline", "trained on the baseline's rows"),
)


def utility_bars(values: dict[str, Any], positive_rate: float | None) -> Picture:
    """Scores of every learner, trained on real, synthetic and baseline rows.

    values:        of `metrics.json`, with scores
    positive_rate: average precision of a constant guess, for the reference line; None with several classes
    """
    present = [(key, colour, name) for key, colour, name in SERIES if values[key]]
    panels = (("auroc", "AUROC (0.5 is a coin toss)", 0.5), ("ap", "Average precision", positive_rate))

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(WIDTH, 1.15 + 0.28 * len(present) * len(LEARNER_NAMES)), layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        for axes, (score, title, chance) in zip(both, panels, strict=True):
            height = 0.8 / len(present)
            for place, (key, colour, name) in enumerate(present):
                rows = np.arange(len(LEARNER_NAMES)) + (place - (len(present) - 1) / 2) * height
                widths = [values[key][learner][score] for learner in LEARNER_NAMES]
                bars = axes.barh(rows, widths, height * 0.86, color=getattr(theme, colour), label=name)
                axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8.5)
            if chance is not None:
                axes.axvline(chance, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.set_title(title, loc="left")
            axes.set_xlim(0, 1.12)
            axes.set_xticks(np.linspace(0, 1, 6))
            axes.set_yticks(range(len(LEARNER_NAMES)), [name.capitalize() for name in LEARNER_NAMES.values()])
            axes.set_ylim(len(LEARNER_NAMES) - 0.45, -0.55)
            plain_axes(axes, grid="x")
        handles, labels = both[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(present))
        return figure

    words = [
        f"{LEARNER_NAMES[learner]} {name}: AUROC {values[key][learner]['auroc']:.3f}, "
        f"average precision {values[key][learner]['ap']:.3f}"
        for learner in LEARNER_NAMES
        for key, _, name in present
    ]
    return picture(draw, "Bars of scores on real held-out rows. " + "; ".join(words) + ".")


def distance_bars(values: dict[str, Any]) -> Picture:
    """Total variation distance of the columns with the largest ones, with the real-to-real distance as a mark."""
    distances = sorted(values["marginal_tv"].items(), key=lambda item: -item[1])[:COLUMNS_CHARTED]
    floor = values["floor"]["marginal_tv"] if values["floor"] else {}

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(WIDTH, 0.9 + 0.24 * len(distances)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(distances))
        axes.barh(places, [d for _, d in distances], 0.66, color=theme.synthetic, label="synthetic rows")
        marks = [floor.get(name, 0.0) for name, _ in distances]
        for place, (_, distance) in enumerate(distances):
            beside = (max(distance, marks[place]), place)
            axes.annotate(percent(distance), beside, (7, 0), textcoords="offset points", va="center", fontsize=8.5)
        if floor:
            axes.scatter(
                marks,
                places,
                marker="D",
                s=34,
                color=theme.real,
                edgecolors=theme.paper,
                zorder=3,
                label="real training rows",
            )
            figure.legend(loc="outside lower center", ncols=2)
        axes.set_yticks(places, [shown(name, 32) for name, _ in distances])
        axes.set_ylim(len(distances) - 0.4, -0.6)
        axes.set_xlim(0, max(0.05, 1.15 * max(*(d for _, d in distances), *marks)))
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        plain_axes(axes, grid="x")
        return figure

    words = [f"{shown(name)} {percent(distance)}" for name, distance in distances]
    return picture(draw, "Bars of the columns' distances from the real test rows: " + ", ".join(words) + ".")


def marginal_overlays(values: dict[str, Any], synthetic: pa.Table, test: pa.Table, schema: Schema) -> Picture:
    """Distributions of the columns that differ most, real test rows against synthetic rows."""
    ranked = sorted(modelled_columns(schema), key=lambda column: -values["marginal_tv"][column.name])
    chosen = ranked[:COLUMNS_OVERLAID]
    shares = [(cell_shares(test, column), cell_shares(synthetic, column)) for column in chosen]

    def draw(theme: Theme) -> Figure:
        rows = -(-len(chosen) // 2)
        figure = Figure(figsize=(WIDTH, 0.5 + 2.05 * rows), layout="constrained")
        cast(ConstrainedLayoutEngine, figure.get_layout_engine()).set(h_pad=0.09)
        grid = figure.subplots(rows, 2, squeeze=False).ravel()
        for axes, column, (real, drawn) in zip(grid, chosen, shares, strict=False):
            overlay = _numeric_overlay if column.type == "numeric" else _category_overlay
            overlay(axes, column, real, drawn, theme)
            distance = percent(values["marginal_tv"][column.name])
            axes.set_title(f"{shown(column.name, 34)}  (distance {distance})", loc="left")
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
            axes.set_ylim(bottom=0)
            plain_axes(axes, grid="y")
        _one_legend(figure, grid, len(chosen))
        return figure

    names = ", ".join(shown(column.name) for column in chosen)
    return picture(draw, f"Shares of rows by value, real test rows against synthetic rows, for the columns {names}.")


def _one_legend(figure: Figure, grid: np.ndarray, used: int) -> None:
    """Hides the axes of a grid that are not used, and puts the legend of the first one below all."""
    for axes in grid[used:]:
        axes.set_visible(False)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)


def _numeric_overlay(axes: Any, column: Column, real: np.ndarray, drawn: np.ndarray, theme: Theme) -> None:
    edges = bin_edges(column)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.stairs(real[:-1], edges, fill=True, color=theme.real, alpha=0.45, label="real test rows")
    axes.stairs(drawn[:-1], edges, color=theme.synthetic, linewidth=1.8, label="synthetic rows")
    if column.missing:
        # Missing cells stand to the right of the scale, as a pair of bars.
        width = (edges[-1] - edges[0]) / 30
        start = edges[-1] + 2 * width
        axes.bar(start, real[-1], width, color=theme.real, alpha=0.45)
        axes.bar(start + width, drawn[-1], width, color=theme.paper, edgecolor=theme.synthetic, linewidth=1.5)
        ticks = [tick for tick in axes.get_xticks() if edges[0] <= tick <= edges[-1] - 3 * width]
        axes.set_xticks([*ticks, start + width / 2], [*(f"{tick:g}" for tick in ticks), "missing"])


def _category_overlay(axes: Any, column: Column, real: np.ndarray, drawn: np.ndarray, theme: Theme) -> None:
    names = [*coded_names(column), "missing"]
    order = [code for code in range(len(names)) if code < len(names) - 1 or column.missing]
    order = sorted(order, key=lambda code: -max(real[code], drawn[code]))[:CATEGORIES_NAMED]
    places = np.arange(len(order))
    axes.bar(places - 0.2, real[order], 0.36, color=theme.real, alpha=0.6, label="real test rows")
    axes.bar(places + 0.2, drawn[order], 0.36, color=theme.synthetic, label="synthetic rows")
    crowded = len(order) > 4
    axes.set_xticks(
        places,
        [shown(names[code], 14) for code in order],
        rotation=30 if crowded else 0,
        ha="right" if crowded else "center",
        fontsize=8,
    )


def correlation_matrices(real: np.ndarray, drawn: np.ndarray, names: Sequence[str]) -> Picture:
    """Correlation matrices of the real test rows and of the synthetic rows, side by side.

    real, drawn: (features, features) in [-1, 1]
    """
    named = len(names) <= TICKS_NAMED

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(WIDTH, 5.4 if named else 3.8), layout="constrained")
        colours = LinearSegmentedColormap.from_list("signed", [theme.real, theme.paper, theme.synthetic])
        scale = Normalize(-1, 1)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, matrix, title in zip(panels, (real, drawn), ("Real test rows", "Synthetic rows"), strict=True):
            axes.imshow(matrix, cmap=colours, norm=scale, interpolation="nearest")
            axes.set_title(title, loc="left")
            ticks = range(len(names)) if named else []
            labels = [shown(name, 22) for name in names] if named else []
            axes.set_xticks(ticks, labels, rotation=90, fontsize=6.5)
            axes.set_yticks(ticks, labels, fontsize=6.5)
            axes.tick_params(length=0)
        figure.colorbar(panels[0].images[0], ax=panels, shrink=0.7, aspect=30, label="correlation")
        return figure

    return picture(draw, f"Two heat maps of the correlations between {len(names)} encoded columns, on the same scale.")


def signal_traces(signal: Signal, synthetic: pa.Table, test: pa.Table) -> Picture:
    """A signal's values by position and its mean spectrum, real test rows against synthetic rows.

    Single traces are drawn of synthetic rows only: a real one would be a person's record.
    """
    real, drawn = (_signal_values(signal, table) for table in (test, synthetic))

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        low, high = np.quantile(real, (0.1, 0.9), axis=0)
        positions = np.arange(1, real.shape[1] + 1)
        left.fill_between(positions, low, high, color=theme.real, alpha=0.3, label="real test rows, middle 80%")
        for index, trace in enumerate(drawn[:TRACES]):
            label = "synthetic rows, examples" if index == 0 else None
            left.plot(positions, trace, color=theme.synthetic, linewidth=0.9, alpha=1 - 0.28 * index, label=label)
        left.set_title(f"{shown(signal.name, 40)}: values by position", loc="left")
        right.set_title("Mean power by frequency", loc="left")
        for values, colour, style in ((real, theme.real, "-"), (drawn, theme.synthetic, (0, (5, 2)))):
            if len(values) and values.shape[1] > 2:
                power = (np.abs(np.fft.rfft(values, axis=1)) ** 2).mean(axis=0)[1:]
                right.plot(np.arange(1, len(power) + 1), np.maximum(power, 1e-12), color=colour, linestyle=style)
        right.set_yscale("log")
        right.yaxis.set_major_formatter(lambda power, _: power_of_ten(power))
        right.yaxis.set_minor_formatter(NullFormatter())
        right.set_xlabel("cycles over the signal's length")
        for axes in (left, right):
            plain_axes(axes, grid="y")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        return figure

    return picture(
        draw,
        f"Signal {shown(signal.name)}: {TRACES} synthetic traces over the range of the middle 80% of the real test "
        "rows, and the mean power spectra of both.",
    )


def signal_spectra(signal: Signal, synthetic: pa.Table, test: pa.Table, schema: Schema) -> Picture:
    """A signal's mean log power by frequency, a panel for each class that has enough rows in both tables."""
    real, drawn = (class_spectra(table, signal, schema) for table in (test, synthetic))
    shared = [name for name in real if name in drawn][:SPECTRA_SHOWN]
    panels = [(name, real[name].decibels, drawn[name].decibels) for name in shared]

    def draw(theme: Theme) -> Figure:
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(WIDTH, 0.7 + 2.2 * rows), layout="constrained")
        grid = figure.subplots(rows, min(2, len(panels)), squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (name, solid, dashed) in zip(grid, panels, strict=False):
            cycles = np.arange(1, len(solid) + 1)
            axes.plot(cycles, solid, color=theme.real, label="real test rows")
            axes.plot(cycles, dashed, color=theme.synthetic, linestyle=(0, (5, 2)), label="synthetic rows")
            error = np.abs(solid - dashed).mean()
            axes.set_title(f"{shown(signal.name, 20)}, {shown(name, 20)}  (error {error:.2f} dB)", loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.set_ylabel("mean log power, dB")
            axes.set_xlabel("cycles over the signal's length")
            axes.label_outer()
            plain_axes(axes, grid="y")
        _one_legend(figure, grid, len(panels))
        return figure

    words = ", ".join(shown(name) for name in shared)
    return picture(draw, f"Mean log power spectra of signal {shown(signal.name)}, real and synthetic, for {words}.")


def _signal_values(signal: Signal, table: pa.Table) -> np.ndarray:
    """(rows, positions) float64, of at most SIGNAL_ROWS rows."""
    rows = sample_of(table, SIGNAL_ROWS)
    return np.stack([numbers(rows, column) for column in signal_columns(signal)], axis=1)
