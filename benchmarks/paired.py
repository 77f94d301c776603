"""How the tables of the benchmarks give means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.4f} +-{_deviation(values):.4f}"


def difference(one: Sequence[float], other: Sequence[float]) -> str:
    """The mean of the differences, seed by seed, with its standard error."""
    against = [a - b for a, b in zip(one, other, strict=True)]
    return f"{statistics.mean(against):+.4f} +-{_deviation(against) / len(against) ** 0.5:.4f}"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
