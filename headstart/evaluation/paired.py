"""Whether one classifier is better than another, by what both predict for the same examples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from headstart.evaluation.metrics import LEVEL, Predictions, bootstrap_interval


@dataclass(frozen=True)
class PairedPredictions:
    """Two classifiers' predictions for the same examples, in the same order; `head` is judged against `base`."""

    base: Predictions
    head: Predictions

    @cached_property
    def _fixed(self) -> np.ndarray:
        return ~self.base.correct & self.head.correct

    @cached_property
    def _regressed(self) -> np.ndarray:
        return self.base.correct & ~self.head.correct

    @property
    def fixed(self) -> int:
        """How many examples only head classifies correctly."""
        return int(self._fixed.sum())

    @property
    def regressed(self) -> int:
        """How many examples only base classifies correctly."""
        return int(self._regressed.sum())

    def p_value(self) -> float:
        """Return the p-value of McNemar's exact test, two-sided: whether both have the same accuracy."""
        return _mcnemar(self.fixed, self.regressed)

    def verdict(self) -> str:
        """Return `better` or `worse`, by accuracy and McNemar's test at 5 %, else `no evidence`."""
        if self.p_value() > 1 - LEVEL:
            return "no evidence"
        return "better" if self.fixed > self.regressed else "worse"

    def summary(self, resamples: int, seed: int) -> dict[str, Any]:
        """Return verdict, p, fixed, regressed, and `differences` as metrics: rows, as JSON can hold them."""
        return {
            "verdict": self.verdict(),
            "p": self.p_value(),
            "fixed": self.fixed,
            "regressed": self.regressed,
            "metrics": self.differences(resamples, seed).to_dict("records"),
        }

    def differences(self, resamples: int, seed: int) -> pd.DataFrame:
        """Return a row per metric: metric, base, head, difference, low, high; the interval by resampling in pairs."""
        base, head, count = self.base.metrics(), self.head.metrics(), len(self.base.targets)
        rows = []
        for metric in [name for name in base if name in head]:

            def difference(rows: np.ndarray, metric: str = metric) -> float:
                return self.head.metric_of(metric, rows) - self.base.metric_of(metric, rows)

            low, high = bootstrap_interval(difference, count, resamples, seed)
            rows.append((metric, base[metric], head[metric], head[metric] - base[metric], low, high))
        return pd.DataFrame(rows, columns=["metric", "base", "head", "difference", "low", "high"])

    def per_class(self, classes: list[str]) -> pd.DataFrame:
        """Return a row per class that changed, the largest change first.

        Columns: class, examples, base, head (recalls), fixed, regressed, p.
        """
        targets = self.base.targets
        examples, base, head, fixed, regressed = (
            np.bincount(targets[rows], minlength=len(classes))
            for rows in (slice(None), self.base.correct, self.head.correct, self._fixed, self._regressed)
        )
        changed = np.flatnonzero(fixed + regressed)
        rows = [
            (classes[label], examples[label], base[label] / examples[label], head[label] / examples[label],
             fixed[label], regressed[label], _mcnemar(fixed[label], regressed[label]))
            for label in changed[np.argsort(-abs(fixed - regressed)[changed], kind="stable")]
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["class", "examples", "base", "head", "fixed", "regressed", "p"])


def _mcnemar(fixed: int, regressed: int) -> float:
    return float(binomtest(int(fixed), int(fixed + regressed)).pvalue) if fixed + regressed else 1.0
