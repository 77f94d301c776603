"""How far a classifier's probabilities can be believed, and how to make them so: temperature scaling.

Sources: Guo et al., On Calibration of Modern Neural Networks (https://arxiv.org/abs/1706.04599); the doubt that few
images leave is that of Platt, Probabilistic Outputs for Support Vector Machines, 1999, section 2.2.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15  # as in the paper
TEMPERATURES = (0.25, 20.0)


def log_loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) float64: the cross-entropy of each row of (N, n_classes) logits against (N,) int targets."""
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(targets)), targets]


def brier_score(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) float64 in [0, 2]: the squared distance of each row's probabilities from what is right.

    Source: Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    found = softmax(logits.astype(np.float64), axis=1)
    found[np.arange(len(targets)), targets] -= 1
    return (found**2).sum(axis=1)


def temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The T in TEMPERATURES by which logits / T have the lowest log loss on (N,) int targets, doubted a little.

    Each label is taken for the most probable other class by 1 / (N + 2): images without a mistake would ask for a
    temperature of zero, and be believed without end.
    """
    rows = np.arange(len(targets))
    others = np.array(logits, np.float64)
    others[rows, targets] = -np.inf
    runner_up, doubt = others.argmax(axis=1), 1 / (len(targets) + 2)

    def doubtful(t: float) -> float:
        scaled = logits / np.exp(t)
        return float(((1 - doubt) * log_loss(scaled, targets) + doubt * log_loss(scaled, runner_up)).mean())

    found = minimize_scalar(doubtful, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


def calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """The expected calibration error in [0, 1] of (N, n_classes) probabilities against (N,) int targets."""
    return error_of(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets)


def error_of(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error in [0, 1] of (N,) confidences and (N,) bool, whether the answers are right.

    The mean distance of confidence and accuracy over BINS bins of equal width, weighted by their images. Few images
    have one above zero by chance alone.
    """
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(places, right - confidence, BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def metrics(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Of (N, n_classes) logits against (N,) int targets of val: accuracy, log loss and calibration error."""
    return {
        "val_accuracy": float((logits.argmax(axis=1) == targets).mean()),
        "val_loss": float(log_loss(logits, targets).mean()),
        "val_calibration_error": calibration_error(softmax(logits, axis=1), targets),
    }
