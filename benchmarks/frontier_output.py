"""The table and the picture of benchmarks/frontier.py."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox

OURS, CLASSIC = "Headstart, ", "classic recipe"  # how the names of our points begin; what the others are compared with
BLUE, BROWN = ("#1f5fbf", "o-"), ("#8a5a00", "s")  # colours and shapes of our points and of the others
# In points, from a point to its name and by which side: ours try them in this order, the others from the last one on.
OFFSETS = [(8 * x, y, side) for y in (9, 0, 22, -22, -9) for x, side in ((-1, "right"), (1, "left"), (0, "center"))]
MEASURES = {
    "accuracy": "accuracy on test (higher is better)",
    "log_loss": "log loss on test (lower is better)",
}
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e4e4", "axes.edgecolor": "#999999",
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def markdown(runs: pd.DataFrame) -> str:
    """Return means and standard deviations of each way over the splits, cheapest first.

    Args:
        runs: name, split, accuracy, log_loss, cpu_s, wall_s.
    """
    cpu = runs.pivot(index="split", columns="name", values="cpu_s")
    lines = ["| | accuracy | log loss | CPU s | wall s | CPU s, of the classic recipe's |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name in cpu.mean().sort_values().index:
        rows = runs[runs.name == name]
        cells = [_spread(rows[key], digits) for key, digits in (("accuracy", 3), ("log_loss", 3), ("cpu_s", 0))]
        cells.append(f"{rows.wall_s.mean():.0f}")
        cells.append(f"{(cpu[name] / cpu[CLASSIC]).mean():.2f} times" if CLASSIC in cpu else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(runs: pd.DataFrame, title: str, file: Path) -> None:
    """Draw accuracy and log loss against CPU seconds, means and standard deviations over the splits, into `file`.

    Args:
        runs: as for `markdown`.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.8), layout="constrained", dpi=150)
        figure.suptitle(title, fontsize=11)
        panels = [
            (axes, _draw_points(axes, runs, measure))
            for axes, measure in zip(figure.subplots(1, 2), MEASURES, strict=True)
        ]
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.draw_without_rendering()  # from here on it is known where everything lies
        for axes, points in panels:
            _write_names(axes, points)
        figure.savefig(file)


def _draw_points(axes: Axes, runs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Draw a point with error bars for each way, and a line through ours.

    Returns:
        x, y, and low and high, the ends of the error bar, by name.
    """
    groups = runs.groupby("name")
    points = pd.DataFrame({"x": groups.cpu_s.mean(), "y": groups[measure].mean()}).sort_values("x")
    spread = groups[[measure, "cpu_s"]].std().fillna(0).loc[points.index]
    ours = points.index.str.startswith(OURS)
    for rows, label, colour, style in ((ours, "Headstart", *BLUE), (~ours, "others", *BROWN)):
        axes.errorbar(
            points.x[rows], points.y[rows], spread[measure][rows], spread.cpu_s[rows], color=colour, fmt=style,
            label=label, markersize=7, linewidth=1.5, elinewidth=1, capsize=2,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15, y=0.15)
    axes.set(xlabel="CPU seconds (log scale)", ylabel=MEASURES[measure])
    return points.assign(low=points.y - spread[measure], high=points.y + spread[measure])


def _write_names(axes: Axes, points: pd.DataFrame) -> None:
    """Write the name of each point beside it, where it hides the least."""
    middle = axes.transData.transform(points[["x", "y"]].to_numpy())
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in middle]
    for end in ("low", "high"):  # error bars
        far = axes.transData.transform(points[["x", end]].to_numpy())
        taken += [Bbox([(x - 2, min(y, to)), (x + 2, max(y, to))]) for (x, y), (_, to) in zip(middle, far, strict=True)]
    line = middle[points.index.str.startswith(OURS)]
    for start, end in itertools.pairwise(line):
        taken += [Bbox.from_bounds(x, y, 1, 1) for x, y in np.linspace(start, end, 50)]
    room = axes.get_window_extent()
    for name, point in points.iterrows():
        ours = str(name).startswith(OURS)
        places: list[tuple[int, int, Annotation, Bbox]] = []
        for x, y, side in OFFSETS if ours else OFFSETS[::-1]:
            text = axes.annotate(
                str(name).removeprefix(OURS), (point.x, point.y), (x, y), textcoords="offset points", ha=side,
                va="center", color=BLUE[0] if ours else BROWN[0], weight="bold" if ours else "normal", fontsize=9,
            )  # fmt: skip
            box = text.get_window_extent()
            outside = box.x0 < room.x0 or box.x1 > room.x1 or box.y0 < room.y0 or box.y1 > room.y1
            places.append((box.count_overlaps(taken) + 100 * outside, len(places), text, box))
        for _, _, text, _ in sorted(places)[1:]:
            text.remove()
        taken.append(min(places)[3])


def _spread(values: pd.Series, digits: int) -> str:
    """Mean and standard deviation, which one value does not have."""
    deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"
