"""How far a classifier's probabilities can be trusted, and temperature scaling, which makes them trustworthy.

Sources: Guo et al., On Calibration of Modern Neural Networks (https://arxiv.org/abs/1706.04599); label smoothing for
small samples is that of Platt, Probabilistic Outputs for Support Vector Machines, 1999, section 2.2.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

BINS = 15  # as in the paper
TEMPERATURES = (0.25, 20.0)
BLOCK = 2**18  # logits that are worked on at once


def log_loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return (N,) float64: the cross-entropy of each row of (N, n_classes) logits against (N,) int targets."""
    losses = []
    for rows in row_blocks(logits):
        log_probabilities = log_softmax(logits[rows].astype(np.float64), axis=1)
        losses.append(-log_probabilities[np.arange(len(log_probabilities)), targets[rows]])
    return np.concatenate(losses)


def brier_score(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return (N,) float64 in [0, 2]: the squared distance of each row's probabilities from the one-hot target.

    Source: Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    scores = []
    for rows in row_blocks(logits):
        errors = softmax(logits[rows].astype(np.float64), axis=1)
        errors[np.arange(len(errors)), targets[rows]] -= 1
        scores.append((errors**2).sum(axis=1))
    return np.concatenate(scores)


def row_blocks(logits: np.ndarray) -> list[slice]:
    """Return all rows of (N, n_classes) logits in blocks that fit into a processor's cache, which is far faster."""
    size = max(1, BLOCK // logits.shape[1])
    return [slice(start, start + size) for start in range(0, max(1, len(logits)), size)]


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the T in TEMPERATURES for which logits / T have the lowest log loss on (N,) int targets.

    The targets are smoothed: the most probable other class has a share of 1 / (N + 2). Without that, logits that
    classify all examples correctly would get a temperature of zero and complete confidence.
    """
    rows, smoothing = np.arange(len(targets)), 1 / (len(targets) + 2)
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)  # so that no exponential overflows
    correct = shifted[rows, targets]
    shifted[rows, targets] = -np.inf
    runner_up = shifted.max(axis=1)
    shifted[rows, targets] = correct
    expected = (1 - smoothing) * correct + smoothing * runner_up  # the logit of the smoothed target
    blocks = [shifted[block] for block in row_blocks(shifted)]

    def smoothed_loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        normalizers = np.concatenate([np.log(np.exp(block * scale).sum(axis=1)) for block in blocks])
        return float((normalizers - expected * scale).mean())

    best = minimize_scalar(smoothed_loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(best.x))


def calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Return the expected calibration error in [0, 1] of (N, n_classes) probabilities against (N,) int targets."""
    return expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error in [0, 1] of (N,) confidences and (N,) bool, whether they were correct.

    It is the mean distance between confidence and accuracy over BINS bins of equal width, weighted by their size. With
    few examples it is above zero by chance alone.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, correct - confidence, BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def val_metrics(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return accuracy, log loss and calibration error of (N, n_classes) logits against (N,) int targets of val."""
    return {
        "val_accuracy": float((logits.argmax(axis=1) == targets).mean()),
        "val_loss": float(log_loss(logits, targets).mean()),
        "val_calibration_error": calibration_error(softmax(logits, axis=1), targets),
    }
