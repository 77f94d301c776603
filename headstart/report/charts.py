"""Curves as SVG: from values to places in a drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 300, 200  # of a drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 36, 12, 10, 34  # around the plot
TICKS = 6  # of an axis at most
POINTS = 300  # of a line, of more as many at equal distances


class Mark(NamedTuple):
    """A point: kind (a CSS class), places of it and of its interval, and a text."""

    kind: str
    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass
class Chart:
    """A plot with lines and points.

    Attributes:
        x, y: low and high of each axis, low < high.
        lines: kind (a CSS class) and points, as SVG's polyline takes them.
        marks: points with their intervals.
        best: a place across to be marked, or None.
        whole: whether only whole numbers of x have a sense.
    """

    title: str
    x_label: str
    y_label: str
    x: tuple[float, float]
    y: tuple[float, float]
    lines: list[tuple[str, str]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    best: float | None = None
    whole: bool = False
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Place and text."""
        return [(self.across(value), f"{value:g}") for value in ticks(*self.x, least=1 if self.whole else 0)]

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Place and text."""
        return [(self.down(value), f"{value:g}") for value in ticks(*self.y)]

    def across(self, value: float) -> float:
        """Where `value` of x lies."""
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x[0]) / (self.x[1] - self.x[0]), 1)

    def down(self, value: float) -> float:
        """Where `value` of y lies."""
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y[0]) / (self.y[1] - self.y[0]), 1)

    def line(self, kind: str, xs: Sequence[float], ys: Sequence[float]) -> None:
        """Add a line; what is no number is passed over."""
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int))
        self.lines.append((kind, " ".join(f"{self.across(x)},{self.down(y)}" for x, y in (points[i] for i in kept))))
        if len(points) == 1:
            self.mark(kind, *points[0], *[points[0][1]] * 2, "")

    def mark(self, kind: str, x: float, y: float, low: float, high: float, text: str) -> None:
        """Add a point with its interval and what is said where the pointer rests on it."""
        self.marks.append(Mark(kind, self.across(x), self.down(y), self.down(low), self.down(high), text))


def ticks(low: float, high: float, least: float = 0) -> list[float]:
    """Round numbers in [low, high], at most TICKS, not closer than `least`."""
    rough = max((high - low) / (TICKS - 1), least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]
