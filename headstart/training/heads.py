"""Training heads on features: an epoch is one compiled call, or one a block where the features are larger than that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax
from tqdm import tqdm

from headstart.framework import keras, tf
from headstart.head_config import ResolvedHead
from headstart.training import networks
from headstart.training.calibration import log_loss
from headstart.training.examples import FeatureSet, class_weights
from headstart.training.history import History
from headstart.training.optimizers import FusedAdam

MOMENTUM = 0.9  # of sgd
MAX_ITERATIONS, TOLERANCE = 1000, 1e-5  # of lbfgs; the largest part of the gradient where it has converged
STEEP = 0.01  # share of the gradient at its start, with more of which it has not come to an end


def train(
    train_set: FeatureSet, val_set: FeatureSet, n_classes: int, choice: ResolvedHead, seed: int, progress: bool = True
) -> tuple[keras.Model, History]:
    """A head trained on the cross-entropy, and its curves.

    By lbfgs it is trained to convergence; else left as it was after the epoch with the lowest loss on val.

    Args:
        choice: with nothing left open.

    Raises:
        UserError: where the loss was never a number.
    """
    keras.utils.set_random_seed(seed)
    head = networks.build_head(
        train_set.features.shape[1], n_classes, choice.hidden, choice.activation, choice.batch_norm, choice.dropout
    )
    weights = class_weights(train_set.targets, n_classes, choice.class_weight)
    if choice.optimizer == "lbfgs":
        return head, _converge(head, train_set, val_set, weights, choice)
    return head, _descend(head, train_set, val_set, weights, choice, seed, progress)


def logits(head: keras.Model, examples: FeatureSet) -> np.ndarray:
    """(N, n_classes) float32 of a head, for each example as it is."""
    run = _compiled_logits(head)
    return np.concatenate([run(examples.rows(rows)).numpy() for rows in examples.blocks()])


def _compiled_logits(head: keras.Model) -> Callable[[np.ndarray], tf.Tensor]:
    model = networks.without_softmax(head)
    signature = [tf.TensorSpec((None, head.input_shape[1]), tf.float32)]
    return tf.function(lambda features: model(features, training=False), input_signature=signature)


def _score(run: Callable[[np.ndarray], tf.Tensor], examples: FeatureSet) -> dict[str, float]:
    losses, right = 0.0, 0
    for rows in examples.blocks():
        found, targets = run(examples.rows(rows)).numpy(), examples.targets[rows]
        losses += log_loss(found, targets).sum()
        right += int((found.argmax(axis=1) == targets).sum())
    return {"val_loss": losses / len(examples), "val_accuracy": right / len(examples)}


# --- step by step


def _descend(
    head: keras.Model,
    train_set: FeatureSet,
    val_set: FeatureSet,
    weights: np.ndarray,
    choice: ResolvedHead,
    seed: int,
    progress: bool,
) -> History:
    steps_an_epoch = -(-len(train_set) // choice.batch_size)
    optimizer = _optimizer(choice, choice.epochs * steps_an_epoch)
    optimizer.build(head.trainable_variables)
    optimizer.exclude_from_weight_decay([variable for variable in head.trainable_variables if len(variable.shape) < 2])
    run, judge = _compiled_steps(head, optimizer, weights, choice.label_smoothing), _compiled_logits(head)
    history, random = History(head.weights), np.random.default_rng(seed)
    bar = tqdm(range(1, choice.epochs + 1), desc="train_head", unit=" epochs", disable=None if progress else True)
    for epoch in bar:
        sums = np.zeros(2)
        for features, targets in _shuffled(train_set, choice.batch_size, random):
            sums += run(features, targets)
        loss, accuracy = sums / len(train_set)
        score = _score(judge, val_set)
        if not np.isfinite([loss, score["val_loss"]]).all():
            advice = "a lower train_head.learning_rate helps"
            tqdm.write(f"train_head: loss is NaN in epoch {epoch}: training stops; {advice}", file=sys.stderr)
            break
        rate = float(optimizer.learning_rate)
        history.append(epoch, loss=loss, accuracy=accuracy, learning_rate=rate, **score)
        bar.set_postfix(val_loss=history.rows[-1]["val_loss"])
        if choice.patience and history.epochs_without_improvement() >= choice.patience:
            break
    bar.close()
    history.restore()
    return history


def _optimizer(choice: ResolvedHead, steps: int) -> keras.optimizers.Optimizer:
    rate = choice.learning_rate
    if choice.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    kind = {"adam": FusedAdam, "sgd": keras.optimizers.SGD, "rmsprop": keras.optimizers.RMSprop}
    arguments = {"momentum": MOMENTUM} if choice.optimizer == "sgd" else {}
    return kind[choice.optimizer](rate, weight_decay=choice.weight_decay or None, **arguments)


def _compiled_steps(
    head: keras.Model, optimizer: keras.optimizers.Optimizer, weights: np.ndarray, label_smoothing: float
) -> Callable[[np.ndarray, np.ndarray], tuple[float, float]]:
    """Many steps in one call: of (n, b, feature_dim) features and (n, b) targets; sums of losses and of hits."""
    model, variables = networks.without_softmax(head), head.trainable_variables
    cross_entropy = keras.losses.CategoricalCrossentropy(True, label_smoothing, reduction=None)
    signature = [tf.TensorSpec((None, None, head.input_shape[1]), tf.float32), tf.TensorSpec((None, None), tf.int32)]

    @tf.function(input_signature=signature)
    def run(features: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        losses, hits = tf.zeros(()), tf.zeros(())
        for step in tf.range(tf.shape(features)[0]):
            target = targets[step]
            with tf.GradientTape() as tape:
                found = model(features[step], training=True)
                each = cross_entropy(tf.one_hot(target, len(weights)), found) * tf.gather(weights, target)
                loss = tf.reduce_mean(each)
            optimizer.apply(tape.gradient(loss, variables), variables)
            losses += tf.reduce_sum(each)
            hits += tf.reduce_sum(tf.cast(tf.argmax(found, axis=1, output_type=tf.int32) == target, tf.float32))
        return tf.stack([losses, hits])

    return lambda features, targets: run(features, targets).numpy()


def _shuffled(
    examples: FeatureSet, batch_size: int, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks (n, b, feature_dim) and (n, b) of an epoch, in an order of its own; the last batch can be a short one.

    A block is read while the one before is worked on.
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
        ahead = pool.submit(read, *bounds[0])
        for bound in bounds[1:]:
            block, ahead = ahead.result(), pool.submit(read, *bound)
            yield block
        yield ahead.result()


# --- to convergence


def _converge(
    head: keras.Model, train_set: FeatureSet, val_set: FeatureSet, weights: np.ndarray, choice: ResolvedHead
) -> History:
    """Multinomial logistic regression: mean cross-entropy + weight_decay / 2 x the squares of the kernel, by L-BFGS.

    With views, the mean is over all views of each image.
    """
    layer = head.get_layer(networks.LOGITS_LAYER)
    shape = tuple(layer.kernel.shape)
    history, score = History(head.weights), _compiled_logits(head)
    views = [None, *(np.full(len(train_set), number + 1) for number in range(train_set.views.shape[1]))]
    smooth = choice.label_smoothing
    latest: dict[str, float] = {}

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = values[: -shape[1]].reshape(shape).astype(np.float32), values[-shape[1] :].astype(np.float32)
        gradient, loss, hits = np.zeros(len(values)), 0.0, 0
        for rows in train_set.blocks():
            targets = train_set.targets[rows]
            aim = np.full((len(targets), shape[1]), smooth / shape[1])
            aim[np.arange(len(targets)), targets] += 1 - smooth
            weight = weights[targets, None].astype(np.float64)
            for view in views:
                numbers = np.arange(len(train_set))[rows]
                features = train_set.rows(numbers, None if view is None else view[rows])
                logs = log_softmax((features @ kernel + bias).astype(np.float64), axis=1)
                loss -= (weight * aim * logs).sum()
                hits += int((logs.argmax(axis=1) == targets).sum())
                slope = weight * (np.exp(logs) - aim)
                gradient[: -shape[1]] += (features.T @ slope.astype(np.float32)).ravel()
                gradient[-shape[1] :] += slope.sum(axis=0)
        count = len(train_set) * len(views)
        latest.update(loss=loss / count, accuracy=hits / count)
        penalty = np.where(np.arange(len(values)) < len(values) - shape[1], choice.weight_decay, 0) * values
        return loss / count + (penalty * values).sum() / 2, gradient / count + penalty

    def note(values: np.ndarray) -> None:
        layer.kernel.assign(values[: -shape[1]].reshape(shape))
        layer.bias.assign(values[-shape[1] :])
        history.append(len(history.rows) + 1, **latest, **_score(score, val_set))

    options = {"maxiter": MAX_ITERATIONS, "gtol": TOLERANCE, "ftol": 0, "maxls": 50}
    start = np.zeros(shape[0] * shape[1] + shape[1])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options, callback=note)
    if not history.rows:  # if the start is the end, there is no callback
        note(found.x)
    # By the gradient, too: near its end a search that finds nothing lower is what float32 lets it find.
    steep = np.abs(found.jac).max() > STEEP * np.abs(objective(start)[1]).max()
    if found.nit >= MAX_ITERATIONS or steep:
        print(
            f"train_head: lbfgs has not converged after {found.nit} iterations, as with features of very different or "
            "very large scale; more train_head.weight_decay helps, or optimizer=adam",
            file=sys.stderr,
        )
    history.keep_converged()
    return history
