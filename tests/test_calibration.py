from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from headstart.training import calibration, networks


def draw(count: int = 20_000, n_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, and targets drawn from their probabilities."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (count, n_classes))
    chances = softmax(logits, axis=1).cumsum(axis=1)
    return logits, (random.random(count)[:, None] > chances).sum(axis=1).astype(np.int32)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(scale):
    logits, targets = draw()
    assert calibration.fit_temperature(logits * scale, targets) == pytest.approx(scale, rel=0.03)


def test_the_temperature_has_the_lowest_loss_however_large_the_logits_are():
    logits, targets = draw(500)
    shifted = logits.astype(np.float32) + np.float32(10_000)
    best = calibration.fit_temperature(shifted, targets)
    losses = [
        calibration.log_loss(shifted / temperature, targets).mean() for temperature in (0.9 * best, best, 1.1 * best)
    ]
    assert min(losses) == losses[1]


def test_a_split_without_mistakes_does_not_get_complete_confidence():
    """One of N + 2 labels is taken to be wrong, so that 98 correct answers give a confidence of 99 %."""
    logits = 4 * np.eye(2, dtype=np.float32)[[0, 1] * 49]
    found = calibration.fit_temperature(logits, np.array([0, 1] * 49))
    assert softmax(logits / found, axis=1).max(axis=1) == pytest.approx(0.99, abs=0.001)


def test_the_brier_score_is_the_squared_distance_from_the_target():
    logits = np.float32([[50, 0, 0, 0], [50, 0, 0, 0], [0, 0, 0, 0], [np.log(3), 0, -50, -50]])
    assert calibration.brier_score(logits, np.array([0, 1, 2, 0])) == pytest.approx([0, 2, 0.75, 0.125])


def test_the_calibration_error_is_that_of_the_confidence():
    logits, targets = draw()
    assert calibration.calibration_error(softmax(logits, axis=1), targets) < 0.02
    sure = np.zeros((4, 2))
    sure[:, 0] = 1
    assert calibration.calibration_error(sure, np.array([0, 0, 0, 1])) == pytest.approx(0.25)
    half = np.array([[0.6, 0.4]] * 5 + [[0.95, 0.05]] * 5)
    # With a confidence of 60 % all are correct, with 95 % four of five: (0.4 + 0.15) / 2.
    assert calibration.calibration_error(half, np.array([0] * 9 + [1])) == pytest.approx(0.275)


def test_a_temperature_is_part_of_the_weights_and_changes_no_prediction():
    logits, targets = draw(2000)
    head = networks.build_head(5, 5, [])
    head.set_weights([np.eye(5, dtype=np.float32) * 4, np.zeros(5, np.float32)])
    features = logits.astype(np.float32)
    before = np.asarray(head(features))
    found = calibration.fit_temperature(4 * features, targets)
    networks.divide_logits(head, found)
    after = np.asarray(head(features))
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert after == pytest.approx(softmax(4 * features / found, axis=1), abs=1e-5)
    assert calibration.calibration_error(after, targets) < 0.05 < calibration.calibration_error(before, targets)


def test_metrics_of_logits():
    found = calibration.val_metrics(np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([0, 1]))
    assert found["val_accuracy"] == 0.5
    assert found["val_loss"] == pytest.approx(np.log(1 + np.exp(-2)) / 2 + np.log(1 + np.exp(2)) / 2)
