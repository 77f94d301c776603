from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from headstart.training import calibration, networks


def drawn(count: int = 20_000, n_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and targets drawn by their very probabilities."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (count, n_classes))
    chances = softmax(logits, axis=1).cumsum(axis=1)
    return logits, (random.random(count)[:, None] > chances).sum(axis=1).astype(np.int32)


@pytest.mark.parametrize("planted", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(planted):
    logits, targets = drawn()
    assert calibration.temperature(logits * planted, targets) == pytest.approx(planted, rel=0.03)


def test_a_split_without_mistakes_is_not_believed_without_end():
    """As if one of N + 2 labels were another, so that 98 right answers are believed by 99 %."""
    logits = 4 * np.eye(2, dtype=np.float32)[[0, 1] * 49]
    found = calibration.temperature(logits, np.array([0, 1] * 49))
    assert softmax(logits / found, axis=1).max(axis=1) == pytest.approx(0.99, abs=0.001)


def test_the_brier_score_is_the_squared_distance_from_what_is_right():
    logits = np.float32([[50, 0, 0, 0], [50, 0, 0, 0], [0, 0, 0, 0], [np.log(3), 0, -50, -50]])
    assert calibration.brier_score(logits, np.array([0, 1, 2, 0])) == pytest.approx([0, 2, 0.75, 0.125])


def test_the_error_is_that_of_the_confidence():
    logits, targets = drawn()
    assert calibration.calibration_error(softmax(logits, axis=1), targets) < 0.02
    sure = np.zeros((4, 2))
    sure[:, 0] = 1
    assert calibration.calibration_error(sure, np.array([0, 0, 0, 1])) == pytest.approx(0.25)
    half = np.array([[0.6, 0.4]] * 5 + [[0.95, 0.05]] * 5)
    # Of 60 % sure answers all are right, of 95 % sure ones 4 of 5: (0.4 + 0.15) / 2.
    assert calibration.calibration_error(half, np.array([0] * 9 + [1])) == pytest.approx(0.275)


def test_scaling_moves_no_prediction_and_is_part_of_the_weights():
    logits, targets = drawn(2000)
    head = networks.build_head(5, 5, [])
    head.set_weights([np.eye(5, dtype=np.float32) * 4, np.zeros(5, np.float32)])
    features = logits.astype(np.float32)
    before = np.asarray(head(features))
    found = calibration.temperature(4 * features, targets)
    networks.divide_logits(head, found)
    after = np.asarray(head(features))
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert after == pytest.approx(softmax(4 * features / found, axis=1), abs=1e-5)
    assert calibration.calibration_error(after, targets) < 0.05 < calibration.calibration_error(before, targets)


def test_metrics_of_logits():
    found = calibration.metrics(np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([0, 1]))
    assert found["val_accuracy"] == 0.5
    assert found["val_loss"] == pytest.approx(np.log(1 + np.exp(-2)) / 2 + np.log(1 + np.exp(2)) / 2)
