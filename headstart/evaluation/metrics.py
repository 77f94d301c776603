"""How good predictions are: metrics with 95 % intervals, figures of each class, and curves.

Accuracy, top-k accuracy and recall have Wilson's interval, which also holds if nothing is wrong; the other metrics have
the percentile interval of a seeded bootstrap over the examples. The latter is too narrow for macro F1 if classes have
only a handful of examples each: what a class could have been is not among so few. That of the calibration error is
corrected, see `Predictions.intervals`.

Memory beyond the probabilities themselves is bounded: thousands of classes are worked on in blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import precision_recall_fscore_support

from headstart.training.calibration import BINS, expected_calibration_error

LEVEL = 0.95  # of intervals
POINTS = 198  # of a curve, beside its ends
INDICES_AT_ONCE = 5_000_000  # of resampled examples: 40 MB
BLOCK_CELLS = 2_000_000  # examples x classes that are worked on at once
CURVE_CELLS = 50_000_000  # examples x classes that a curve is made of; of more, a random part of the examples


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's interval of the proportion hits / count, within [0, 1]."""
    interval = binomtest(int(hits), int(count)).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], count: int, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the percentile interval of `statistic`, a function of row numbers, over `count` resampled examples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if all resamples are equal, the interval is that one value
        interval = bootstrap(
            (np.arange(count),),
            statistic,
            vectorized=False,
            n_resamples=resamples,
            batch=max(1, INDICES_AT_ONCE // count),
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Predictions:
    """Predicted probabilities and the true classes.

    Attributes:
        targets: (N,) int, N >= 2.
        probabilities: (N, n_classes), n_classes >= 2; each row sums to 1.
        top_k: a label among the k most probable classes counts as correct; reported if there are more than k classes.
        other: whether the last column stands for everything that is none of the classes: macro F1 leaves it out.
        answers: (N,) int, the predicted classes; None: the most probable ones. Rounded probabilities can be equal.
    """

    targets: np.ndarray
    probabilities: np.ndarray
    top_k: int
    other: bool = False
    answers: np.ndarray | None = None

    @cached_property
    def predicted(self) -> np.ndarray:
        """(N,) int: the predicted classes."""
        return self.probabilities.argmax(axis=1) if self.answers is None else self.answers

    @cached_property
    def correct(self) -> np.ndarray:
        """(N,) bool: whether the predicted class is the true one."""
        return self.predicted == self.targets

    @cached_property
    def confidence(self) -> np.ndarray:
        """(N,) float64: the highest probability."""
        return self.probabilities.max(axis=1) / self._sums

    @property
    def n_classes(self) -> int:
        return self.probabilities.shape[1]

    @property
    def _top_k_accuracy(self) -> str:
        return f"top_{self.top_k}_accuracy"

    @cached_property
    def _sums(self) -> np.ndarray:
        """(N,) float64: the sums of the rows, which differ from 1 by 1e-7 in float32."""
        return self.probabilities.sum(axis=1, dtype=np.float64)

    @cached_property
    def _target_scores(self) -> np.ndarray:
        """(N,): the probability of the true class, as it stands in `probabilities`."""
        return self.probabilities[np.arange(len(self.targets)), self.targets]

    @cached_property
    def _per_example(self) -> dict[str, np.ndarray]:
        """(N,) float64 for each metric that is a mean over examples."""
        higher, equal = np.empty(len(self.targets)), np.empty(len(self.targets))
        for rows in _blocks(len(self.targets), self.n_classes):
            own = self._target_scores[rows, None]
            higher[rows] = (self.probabilities[rows] > own).sum(axis=1)
            equal[rows] = (self.probabilities[rows] == own).sum(axis=1)  # the true class is among them
        return {
            "accuracy": self.correct.astype(np.float64),
            "log_loss": -np.log(np.maximum(self._target_scores / self._sums, np.finfo(np.float64).eps)),
            # Rounded probabilities can be equal: then each class is as likely to be among the k.
            self._top_k_accuracy: np.clip((self.top_k - higher) / equal, 0, 1),
        }

    def metrics(self) -> dict[str, float]:
        """Return accuracy, macro F1 (of the classes that occur), log loss, calibration error and top-k accuracy."""
        names = ["accuracy", "macro_f1", "log_loss", "calibration_error"]
        names += [self._top_k_accuracy] if self.n_classes > self.top_k else []
        everything = np.arange(len(self.targets))
        return {name: self.metric_of(name, everything) for name in names}

    def metric_of(self, name: str, rows: np.ndarray) -> float:
        """Return one of `metrics` on the examples `rows` alone, which may repeat; fast, for resampling."""
        if name == "macro_f1":
            targets, predicted = self.targets[rows], self.predicted[rows]
            hits = np.bincount(targets[targets == predicted], minlength=self.n_classes)
            both = np.bincount(targets, minlength=self.n_classes) + np.bincount(predicted, minlength=self.n_classes)
            occurs = both > 0  # a class that is not among the rows says nothing about them
            occurs[self.n_classes - self.other :] = False
            return float((2 * hits[occurs] / both[occurs]).mean()) if occurs.any() else 0.0
        if name == "calibration_error":
            return expected_calibration_error(self.confidence[rows], self.correct[rows])
        return float(self._per_example[name][rows].mean())

    def intervals(self, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        """Return low and high of each of `metrics`.

        Resampled examples deviate more from their confidence than the examples do, so that the bootstrap's interval of
        the calibration error lies too high. Its lower end is mirrored at the value, and is 0 if a calibrated network
        would have as large an error by chance.
        """
        count, intervals = len(self.targets), {}
        for name, value in self.metrics().items():
            if name in ("accuracy", self._top_k_accuracy):
                intervals[name] = wilson_interval(round(value * count), count)
            else:
                intervals[name] = bootstrap_interval(partial(self.metric_of, name), count, resamples, seed)
        random, (low, high) = np.random.default_rng(seed), intervals["calibration_error"]
        errors = [
            expected_calibration_error(self.confidence, random.random(count) < self.confidence)
            for _ in range(resamples)
        ]
        error = expected_calibration_error(self.confidence, self.correct)
        by_chance = error <= np.quantile(errors, LEVEL)
        intervals["calibration_error"] = (0.0 if by_chance else max(0.0, min(low, 2 * error - high)), high)
        return intervals

    def summary(self, classes: list[str], resamples: int, seed: int) -> dict[str, Any]:
        """Return `metrics` with their intervals and `per_class`, as JSON can hold them; null for missing values."""
        intervals = self.intervals(resamples, seed)
        metrics = {
            name: {"value": value, "low": intervals[name][0], "high": intervals[name][1]}
            for name, value in self.metrics().items()
        }
        rows = self.per_class(classes).astype(object)
        return {"metrics": metrics, "classes": rows.where(rows.notna(), None).to_dict("records")}

    def per_class(self, classes: list[str]) -> pd.DataFrame:
        """Return a row per class: class, precision, recall, recall_low, recall_high, f1, support, average_precision,
        roc_auc. Values that a class without examples has none for are missing.
        """
        precision, recall, f1, support = precision_recall_fscore_support(
            self.targets, self.predicted, labels=np.arange(self.n_classes), zero_division=0
        )
        hits = np.bincount(self.targets[self.correct], minlength=self.n_classes)
        pairs = zip(hits, support, strict=True)
        low, high = np.array([wilson_interval(*pair) if pair[1] else (np.nan, np.nan) for pair in pairs]).T
        average_precision, roc_auc = self._ranking()
        return pd.DataFrame(
            {"class": classes, "precision": precision, "recall": np.where(support > 0, recall, np.nan),
             "recall_low": low, "recall_high": high, "f1": f1, "support": support,
             "average_precision": average_precision, "roc_auc": roc_auc}
        )  # fmt: skip

    def _ranking(self) -> tuple[np.ndarray, np.ndarray]:
        """(n_classes,) each: average precision and area under the ROC curve of each class against the others.

        Equal to scikit-learn's, class by class, which take minutes for thousands of classes. NaN for a class without
        examples, or without others.
        """
        count, order = len(self.targets), np.argsort(self.targets, kind="stable")
        starts = np.searchsorted(self.targets[order], np.arange(self.n_classes + 1))
        average_precision, roc_auc = np.full((2, self.n_classes), np.nan)
        for block in _blocks(self.n_classes, count):
            for label, scores in enumerate(np.sort(self.probabilities[:, block].T, axis=1), block.start):
                own = np.sort(self._target_scores[order[starts[label] : starts[label + 1]]])
                if not 0 < len(own) < count:
                    continue
                below, up_to = (np.searchsorted(scores, own, side) for side in ("left", "right"))
                own_below, own_up_to = (np.searchsorted(own, own, side) for side in ("left", "right"))
                average_precision[label] = ((len(own) - own_below) / (count - below)).mean()
                others_below = (below - own_below + up_to - own_up_to) / 2  # equal ones count half
                roc_auc[label] = others_below.mean() / (count - len(own))
        return average_precision, roc_auc

    def reliability(self) -> pd.DataFrame:
        """Return a row per bin of confidence that has examples: confidence, accuracy (means), low, high, examples."""
        bins = np.minimum((self.confidence * BINS).astype(int), BINS - 1)
        rows = []
        for inside in (bins == number for number in np.unique(bins)):
            interval = wilson_interval(self.correct[inside].sum(), inside.sum())
            rows.append((self.confidence[inside].mean(), self.correct[inside].mean(), *interval, int(inside.sum())))
        return pd.DataFrame(rows, columns=["confidence", "accuracy", "low", "high", "examples"])

    def curves(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the micro-averaged curves over all pairs of example and class, at thresholds evenly spaced in recall.

        Returns:
            The precision-recall curve: recall, precision; and the ROC curve: false_positive_rate, true_positive_rate.
        """
        rows = np.arange(len(self.targets))
        if len(rows) * self.n_classes > CURVE_CELLS:
            rows = np.random.default_rng(0).choice(rows, max(1, CURVE_CELLS // self.n_classes), replace=False)
        own, scores = np.sort(self._target_scores[rows]), np.sort(self.probabilities[rows], axis=None)
        at = np.linspace(len(own) - 1, 0, min(POINTS, len(own))).round().astype(int)
        thresholds = own[at]
        hits = len(own) - np.searchsorted(own, thresholds)
        claims = len(scores) - np.searchsorted(scores, thresholds)
        recall, false_alarms = hits / len(own), (claims - hits) / (len(scores) - len(own))
        precision_recall = {"recall": [0.0, *recall], "precision": [1.0, *(hits / claims)]}
        roc = {"false_positive_rate": [0.0, *false_alarms, 1.0], "true_positive_rate": [0.0, *recall, 1.0]}
        return pd.DataFrame(precision_recall), pd.DataFrame(roc)


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Parts of range(count), each of at most BLOCK_CELLS cells if a row has `width` of them."""
    step = max(1, BLOCK_CELLS // width)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
