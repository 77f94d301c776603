from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import average_precision_score, roc_auc_score, top_k_accuracy_score

from headstart.evaluation.metrics import Predictions, share
from headstart.evaluation.paired import Pair


def made(count: int, n_classes: int = 4, gain: float = 1.5, seed: int = 0) -> Predictions:
    """Predictions whose labels are drawn by their own probabilities."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, gain, (count, n_classes))
    chances = softmax(logits, axis=1)
    targets = (random.random(count)[:, None] > chances.cumsum(axis=1)).sum(axis=1)
    return Predictions(targets, chances.astype(np.float32), 3)


def answers(right: np.ndarray, n_classes: int = 3) -> Predictions:
    """Of class 0 where right, else of class 1; all labels are class 0."""
    probabilities = np.full((len(right), n_classes), 0.1)
    probabilities[np.arange(len(right)), np.where(right, 0, 1)] = 1 - 0.1 * (n_classes - 1)
    return Predictions(np.zeros(len(right), int), probabilities, 2)


def test_what_is_resampled_is_the_metric_itself():
    predictions = made(300)
    for metric, value in predictions.metrics().items():
        assert predictions.of_rows(metric, np.arange(300)) == pytest.approx(value, abs=1e-6), metric
    twice = np.repeat(np.arange(50), 2)
    part = Predictions(predictions.targets[twice], predictions.probabilities[twice], 3).metrics()
    for metric, value in part.items():
        assert predictions.of_rows(metric, twice) == pytest.approx(value, abs=1e-6), metric


@pytest.mark.parametrize("metric", ["accuracy", "log_loss", "macro_f1", "top_3_accuracy"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(metric):
    truth = made(200_000, seed=1).metrics()[metric]
    covered = 0
    for seed in range(100):
        low, high = made(150, seed=100 + seed).intervals(200, 0)[metric]
        covered += low <= truth <= high
    assert 87 <= covered <= 100  # 95 expected; 87 or fewer would happen once in a thousand times


@pytest.mark.parametrize(("sharpness", "truth"), [(1.0, 0.0), (2.0, 0.16)])
def test_the_interval_of_the_calibration_error_holds_zero_as_well_as_what_is_there(sharpness, truth):
    """Of probabilities that are right as often as they say, and of the same ones sharpened."""

    def sharpened(count: int, seed: int) -> Predictions:
        drawn = made(count, seed=seed)
        return Predictions(drawn.targets, softmax(sharpness * np.log(drawn.exact), axis=1), 3)

    value = sharpened(200_000, 1).metrics()["calibration_error"]
    assert value == pytest.approx(truth, abs=0.05)
    found = [sharpened(150, 100 + seed).intervals(200, 0)["calibration_error"] for seed in range(60)]
    assert sum(low <= value <= high for low, high in found) >= 50
    assert all(low <= high for low, high in found)
    assert (sum(low == 0 for low, _ in found) > 50) is (truth == 0)


def test_those_that_are_alike_are_as_likely_among_the_first():
    """Rounded probabilities are 0 for many classes: no order of these decides."""
    targets = np.array([0, 1, 2, 9])
    probabilities = np.tile(np.r_[0.7, 0.3, np.zeros(8)], (4, 1))
    predictions = Predictions(targets, probabilities, 3)
    assert predictions.metrics()["top_3_accuracy"] == pytest.approx((1 + 1 + 1 / 8 + 1 / 8) / 4)
    assert predictions.of_rows("top_3_accuracy", np.arange(4)) == predictions.metrics()["top_3_accuracy"]
    drawn = made(300)
    assert drawn.metrics()["top_3_accuracy"] == top_k_accuracy_score(drawn.targets, drawn.exact, k=3, labels=range(4))


def test_a_class_that_is_drawn_by_no_chance_does_not_pull_the_interval_down():
    """Each of twenty classes has two images, all right but one: hardly a draw holds all of them."""
    targets = np.repeat(np.arange(20), 2)
    probabilities = np.full((40, 20), 0.01)
    probabilities[np.arange(40), targets] = 0.81
    probabilities[0, :2] = 0.01, 0.81
    low, high = Predictions(targets, probabilities, 3).intervals(300, 0)["macro_f1"]
    assert low <= Predictions(targets, probabilities, 3).metrics()["macro_f1"] <= high


def test_intervals_are_the_same_again_and_narrow_with_more_images():
    few, many = made(100), made(10_000)
    assert few.intervals(200, 3) == few.intervals(200, 3)
    for metric in few.metrics():
        widths = [high - low for low, high in (p.intervals(200, 3)[metric] for p in (few, many))]
        assert widths[1] < widths[0] / 3, metric


def test_a_perfect_answer_is_not_beyond_doubt():
    low, high = share(20, 20)
    assert 0.8 < low < 0.9
    assert high == 1
    assert answers(np.ones(20, bool)).intervals(100, 0)["accuracy"] == (low, high)


def test_classes_are_judged_one_against_the_rest():
    predictions = made(400)
    table = predictions.per_class(["a", "b", "c", "d"]).set_index("class")
    own = predictions.targets == 2
    assert table.support["c"] == own.sum()
    assert table.recall["c"] == (predictions.predicted[own] == 2).mean()
    assert table.precision["c"] == own[predictions.predicted == 2].mean()
    assert table.recall_low["c"] < table.recall["c"] < table.recall_high["c"]
    assert table.roc_auc["c"] == roc_auc_score(own, predictions.exact[:, 2])
    assert table.average_precision["c"] == average_precision_score(own, predictions.exact[:, 2])


def test_a_class_without_images_has_no_recall():
    table = answers(np.array([True, False, True])).per_class(["a", "b", "c"]).set_index("class")
    assert pd.isna(table.recall["c"])
    assert pd.isna(table.roc_auc["a"])
    assert table.support["c"] == 0


def test_the_reliability_of_honest_probabilities_is_the_diagonal():
    table = made(50_000).reliability()
    assert table.images.sum() == 50_000
    table = table[table.images > 1000]
    assert (table.confidence - table.accuracy).abs().max() < 0.03


def test_curves_run_from_end_to_end_and_stay_small():
    curves = made(5_000).curves()
    for name, points in curves.groupby("curve"):
        assert (points.x.iloc[0], points.x.iloc[-1]) == (0, 1), name
        assert points.x.is_monotonic_increasing
        assert 100 <= len(points) <= 200


def test_a_planted_difference_is_found():
    random = np.random.default_rng(0)
    base, head = random.random(500) < 0.85, random.random(500) < 0.93
    assert Pair(answers(base), answers(head)).verdict() == "better"
    assert Pair(answers(head), answers(base)).verdict() == "worse"
    row = Pair(answers(base), answers(head)).differences().set_index("metric").loc["accuracy"]
    assert 0 < row.low < row.difference < row.high
    assert row.difference == pytest.approx(head.mean() - base.mean())


def test_no_difference_is_rarely_called_one():
    random = np.random.default_rng(0)
    found = [Pair(answers(random.random(200) < 0.9), answers(random.random(200) < 0.9)).verdict() for _ in range(300)]
    assert found.count("no evidence") >= 280  # the exact test errs in at most one of twenty; 20 in 300 by chance


def test_a_tiny_difference_takes_many_images():
    for count, verdict in ((400, "no evidence"), (4_000, "better")):
        base, head = np.ones(count, bool), np.ones(count, bool)
        base[: count * 8 // 1000] = False  # 0.8 points are lost
        head[-count * 2 // 1000 :] = False  # and 0.2 others won
        assert Pair(answers(base), answers(head)).verdict() == verdict


def test_pairs_tell_more_than_two_intervals():
    """Both are right nearly always: what counts are the images on which they differ."""
    right = np.random.default_rng(0).random(300) < 0.8
    better = right.copy()
    better[np.flatnonzero(~right)[:10]] = True
    base, head = answers(right), answers(better)
    assert head.intervals(200, 0)["accuracy"][0] < base.metrics()["accuracy"]
    assert Pair(base, head).verdict() == "better"
    assert (Pair(base, head).mended, Pair(base, head).broken) == (10, 0)


def test_the_class_that_moved_most_comes_first():
    targets = np.repeat([0, 1, 2], 20)
    base = np.eye(3)[targets] * 0.8 + 0.1
    head = base.copy()
    head[20:26] = [0.8, 0.1, 0.1]  # six of class 1 are lost
    head[40:42] = [0.8, 0.1, 0.1]  # two of class 2
    table = Pair(Predictions(targets, base, 2), Predictions(targets, head, 2)).classes(["a", "b", "c"])
    assert list(table["class"]) == ["b", "c"]
    assert list(table.broken) == [6, 2]
    assert table.p[0] == pytest.approx(2 * 0.5**6)
