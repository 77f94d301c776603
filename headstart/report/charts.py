"""Charts as inline SVG, drawn by matplotlib in the colours of the page's style sheet."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BINS = 24  # of a histogram
POINTS = 300  # of a curve at most
UNIT_SQUARE: dict[str, Any] = {"xlim": (0, 1), "ylim": (0, 1), "aspect": "equal"}
# CSS variables of templates/page.html, each under a stand-in: matplotlib does not know them, and they change with the
# reader's light or dark mode.
_COLOURS = {name: f"#00000{number}" for number, name in enumerate(("soft", "line", "train", "val", "test"), 1)}
SOFT, LINE, TRAIN, VAL, TEST = _COLOURS.values()
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": SOFT,
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.color": LINE,
    "ytick.labelcolor": SOFT,
    "lines.solid_capstyle": "round",
}


def draw(name: str, size: tuple[float, float], plot: Callable[[Axes], None]) -> Markup:
    """Return what `plot` draws on empty axes as an <svg> element; equal arguments give equal text.

    Args:
        name: of the chart, unique within its page, for screen readers and for the ids inside.
        size: width and height in inches; the page scales the chart to the room that it has.
    """
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        plot(axes)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=no_metadata)
    text = buffer.getvalue()
    # A style element would apply to the whole page, which gives size and font; everything lies within the axes.
    svg = re.sub(r"<(style|clipPath).*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="(?!m[0-9a-f]{10})[^"]*"| clip-path="[^"]*"', "", svg)  # markers alone are referred to
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| xmlns(?::xlink)?="[^"]*"| version="1.1"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    for variable, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    label = Markup('<svg role="img" aria-label="{}"').format(name)
    return Markup(svg.strip().replace("<svg", label, 1))


def training_curves(name: str, table: pd.DataFrame, best: int | None) -> list[tuple[str, Markup]]:
    """Draw loss and accuracy by epoch, on train and val; return title and chart of both, or nothing without epochs.

    Args:
        table: epoch, loss, accuracy, val_loss, val_accuracy.
        best: the epoch whose weights were kept, to be marked.
    """
    if table.empty:
        return []
    shown = table.iloc[np.unique(np.linspace(0, len(table) - 1, POINTS).round().astype(int))]
    marker = "o" if len(shown) == 1 else ""

    def curves(column: str) -> Markup:
        def plot(axes: Axes) -> None:
            for prefix, colour in (("", TRAIN), ("val_", VAL)):
                values = shown[prefix + column].where(np.isfinite(shown[prefix + column]))
                axes.plot(shown.epoch, values, color=colour, marker=marker, linewidth=1.8)
            if best is not None:
                axes.axvline(best, color=SOFT, linestyle="--", linewidth=1)
            axes.set_xlabel("epoch")
            if len(shown) == 1:
                axes.set_xlim(shown.epoch.iloc[0] - 1, shown.epoch.iloc[0] + 1)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if column == "loss":
                axes.set_ylim(bottom=0)
            else:
                axes.set_ylim(top=1)

        return draw(f"{name}, {column}", (3.2, 2.2), plot)

    return [(f"{name}, {column}", curves(column)) for column in ("loss", "accuracy")]


def reliability_diagram(table: pd.DataFrame) -> Markup:
    """Draw accuracy against confidence, bin by bin: confidence, accuracy, low, high (an interval)."""

    def plot(axes: Axes) -> None:
        errors = np.clip([table.accuracy - table.low, table.high - table.accuracy], 0, None)
        axes.errorbar(table.confidence, table.accuracy, errors, fmt="none", ecolor=TEST, alpha=0.6)
        axes.plot(table.confidence, table.accuracy, color=TEST, marker="o", linestyle="none")
        axes.plot([0, 1], [0, 1], color=SOFT, linestyle="--", linewidth=1)
        axes.set(xlabel="confidence", ylabel="accuracy", **UNIT_SQUARE)

    return draw("reliability diagram", (4.2, 3.4), plot)


def share_curve(name: str, table: pd.DataFrame) -> Markup:
    """Draw the second column of `table` by the first one, both of them shares."""
    x, y = table.columns

    def plot(axes: Axes) -> None:
        axes.plot(table[x], table[y], color=TEST, linewidth=1.8, solid_joinstyle="round")
        axes.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "), **UNIT_SQUARE)

    return draw(name, (4.2, 3.4), plot)


def histogram(name: str, values: pd.Series) -> Markup:
    """Draw how often the values of a measure occur."""

    def plot(axes: Axes) -> None:
        axes.hist(values.to_numpy(float), bins=BINS, color=TRAIN, rwidth=0.9)
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))

    return draw(f"histogram of {name}", (3.2, 1.6), plot)
