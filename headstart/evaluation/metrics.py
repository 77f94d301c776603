"""What predictions are worth: metrics with 95 % intervals, class by class, and the curves behind them.

Shares of images (accuracy, top-k, recall) have Wilson's interval, which also holds where nothing is wrong; the other
metrics that of a seeded bootstrap over the images. It is too narrow for macro F1 where classes have a handful of images
each: what a class could have been is not among so few. That of the calibration error is mended: see `intervals`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    log_loss,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from headstart.training.calibration import BINS, error_of

LEVEL = 0.95  # of intervals
POINTS = 200  # of a curve
DRAWN_AT_ONCE = 5_000_000  # row numbers: 40 MB
CURVE_CELLS = 20_000_000  # images x classes that a curve is made of; of more, as many images by chance


def share(hits: int, count: int) -> tuple[float, float]:
    """Wilson's interval of hits / count, within [0, 1]."""
    interval = binomtest(int(hits), int(count)).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Predictions:
    """Probabilities against the truth.

    Attributes:
        targets: (N,) int, N >= 2.
        probabilities: (N, n_classes), n_classes >= 2; each row sums to 1.
        top_k: a label among the k most probable counts; told where there are more than k classes.
        rest: whether the last column stands for all that is none of the classes: macro F1 leaves it out.
        answers: (N,) int, the class that was named, where it is known; else the most probable one was.
    """

    targets: np.ndarray
    probabilities: np.ndarray
    top_k: int
    rest: bool = False
    answers: np.ndarray | None = None

    @cached_property
    def exact(self) -> np.ndarray:
        """The probabilities in float64: in float32 a row's sum strays from 1 by 1e-7."""
        values = self.probabilities.astype(np.float64)
        return values / values.sum(axis=1, keepdims=True)

    @cached_property
    def predicted(self) -> np.ndarray:
        """(N,) int: the class that was named."""
        return self.probabilities.argmax(axis=1) if self.answers is None else self.answers

    @property
    def n_classes(self) -> int:
        return self.probabilities.shape[1]

    @property
    def _n_averaged(self) -> int:
        return self.n_classes - self.rest

    def metrics(self) -> dict[str, float]:
        """Accuracy, macro F1 (of the classes that occur), log loss, calibration error and top-k accuracy."""
        labels = np.arange(self.n_classes)
        found = {
            "accuracy": accuracy_score(self.targets, self.predicted),
            "macro_f1": f1_score(
                self.targets,
                self.predicted,
                labels=[label for label in np.union1d(self.targets, self.predicted) if label < self._n_averaged],
                average="macro",
                zero_division=0,
            ),
            "log_loss": log_loss(self.targets, self.exact, labels=labels),
            "calibration_error": error_of(self._confidence, self._each["accuracy"]),
        }
        if self.n_classes > self.top_k:
            name = f"top_{self.top_k}_accuracy"
            found[name] = self._each[name].mean()
        return {name: float(value) for name, value in found.items()}

    def intervals(self, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        """Low and high of each of `metrics`.

        Resampled images stray more from their confidence than images do, so the bootstrap's interval of the calibration
        error lies too high. Its lower end is mirrored at the value, and is 0 where a network that is calibrated would
        have as much by chance.
        """
        count, found = len(self.targets), {}
        for name, value in self.metrics().items():
            if name == "accuracy" or name.startswith("top_"):
                found[name] = share(round(value * count), count)
            else:
                found[name] = resampled(partial(self.of_rows, name), count, resamples, seed)
        low, high = found["calibration_error"]
        value = error_of(self._confidence, self._each["accuracy"])
        by_chance = value <= self._error_by_chance(resamples, seed)
        found["calibration_error"] = (0.0 if by_chance else max(0.0, min(low, 2 * value - high)), high)
        return found

    def _error_by_chance(self, draws: int, seed: int) -> float:
        """The calibration error that 95 % of test sets stay below where answers are right as often as they are sure."""
        random, confidence = np.random.default_rng(seed), self._confidence
        errors = [error_of(confidence, random.random(len(confidence)) < confidence) for _ in range(draws)]
        return float(np.quantile(errors, LEVEL))

    @cached_property
    def _confidence(self) -> np.ndarray:
        return self.exact.max(axis=1)

    def of_rows(self, metric: str, rows: np.ndarray) -> float:
        """One of `metrics`, of the images `rows` alone, which may repeat; soon enough to be asked often."""
        if metric == "macro_f1":
            targets, predicted = self.targets[rows], self.predicted[rows]
            hits = np.bincount(targets[targets == predicted], minlength=self.n_classes)
            both = np.bincount(targets, minlength=self.n_classes) + np.bincount(predicted, minlength=self.n_classes)
            hits, both = hits[: self._n_averaged], both[: self._n_averaged]
            there = both > 0  # a class that is not among the rows says nothing about them
            return float((2 * hits[there] / both[there]).mean()) if there.any() else 0.0
        if metric == "calibration_error":
            return error_of(self._confidence[rows], self._each["accuracy"][rows])
        return float(self._each[metric][rows].mean())

    @cached_property
    def _each(self) -> dict[str, np.ndarray]:
        """What each image adds to the metrics that are means over images."""
        own = self.exact[np.arange(len(self.targets)), self.targets]
        before = (self.exact > own[:, None]).sum(axis=1)
        alike = (self.exact == own[:, None]).sum(axis=1)  # itself among them
        return {
            "accuracy": self.predicted == self.targets,
            "log_loss": -np.log(np.maximum(own, np.finfo(np.float64).eps)),
            # Of those that are alike, as rounded probabilities can be, each is as likely among the k.
            f"top_{self.top_k}_accuracy": np.clip((self.top_k - before) / alike, 0, 1),
        }

    def per_class(self, classes: list[str]) -> pd.DataFrame:
        """A row a class: class, precision, recall, recall_low, recall_high, f1, support, average_precision, roc_auc.

        What a class without images has no value for is missing.
        """
        labels = np.arange(self.n_classes)
        precision, recall, f1, support = precision_recall_fscore_support(
            self.targets, self.predicted, labels=labels, zero_division=0
        )
        rows = []
        for label in labels:
            own = self.targets == label
            row = {"class": classes[label], "precision": precision[label], "f1": f1[label], "support": support[label]}
            if own.any():
                low, high = share((own & (self.predicted == label)).sum(), own.sum())
                row |= {"recall": recall[label], "recall_low": low, "recall_high": high}
            if own.any() and not own.all():
                row["average_precision"] = average_precision_score(own, self.exact[:, label])
                row["roc_auc"] = roc_auc_score(own, self.exact[:, label])
            rows.append(row)
        columns = ["class", "precision", "recall", "recall_low", "recall_high", "f1", "support"]
        return pd.DataFrame(rows, columns=[*columns, "average_precision", "roc_auc"])

    def reliability(self) -> pd.DataFrame:
        """A row a bin of confidence that has images: confidence, accuracy (means), low, high, images."""
        confidence, right = self.exact.max(axis=1), self.predicted == self.targets
        places = np.minimum((confidence * BINS).astype(int), BINS - 1)
        rows = []
        for place in np.unique(places):
            inside = places == place
            low, high = share(right[inside].sum(), inside.sum())
            rows.append((confidence[inside].mean(), right[inside].mean(), low, high, int(inside.sum())))
        return pd.DataFrame(rows, columns=["confidence", "accuracy", "low", "high", "images"])

    def curves(self) -> pd.DataFrame:
        """Points of curves over all pairs of image and class (micro-average): curve, x, y.

        `precision_recall` has recall as x and precision as y, `roc` false and true positive rate.
        """
        rows = np.arange(len(self.targets))
        if len(rows) * self.n_classes > CURVE_CELLS:
            rows = np.random.default_rng(0).choice(rows, CURVE_CELLS // self.n_classes, replace=False)
        truth = (self.targets[rows, None] == np.arange(self.n_classes)).ravel()
        scores = self.exact[rows].ravel()
        precision, recall, _ = precision_recall_curve(truth, scores)
        false_positive, true_positive, _ = roc_curve(truth, scores)
        tables = []
        for name, x, y in (("precision_recall", recall[::-1], precision[::-1]), ("roc", false_positive, true_positive)):
            kept = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))
            tables.append(pd.DataFrame({"curve": name, "x": x[kept], "y": y[kept]}))
        return pd.concat(tables, ignore_index=True)


def resampled(statistic: Callable[[np.ndarray], float], count: int, resamples: int, seed: int) -> tuple[float, float]:
    """The interval of `statistic`, of row numbers, over `count` images drawn with replacement: the bootstrap's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where all draws are alike the interval is that one value
        found = bootstrap(
            (np.arange(count),),
            statistic,
            vectorized=False,
            n_resamples=resamples,
            batch=max(1, DRAWN_AT_ONCE // count),
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)
