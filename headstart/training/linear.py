"""Linear heads: multinomial logistic regression, trained to convergence by L-BFGS. Does not load TensorFlow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from headstart.errors import UserError
from headstart.training.calibration import row_blocks
from headstart.training.examples import FeatureSet

MAX_ITERATIONS = 1000
# It stops when no part of the gradient is larger than the first, nor than the second times the largest part at the
# start, which thousands of classes make small. Above the second alone, it has not converged.
TOLERANCE, SHARE_OF_START = 1e-5, 0.01
ROUGH = {"gtol": 1e-4, "ftol": 1e-6}  # in the place of these
SMALL_PRODUCT = 10**8  # multiplications of features and kernel for which one thread is enough

DIVERGED = "loss is NaN: training diverged; check the features for NaN and for very large values"

# Takes the kernel, the bias, and loss and accuracy on the training examples.
OnIteration = Callable[[np.ndarray, np.ndarray, float, float], None]


@dataclass(frozen=True)
class Linear:
    """A linear head: logits are features @ kernel + bias.

    Attributes:
        kernel: (feature_dim, n_classes) float64.
        bias: (n_classes,) float64.
    """

    kernel: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return the (N, n_classes) float32 logits of (N, feature_dim) features."""
        return features @ self.kernel.astype(np.float32) + self.bias.astype(np.float32)


def forward(layers: list[Linear], features: np.ndarray) -> np.ndarray:
    """Return the (N, n_classes) float32 logits of (N, feature_dim) features by layers with ReLU between them."""
    for layer in layers[:-1]:
        features = np.maximum(layer.logits(features), 0)
    return layers[-1].logits(features)


def fit(
    train_set: FeatureSet,
    weights: np.ndarray,
    decay: float,
    smoothing: float = 0.0,
    start: Linear | None = None,
    rough: bool = False,
    on_iteration: OnIteration | None = None,
) -> Linear:
    """Minimize the mean cross-entropy + decay / 2 x the squares of the kernel.

    With views, the mean is over all views of each example.

    Args:
        weights: (n_classes,) float32, of the classes.
        smoothing: of labels.
        start: from where to begin; None: from zeros.
        rough: stop early, when the loss is right to about four digits.
        on_iteration: called after each iteration.

    Raises:
        UserError: if the loss becomes NaN.
    """
    feature_dim, n_classes = train_set.dim, len(weights)
    n_kernel = feature_dim * n_classes  # the parameters are the kernel, then the bias
    views = [None, *(np.full(len(train_set), number + 1) for number in range(train_set.views.shape[1]))]
    latest = {"loss": np.nan, "accuracy": np.nan}

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        kernel = parameters[:n_kernel].reshape(feature_dim, n_classes).astype(np.float32)
        bias = parameters[n_kernel:].astype(np.float32)
        gradient, loss, correct = np.zeros(len(parameters)), 0.0, 0
        for rows in train_set.blocks(n_classes):
            targets, numbers = train_set.targets[rows], np.arange(len(train_set))[rows]
            for view in views:
                features = train_set.rows(numbers if view is not None else rows, None if view is None else view[rows])
                slope = features @ kernel + bias
                part_loss, part_correct, bias_gradient = differentiate(slope, targets, weights[targets], smoothing)
                loss, correct = loss + part_loss, correct + part_correct
                gradient[:n_kernel] += (features.T @ slope).ravel()
                gradient[n_kernel:] += bias_gradient
        count = len(train_set) * len(views)
        latest.update(loss=loss / count, accuracy=correct / count)
        penalty = decay * parameters
        penalty[n_kernel:] = 0
        return loss / count + (penalty * parameters).sum() / 2, gradient / count + penalty

    def unpack(parameters: np.ndarray) -> Linear:
        return Linear(parameters[:n_kernel].reshape(feature_dim, n_classes), parameters[n_kernel:])

    def record(parameters: np.ndarray) -> None:
        if on_iteration:
            found = unpack(parameters)
            on_iteration(found.kernel, found.bias, latest["loss"], latest["accuracy"])

    zeros = np.zeros(n_kernel + n_classes)
    begin = zeros if start is None else np.concatenate([start.kernel.ravel(), start.bias])
    # On a busy machine BLAS threads wait for each other: small matrices took them ten times as long as a single thread.
    small = len(train_set) * n_kernel < SMALL_PRODUCT
    with threadpool_limits(1 if small or rough else None, user_api="blas"):
        converged = max(SHARE_OF_START * np.abs(objective(zeros)[1]).max(), np.finfo(np.float32).eps)
        options = {"maxiter": MAX_ITERATIONS, "gtol": min(TOLERANCE, converged), "ftol": 0, "maxls": 50}
        if rough:
            options |= ROUGH
        result = minimize(objective, begin, jac=True, method="L-BFGS-B", options=options, callback=record)
    if not result.nit:  # there is no callback if the start is optimal
        record(result.x)
    # A line search may fail close to the optimum, where float32 ends; so the gradient decides.
    if not rough and (result.nit >= MAX_ITERATIONS or np.abs(result.jac).max() > converged):
        print(
            f"train_head: lbfgs has not converged after {result.nit} iterations, as with features of very different or "
            "very large scale; more weight decay helps",
            file=sys.stderr,
        )
    if not np.isfinite(latest["loss"]):
        raise UserError(DIVERGED)
    return unpack(result.x)


