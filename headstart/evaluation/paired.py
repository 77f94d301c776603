"""Whether one classifier is better than another, by what both predict for the same examples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from headstart.evaluation.metrics import LEVEL, Predictions, bootstrap_interval

NO_EVIDENCE = "no evidence"  # of a difference


@dataclass(frozen=True)
class PairedPredictions:
    """Two classifiers' predictions for the same examples, in the same order; `head` is judged against `base`."""

    base: Predictions
    head: Predictions

    @cached_property
    def fixed(self) -> int:
        """How many examples only head classifies correctly."""
        return int((~self.base.correct & self.head.correct).sum())

    @cached_property
    def regressed(self) -> int:
        """How many examples only base classifies correctly."""
        return int((self.base.correct & ~self.head.correct).sum())

    def p_value(self) -> float:
        """Return the p-value of McNemar's exact test, two-sided: whether both have the same accuracy."""
        return _mcnemar(self.fixed, self.regressed)

    def verdict(self) -> str:
        """Return `better` or `worse`, by accuracy and McNemar's test at 5 %, else NO_EVIDENCE."""
        if self.p_value() > 1 - LEVEL:
            return NO_EVIDENCE
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
        base, head, rows = self.base.metrics(), self.head.metrics(), []
        for metric in [name for name in base if name in head]:

            def difference(rows: np.ndarray, metric: str = metric) -> float:
                return self.head.metric_of(metric, rows) - self.base.metric_of(metric, rows)

            low, high = bootstrap_interval(difference, len(self.base.targets), resamples, seed)
            rows.append((metric, base[metric], head[metric], head[metric] - base[metric], low, high))
        return pd.DataFrame(rows, columns=["metric", "base", "head", "difference", "low", "high"])

    def per_class(self, classes: list[str]) -> pd.DataFrame:
        """Return a row per class that changed, the largest change first.

        Columns: class, examples, base, head (recalls), fixed, regressed, p.
        """
        answers = pd.DataFrame({"base": self.base.correct, "head": self.head.correct})
        answers = answers.assign(fixed=answers["head"] > answers.base, regressed=answers["head"] < answers.base)
        groups = answers.groupby(self.base.targets)
        table = groups[["base", "head"]].mean().join(groups[["fixed", "regressed"]].sum())
        table = table.assign(**{"class": np.array(classes)[table.index], "examples": groups.size()})
        table = table[table.fixed + table.regressed > 0]
        table["p"] = [_mcnemar(row.fixed, row.regressed) for row in table.itertuples()]
        order = np.argsort(-abs(table.fixed - table.regressed), kind="stable")
        return table.iloc[order][["class", "examples", "base", "head", "fixed", "regressed", "p"]].reset_index(
            drop=True
        )


def _mcnemar(fixed: int, regressed: int) -> float:
    return float(binomtest(int(fixed), int(fixed + regressed)).pvalue) if fixed + regressed else 1.0
