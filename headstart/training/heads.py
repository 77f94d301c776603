"""Training heads on features: by gradient descent with early stopping, or linear ones by L-BFGS to convergence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from headstart.errors import UserError
from headstart.framework import keras, tf
from headstart.head_config import ResolvedHead
from headstart.training import networks
from headstart.training.calibration import log_loss, row_blocks
from headstart.training.examples import FeatureSet, class_weights
from headstart.training.history import History
from headstart.training.optimizers import FusedAdam

MOMENTUM = 0.9  # of sgd
MAX_ITERATIONS = 1000  # of lbfgs
# It stops when no part of the gradient is larger than the first, nor than the second times the largest part at the
# start, which thousands of classes make small. Above the second alone, it has not converged.
TOLERANCE, SHARE_OF_START = 1e-5, 0.01
SMALL_PRODUCT = 10**8  # multiplications of features and kernel for which one thread is enough

Predict = Callable[[np.ndarray], tf.Tensor]  # (n, feature_dim) features -> (n, n_classes) logits


def train(
    train_set: FeatureSet, val_set: FeatureSet, n_classes: int, settings: ResolvedHead, seed: int, progress: bool = True
) -> tuple[keras.Model, History]:
    """Train a head on the cross-entropy; return it with its curves.

    By lbfgs it is trained to convergence; otherwise the epoch with the lowest val loss is restored.

    Raises:
        UserError: if the loss is NaN from the first epoch on.
    """
    keras.utils.set_random_seed(seed)
    head = networks.build_head(
        train_set.dim, n_classes, settings.hidden, settings.activation, settings.batch_norm, settings.dropout
    )
    weights = class_weights(train_set.targets, n_classes, settings.class_weight)
    if settings.optimizer == "lbfgs":
        return head, _train_by_lbfgs(head, train_set, val_set, weights, settings)
    return head, _train_by_gradient_descent(head, train_set, val_set, weights, settings, seed, progress)


def logits(head: keras.Model, examples: FeatureSet) -> np.ndarray:
    """Return the (N, n_classes) float32 logits of the examples as they are."""
    predict = _compile_predict(head)
    return np.concatenate([predict(examples.rows(rows)).numpy() for rows in examples.blocks(head.output_shape[1])])


def _compile_predict(head: keras.Model) -> Predict:
    model = networks.without_softmax(head)
    signature = [tf.TensorSpec((None, head.input_shape[1]), tf.float32)]
    return tf.function(lambda features: model(features, training=False), input_signature=signature)


def _score(predict: Predict, examples: FeatureSet, n_classes: int) -> dict[str, float]:
    loss, correct = 0.0, 0
    for rows in examples.blocks(n_classes):
        logits, targets = predict(examples.rows(rows)).numpy(), examples.targets[rows]
        loss += log_loss(logits, targets).sum()
        correct += int((logits.argmax(axis=1) == targets).sum())
    return {"val_loss": loss / len(examples), "val_accuracy": correct / len(examples)}


# --- gradient descent


def _train_by_gradient_descent(
    head: keras.Model,
    train_set: FeatureSet,
    val_set: FeatureSet,
    weights: np.ndarray,
    settings: ResolvedHead,
    seed: int,
    progress: bool,
) -> History:
    steps_per_epoch = -(-len(train_set) // settings.batch_size)
    optimizer = _make_optimizer(settings, settings.epochs * steps_per_epoch)
    optimizer.build(head.trainable_variables)
    optimizer.exclude_from_weight_decay([variable for variable in head.trainable_variables if len(variable.shape) < 2])
    run_steps = _compile_steps(head, optimizer, weights, settings.label_smoothing)
    predict = _compile_predict(head)
    history, random = History(head.weights), np.random.default_rng(seed)
    bar = tqdm(range(1, settings.epochs + 1), desc="train_head", unit=" epochs", disable=None if progress else True)
    for epoch in bar:
        sums = np.zeros(2)
        for features, targets in shuffled_blocks(train_set, settings.batch_size, random):
            sums += run_steps(features, targets)
        loss, accuracy = sums / len(train_set)
        score = _score(predict, val_set, len(weights))
        if not np.isfinite([loss, score["val_loss"]]).all():
            advice = "a lower train_head.learning_rate helps"
            tqdm.write(f"train_head: loss is NaN in epoch {epoch}: training stops; {advice}", file=sys.stderr)
            break
        rate = float(optimizer.learning_rate)
        history.append(epoch, loss=loss, accuracy=accuracy, learning_rate=rate, **score)
        bar.set_postfix(val_loss=score["val_loss"])
        if settings.patience and history.epochs_without_improvement() >= settings.patience:  # early stopping
            break
    bar.close()
    history.restore()
    return history


def _make_optimizer(settings: ResolvedHead, steps: int) -> keras.optimizers.Optimizer:
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    kind = {"adam": FusedAdam, "sgd": keras.optimizers.SGD, "rmsprop": keras.optimizers.RMSprop}
    arguments = {"momentum": MOMENTUM} if settings.optimizer == "sgd" else {}
    return kind[settings.optimizer](rate, weight_decay=settings.weight_decay or None, **arguments)


def _compile_steps(
    head: keras.Model, optimizer: keras.optimizers.Optimizer, weights: np.ndarray, label_smoothing: float
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return a function that trains `head` for n steps in one call.

    It takes (n, b, feature_dim) features and (n, b) targets, and returns the sum of the losses and how many examples
    were classified correctly.

    Args:
        weights: (n_classes,) float32, of the classes.
    """
    model, variables = networks.without_softmax(head), head.trainable_variables
    cross_entropy = keras.losses.CategoricalCrossentropy(True, label_smoothing, reduction=None)
    signature = [tf.TensorSpec((None, None, head.input_shape[1]), tf.float32), tf.TensorSpec((None, None), tf.int32)]

    @tf.function(input_signature=signature)
    def run(features: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        loss_sum, correct = tf.zeros(()), tf.zeros(())
        for step in tf.range(tf.shape(features)[0]):
            target = targets[step]
            with tf.GradientTape() as tape:
                logits = model(features[step], training=True)
                losses = cross_entropy(tf.one_hot(target, len(weights)), logits) * tf.gather(weights, target)
                loss = tf.reduce_mean(losses)
            optimizer.apply(tape.gradient(loss, variables), variables)
            loss_sum += tf.reduce_sum(losses)
            correct += tf.reduce_sum(tf.cast(tf.argmax(logits, axis=1, output_type=tf.int32) == target, tf.float32))
        return tf.stack([loss_sum, correct])

    return lambda features, targets: run(features, targets).numpy()


def shuffled_blocks(
    examples: FeatureSet, batch_size: int, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield an epoch in random order: (n, b, feature_dim) float32 features and (n, b) int32 targets of n batches.

    The last batch may be smaller. For each example one of its views is drawn, the plain one being among them. A block
    is read while the one before it is used.
    """
    order, views = random.permutation(len(examples)), examples.views.shape[1]
    drawn = random.integers(0, 1 + views, len(examples)) if views else None
    size = max(1, examples.block_rows() // batch_size) * batch_size
    whole = len(order) // batch_size * batch_size
    bounds = [(start, min(start + size, whole)) for start in range(0, whole, size)]
    bounds += [(whole, len(order))] if whole < len(order) else []

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rows, count = order[start:stop], min(batch_size, stop - start)
        features = examples.rows(rows, None if drawn is None else drawn[rows])
        return features.reshape(-1, count, features.shape[1]), examples.targets[rows].reshape(-1, count)

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(read, *bounds[0])
        for bound in bounds[1:]:
            block, following = following.result(), pool.submit(read, *bound)
            yield block
        yield following.result()


# --- L-BFGS


def _train_by_lbfgs(
    head: keras.Model, train_set: FeatureSet, val_set: FeatureSet, weights: np.ndarray, settings: ResolvedHead
) -> History:
    """Minimize the mean cross-entropy + weight_decay / 2 x the squares of the kernel: multinomial logistic regression.

    With views, the mean is over all views of each example.
    """
    layer = head.get_layer(networks.LOGITS_LAYER)
    feature_dim, n_classes = layer.kernel.shape
    n_kernel = feature_dim * n_classes  # the parameters are the kernel, then the bias
    history, predict = History(head.weights, keep_last=True), _compile_predict(head)
    views = [None, *(np.full(len(train_set), number + 1) for number in range(train_set.views.shape[1]))]
    smoothing = settings.label_smoothing
    latest: dict[str, float] = {}

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        kernel = parameters[:n_kernel].reshape(feature_dim, n_classes).astype(np.float32)
        bias = parameters[n_kernel:].astype(np.float32)
        gradient, loss, correct = np.zeros(len(parameters)), 0.0, 0
        for rows in train_set.blocks(n_classes):
            targets, numbers = train_set.targets[rows], np.arange(len(train_set))[rows]
            for view in views:
                features = train_set.rows(numbers, None if view is None else view[rows])
                slope = features @ kernel + bias
                part_loss, part_correct, bias_gradient = _differentiate(slope, targets, weights[targets], smoothing)
                loss, correct = loss + part_loss, correct + part_correct
                gradient[:n_kernel] += (features.T @ slope).ravel()
                gradient[n_kernel:] += bias_gradient
        count = len(train_set) * len(views)
        latest.update(loss=loss / count, accuracy=correct / count)
        penalty = settings.weight_decay * parameters
        penalty[n_kernel:] = 0
        return loss / count + (penalty * parameters).sum() / 2, gradient / count + penalty

    def record(parameters: np.ndarray) -> None:
        layer.kernel.assign(parameters[:n_kernel].reshape(feature_dim, n_classes))
        layer.bias.assign(parameters[n_kernel:])
        history.append(len(history.rows) + 1, **latest, **_score(predict, val_set, n_classes))

    start = np.zeros(n_kernel + n_classes)
    converged = max(SHARE_OF_START * np.abs(objective(start)[1]).max(), np.finfo(np.float32).eps)
    options = {"maxiter": MAX_ITERATIONS, "gtol": min(TOLERANCE, converged), "ftol": 0, "maxls": 50}
    # On a busy machine BLAS threads wait for each other: small matrices took them ten times as long as a single thread.
    small = len(train_set) * n_kernel < SMALL_PRODUCT
    with threadpool_limits(1 if small else None, user_api="blas"):
        result = minimize(objective, start, jac=True, method="L-BFGS-B", options=options, callback=record)
    if not history.rows:  # there is no callback if the start is optimal
        record(result.x)
    # A line search may fail close to the optimum, where float32 ends; so the gradient decides.
    if result.nit >= MAX_ITERATIONS or np.abs(result.jac).max() > converged:
        print(
            f"train_head: lbfgs has not converged after {result.nit} iterations, as with features of very different or "
            "very large scale; more train_head.weight_decay helps, or optimizer=adam",
            file=sys.stderr,
        )
    if not np.isfinite([history.kept["loss"], history.kept["val_loss"]]).all():
        raise UserError("loss is NaN: training diverged; check the features for NaN and for very large values")
    return history


def _differentiate(
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
