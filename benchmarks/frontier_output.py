"""The table and the picture of benchmarks/frontier.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

OURS, CLASSIC = "Headstart, ", "classic recipe"  # how the names of our points begin; what the others are compared with
COLOURS = {True: "#1f5fbf", False: "#8a5a00"}  # ours and peers
MEASURES = {"accuracy": "accuracy on test (higher is better)", "log_loss": "log loss on test (lower is better)"}
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
        figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
        figure.suptitle(title, fontsize=11)
        for axes, measure in zip(figure.subplots(1, 2), MEASURES, strict=True):
            _panel(axes, runs, measure)
        figure.savefig(file)


def _panel(axes: Axes, runs: pd.DataFrame, measure: str) -> None:
    by_name = runs.groupby("name")[["cpu_s", measure]]
    means, deviations = by_name.mean().sort_values("cpu_s"), by_name.std().fillna(0)
    ours = means[means.index.str.startswith(OURS)]
    axes.plot(ours.cpu_s, ours[measure], color=COLOURS[True], linewidth=1.5, alpha=0.5)
    for name, mean in means.iterrows():
        mine, spread = name in ours.index, deviations.loc[name]
        axes.errorbar(
            mean.cpu_s, mean[measure], spread[measure], min(spread.cpu_s, 0.9 * mean.cpu_s), color=COLOURS[mine],
            fmt="o" if mine else "s", markersize=7 if mine else 6, elinewidth=1, capsize=2,
        )  # fmt: skip
        axes.annotate(
            name, (mean.cpu_s, mean[measure]), (7, 6 if mine else -13), textcoords="offset points",
            color=COLOURS[mine], weight="bold" if mine else "normal", fontsize=9,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(means.cpu_s.min() / 1.6, means.cpu_s.max() * 3)  # room for the names
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="CPU seconds (log scale)", ylabel=MEASURES[measure])


def _spread(values: pd.Series, digits: int) -> str:
    """Mean and standard deviation, which one value does not have."""
    deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"
