"""Training heads on features: by gradient descent with early stopping, or linear ones by L-BFGS to convergence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from headstart.errors import UserError
from headstart.framework import keras, tf
from headstart.head_config import ResolvedHead
from headstart.training import linear, networks
from headstart.training.calibration import log_loss
from headstart.training.examples import FeatureSet, class_weights
from headstart.training.history import History
from headstart.training.optimizers import FusedAdam

MOMENTUM = 0.9  # of sgd
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
    layer = head.get_layer(networks.LOGITS_LAYER)
    history, predict = History(head.weights, keep_last=True), _compile_predict(head)

    def record(kernel: np.ndarray, bias: np.ndarray, loss: float, accuracy: float) -> None:
        layer.kernel.assign(kernel)
        layer.bias.assign(bias)
        score = _score(predict, val_set, len(weights))
        history.append(len(history.rows) + 1, loss=loss, accuracy=accuracy, **score)

    linear.fit(train_set, weights, settings.weight_decay, settings.label_smoothing, on_iteration=record)
    if not np.isfinite(history.kept["val_loss"]):
        raise UserError(linear.DIVERGED)
    return history
