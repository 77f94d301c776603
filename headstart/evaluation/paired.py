"""Whether one classifier is better than another, by what both say of the same images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from headstart.evaluation.metrics import LEVEL, Predictions, resampled

RESAMPLES = 2000
SEED = 0  # of the bootstrap: the same comparison gives the same interval


@dataclass(frozen=True)
class Pair:
    """Two predictions of the same images, in the same order.

    Attributes:
        base: what is compared with.
        head: what is judged.
    """

    base: Predictions
    head: Predictions

    @cached_property
    def right(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) bool each: where base and where head are right."""
        return self.base.predicted == self.base.targets, self.head.predicted == self.head.targets

    @property
    def mended(self) -> int:
        """Images that only head has right."""
        return int((~self.right[0] & self.right[1]).sum())

    @property
    def broken(self) -> int:
        """Images that only base has right."""
        return int((self.right[0] & ~self.right[1]).sum())

    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how likely as uneven a split of mended and broken is by chance alone."""
        moved = self.mended + self.broken
        return float(binomtest(self.mended, moved).pvalue) if moved else 1.0

    def verdict(self) -> str:
        """`better` or `worse`, by accuracy and McNemar's test at 5 %, else `no evidence`."""
        if self.p_value() > 1 - LEVEL:
            return "no evidence"
        return "better" if self.mended > self.broken else "worse"

    def differences(self) -> pd.DataFrame:
        """A row a metric: metric, base, head, difference, low, high; the interval by resampling images, in pairs."""
        base, head, count = self.base.metrics(), self.head.metrics(), len(self.base.targets)
        rows = []
        for metric in [name for name in base if name in head]:

            def difference(rows: np.ndarray, metric: str = metric) -> float:
                return self.head.of_rows(metric, rows) - self.base.of_rows(metric, rows)

            low, high = resampled(difference, count, RESAMPLES, SEED)
            rows.append((metric, base[metric], head[metric], head[metric] - base[metric], low, high))
        return pd.DataFrame(rows, columns=["metric", "base", "head", "difference", "low", "high"])

    def classes(self, names: list[str]) -> pd.DataFrame:
        """A row a class that moved: class, images, base, head (recalls), mended, broken, p; most moved first."""
        rows = []
        for label in np.unique(self.base.targets):
            own = self.base.targets == label
            mended, broken = (int((own & a & ~b).sum()) for a, b in (self.right[::-1], self.right))
            if mended or broken:
                p = binomtest(mended, mended + broken).pvalue
                recalls = [right[own].mean() for right in self.right]
                rows.append((names[label], int(own.sum()), *recalls, mended, broken, p))
        table = pd.DataFrame(rows, columns=["class", "images", "base", "head", "mended", "broken", "p"])
        order = (table["mended"] - table["broken"]).abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order].reset_index(drop=True)
