from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    auc,
    average_precision_score,
    f1_score,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from headstart.evaluation.metrics import Predictions, wilson_interval
from headstart.evaluation.paired import PairedPredictions


def draw_predictions(count: int, n_classes: int = 4, gain: float = 1.5, seed: int = 0) -> Predictions:
    """Predictions whose labels are drawn by their own probabilities."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, gain, (count, n_classes))
    chances = softmax(logits, axis=1)
    targets = (random.random(count)[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    return Predictions(targets, chances.astype(np.float32), 3)


def answer(right: np.ndarray, n_classes: int = 3) -> Predictions:
    """Of class 0 where right, else of class 1; all labels are class 0."""
    probabilities = np.full((len(right), n_classes), 0.1)
    probabilities[np.arange(len(right)), np.where(right, 0, 1)] = 1 - 0.1 * (n_classes - 1)
    return Predictions(np.zeros(len(right), int), probabilities, 2)


def test_resampling_all_examples_gives_the_metric():
    predictions = draw_predictions(300)
    for metric, value in predictions.metrics().items():
        assert predictions.metric_of(metric, np.arange(300)) == pytest.approx(value, abs=1e-6), metric
    twice = np.repeat(np.arange(50), 2)
    part = Predictions(predictions.targets[twice], predictions.probabilities[twice], 3).metrics()
    for metric, value in part.items():
        assert predictions.metric_of(metric, twice) == pytest.approx(value, abs=1e-6), metric


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "macro_f1", "top_3_accuracy"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(metric):
    truth = draw_predictions(200_000, seed=1).metrics()[metric]
    covered = 0
    for seed in range(100):
        low, high = draw_predictions(150, seed=100 + seed).intervals(200, 0)[metric]
        covered += low <= truth <= high
    assert 87 <= covered <= 100  # 95 expected; 87 or fewer would happen once in a thousand times


@pytest.mark.parametrize(("sharpness", "truth"), [(1.0, 0.0), (2.0, 0.16)])
def test_the_interval_of_the_calibration_error_covers_the_truth(sharpness, truth):
    """Of probabilities that are right as often as they say, and of the same ones sharpened."""

    def sharpened(count: int, seed: int) -> Predictions:
        drawn = draw_predictions(count, seed=seed)
        return Predictions(drawn.targets, softmax(sharpness * np.log(drawn.probabilities), axis=1), 3)

    value = sharpened(200_000, 1).metrics()["calibration_error"]
    assert value == pytest.approx(truth, abs=0.05)
    found = [sharpened(150, 100 + seed).intervals(200, 0)["calibration_error"] for seed in range(60)]
    assert sum(low <= value <= high for low, high in found) >= 50
    assert all(low <= high for low, high in found)
    assert (sum(low == 0 for low, _ in found) > 50) is (truth == 0)


def test_equal_probabilities_share_the_top_k():
    """Rounded probabilities are 0 for many classes: no order of these decides."""
    targets = np.array([0, 1, 2, 9])
    probabilities = np.tile(np.r_[0.7, 0.3, np.zeros(8)], (4, 1))
    predictions = Predictions(targets, probabilities, 3)
    assert predictions.metrics()["top_3_accuracy"] == pytest.approx((1 + 1 + 1 / 8 + 1 / 8) / 4)
    assert predictions.metric_of("top_3_accuracy", np.arange(4)) == predictions.metrics()["top_3_accuracy"]
    drawn = draw_predictions(300)
    assert drawn.metrics()["top_3_accuracy"] == top_k_accuracy_score(
        drawn.targets, drawn.probabilities, k=3, labels=range(4)
    )


def test_classes_that_a_resample_misses_do_not_lower_macro_f1():
    """Each of twenty classes has two images, all right but one: hardly a draw holds all of them."""
    targets = np.repeat(np.arange(20), 2)
    probabilities = np.full((40, 20), 0.01)
    probabilities[np.arange(40), targets] = 0.81
    probabilities[0, :2] = 0.01, 0.81
    low, high = Predictions(targets, probabilities, 3).intervals(300, 0)["macro_f1"]
    assert low <= Predictions(targets, probabilities, 3).metrics()["macro_f1"] <= high


def test_intervals_are_repeatable_and_narrow_with_more_examples():
    few, many = draw_predictions(100), draw_predictions(10_000)
    assert few.intervals(200, 3) == few.intervals(200, 3)
    for metric in few.metrics():
        widths = [high - low for low, high in (p.intervals(200, 3)[metric] for p in (few, many))]
        assert widths[1] < widths[0] / 3, metric


def test_perfect_accuracy_still_has_an_interval():
    low, high = wilson_interval(20, 20)
    assert 0.8 < low < 0.9
    assert high == 1
    assert answer(np.ones(20, bool)).intervals(100, 0)["accuracy"] == (low, high)


@pytest.mark.parametrize("decimals", [7, 1])  # rounded to one, many probabilities are equal
def test_figures_of_each_class_are_those_of_scikit_learn(decimals):
    drawn = draw_predictions(400)
    scores = drawn.probabilities.round(decimals)
    predictions = Predictions(drawn.targets, scores, 3)
    table = predictions.per_class(["a", "b", "c", "d"]).set_index("class")
    for label, row in enumerate(table.itertuples()):
        own = predictions.targets == label
        assert row.support == own.sum()
        assert row.recall == pytest.approx((predictions.predicted[own] == label).mean())
        assert row.precision == pytest.approx(own[predictions.predicted == label].mean())
        assert row.recall_low < row.recall < row.recall_high
        assert row.roc_auc == pytest.approx(roc_auc_score(own, scores[:, label]))
        assert row.average_precision == pytest.approx(average_precision_score(own, scores[:, label]))
    metrics = predictions.metrics()
    assert metrics["accuracy"] == accuracy_score(predictions.targets, predictions.predicted)
    assert metrics["macro_f1"] == pytest.approx(f1_score(predictions.targets, predictions.predicted, average="macro"))
    exact = scores / scores.sum(axis=1, keepdims=True, dtype=float)
    assert metrics["log_loss"] == pytest.approx(log_loss(predictions.targets, exact))


def test_a_class_without_examples_has_no_recall():
    table = answer(np.array([True, False, True])).per_class(["a", "b", "c"]).set_index("class")
    assert pd.isna(table.recall["c"])
    assert pd.isna(table.roc_auc["a"])
    assert table.support["c"] == 0


def test_calibrated_probabilities_lie_on_the_diagonal():
    table = draw_predictions(50_000).reliability()
    assert table.examples.sum() == 50_000
    table = table[table.examples > 1000]
    assert (table.confidence - table.accuracy).abs().max() < 0.03


def test_curves_are_those_of_scikit_learn():
    predictions = draw_predictions(5_000)
    truth = (predictions.targets[:, None] == np.arange(4)).ravel()
    scores = predictions.probabilities.ravel()
    precision_recall, roc = (table.to_numpy() for table in predictions.curves())
    for points, area in ((precision_recall, average_precision_score), (roc, roc_auc_score)):
        assert (points[0, 0], points[-1, 0]) == (0, 1)
        assert (np.diff(points[:, 0]) >= 0).all()
        assert 100 <= len(points) <= 200
        assert auc(points[:, 0], points[:, 1]) == pytest.approx(area(truth, scores), abs=0.003)


def test_thousands_of_classes_take_no_more_memory_than_their_probabilities():
    targets = np.repeat(np.arange(1_000), 3)
    probabilities = np.random.default_rng(0).random((len(targets), 1_000), np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predictions = Predictions(targets, probabilities, 3)
    tracemalloc.start()
    table = predictions.summary([f"class {number}" for number in range(1_000)], 100, 0)["classes"]
    predictions.curves()
    assert tracemalloc.get_traced_memory()[1] < 2.5 * probabilities.nbytes  # curves sort a copy of all of them
    tracemalloc.stop()
    assert len(table) == 1_000


def test_a_planted_difference_is_found():
    random = np.random.default_rng(0)
    base, head = random.random(500) < 0.85, random.random(500) < 0.93
    assert PairedPredictions(answer(base), answer(head)).verdict() == "better"
    assert PairedPredictions(answer(head), answer(base)).verdict() == "worse"
    row = PairedPredictions(answer(base), answer(head)).differences(500, 0).set_index("metric").loc["accuracy"]
    assert 0 < row.low < row.difference < row.high
    assert row.difference == pytest.approx(head.mean() - base.mean())


def test_false_alarms_are_rare():
    random = np.random.default_rng(0)
    found = [
        PairedPredictions(answer(random.random(200) < 0.9), answer(random.random(200) < 0.9)).verdict()
        for _ in range(300)
    ]
    assert found.count("no evidence") >= 280  # the exact test errs in at most one of twenty; 20 in 300 by chance


def test_a_tiny_difference_takes_many_examples():
    for count, verdict in ((400, "no evidence"), (4_000, "better")):
        base, head = np.ones(count, bool), np.ones(count, bool)
        base[: count * 8 // 1000] = False  # 0.8 points are lost
        head[-count * 2 // 1000 :] = False  # and 0.2 others won
        assert PairedPredictions(answer(base), answer(head)).verdict() == verdict


def test_pairing_detects_what_two_intervals_cannot():
    """Both are right nearly always: what counts are the images on which they differ."""
    right = np.random.default_rng(0).random(300) < 0.8
    better = right.copy()
    better[np.flatnonzero(~right)[:10]] = True
    base, head = answer(right), answer(better)
    assert head.intervals(200, 0)["accuracy"][0] < base.metrics()["accuracy"]
    assert PairedPredictions(base, head).verdict() == "better"
    assert (PairedPredictions(base, head).fixed, PairedPredictions(base, head).regressed) == (10, 0)


def test_the_class_that_changed_most_comes_first():
    targets = np.repeat([0, 1, 2], 20)
    base = np.eye(3)[targets] * 0.8 + 0.1
    head = base.copy()
    head[20:26] = [0.8, 0.1, 0.1]  # six of class 1 are lost
    head[40:42] = [0.8, 0.1, 0.1]  # two of class 2
    table = PairedPredictions(Predictions(targets, base, 2), Predictions(targets, head, 2)).per_class(["a", "b", "c"])
    assert list(table["class"]) == ["b", "c"]
    assert list(table.regressed) == [6, 2]
    assert table.p[0] == pytest.approx(2 * 0.5**6)