def differentiate(
    logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, smoothing: float
) -> tuple[float, int, np.ndarray]:
    """Overwrite logits with the gradient of the weighted sum of losses by them.

    Returns:
        The sum of the losses, how many examples are classified correctly, and the gradient by the bias.
    """
    loss, correct, bias_gradient = 0.0, 0, np.zeros(logits.shape[1])
    for rows in row_blocks(logits):
        log_probabilities = log_softmax(logits[rows].astype(np.float64), axis=1)
        at_target, weight = (np.arange(len(targets[rows])), targets[rows]), weights[rows].astype(np.float64)
        expected = (1 - smoothing) * log_probabilities[at_target] + smoothing * log_probabilities.mean(axis=1)
        loss -= (weight * expected).sum()
        correct += int((log_probabilities.argmax(axis=1) == targets[rows]).sum())
        slope = np.exp(log_probabilities) - smoothing / logits.shape[1]
        slope[at_target] -= 1 - smoothing
        slope *= weight[:, None]
        logits[rows] = slope
        bias_gradient += slope.sum(axis=0)
    return loss, correct, bias_gradient


@dataclass(frozen=True)
class Rotation:
    """Examples on their principal axes, of which there are no more than examples, for penalties that rotations keep.

    Attributes:
        coordinates: (rows, n) float32, largest variance first.
        left, right: whose product, (feature_dim, k) @ (k, n), is the basis: features @ basis are the coordinates. It is
            not multiplied out, since that takes as long as the rotation itself.
    """

    coordinates: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def basis(self, count: int) -> np.ndarray:
        """Return the first axes, (feature_dim, count)."""
        return self.left @ self.right[:, :count]

    def unrotate(self, kernel: np.ndarray) -> np.ndarray:
        """Return the (feature_dim, k) kernel that does to features what (count, k) does to the first coordinates."""
        return self.left @ (self.right[:, : len(kernel)] @ kernel.astype(np.float32))


SMALLEST_VARIANCE = 1e-6  # of the largest: directions below it are rounding


def rotate(features: np.ndarray) -> Rotation:
    """Rotate (rows, feature_dim) float32 features of mean zero onto their principal axes."""
    rows, dim = features.shape
    with threadpool_limits(1, user_api="blas"):  # several threads took twice as much of the processor in all
        gram = features @ features.T if rows <= dim else features.T @ features
        values, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    kept = np.flatnonzero(values > SMALLEST_VARIANCE * max(values[-1], np.finfo(np.float32).tiny))[::-1]
    sizes, vectors = np.sqrt(values[kept]), vectors[:, kept]
    if rows <= dim:
        return Rotation(vectors * sizes, features.T, vectors / sizes)
    return Rotation(features @ vectors, np.eye(dim, dtype=np.float32), vectors)
