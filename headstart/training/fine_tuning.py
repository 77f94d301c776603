"""Training the upper part of a network with its head: epoch by epoch, to be stopped at any moment and gone on with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from headstart.config import FineTune
from headstart.errors import UserError
from headstart.framework import keras, tf
from headstart.training.batches import Batches
from headstart.training.checkpoint import Checkpoint
from headstart.training.history import Epochs
from headstart.training.optimizers import LayerwiseAdamW
from headstart.training.verdict import States


class Trainer(keras.Model):
    """Steps of a model that gives logits; a batch goes through it in `parts`, one after the other, to save memory.

    The weights of the examples add up to the mean over the whole batch, in however many parts, on however many devices.
    """

    def __init__(self, network: keras.Model, label_smoothing: float, parts: int) -> None:
        super().__init__(name="trainer")
        self.network, self.parts = network, parts
        self._cross_entropy = keras.losses.CategoricalCrossentropy(True, label_smoothing, reduction=None)
        self._loss = keras.metrics.Mean("loss")
        self._accuracy = keras.metrics.CategoricalAccuracy("accuracy")

    @property
    def metrics(self) -> list[keras.Metric]:
        return [self._loss, self._accuracy]

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.network(inputs, training=training)

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs, targets, weights = data
        variables = self.trainable_variables
        size = -(-tf.shape(inputs)[0] // self.parts)

        def part(number: tf.Tensor, *gradients: tf.Tensor) -> tuple[tf.Tensor, ...]:
            rows = slice(number * size, (number + 1) * size)
            with tf.GradientTape() as tape:
                logits = self(inputs[rows], training=True)
                each = self._cross_entropy(targets[rows], logits)
                loss = self.optimizer.scale_loss(tf.reduce_sum(each * weights[rows]))
            self._loss.update_state(each)
            self._accuracy.update_state(targets[rows], logits)
            found = tape.gradient(loss, variables)
            return (number + 1, *(a + b for a, b in zip(gradients, found, strict=True)))

        start = (tf.constant(0), *(tf.zeros_like(variable) for variable in variables))
        _, *gradients = tf.while_loop(lambda number, *_: number < self.parts, part, start, parallel_iterations=1)
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            # The optimizer adds up after it has clipped: each part of the sum must be clipped as the whole would be.
            whole = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients = [gradient / replicas for gradient in whole]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {metric.name: metric.result() for metric in self.metrics}


class _EachEpoch(keras.callbacks.Callback):
    """Judges the model after each epoch, by its averaged weights where there are such, and keeps the state."""

    def __init__(
        self,
        train_set: Batches,
        after: Callable[[int, dict[str, float]], bool],
        checkpoint: Callable[[], None],
        average: bool,
    ) -> None:
        super().__init__()
        self._train_set, self._after, self._checkpoint, self._average = train_set, after, checkpoint, average

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._train_set.begin(epoch)  # the dataset's own on_epoch_end is called before the first epoch, too

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs = dict(logs or {})
        if not np.isfinite(logs["loss"]):
            print(f"fine_tune: the loss is no number in epoch {epoch + 1}: training stops", file=sys.stderr)
            self.model.stop_training = True
            return
        variables = self.model.trainable_variables
        own = [keras.ops.convert_to_numpy(variable) for variable in variables] if self._average else []
        if self._average:
            self.model.optimizer.finalize_variable_values(variables)
        good = self._after(epoch + 1, {**logs, "learning_rate": float(self.model.optimizer.learning_rate)})
        for variable, value in zip(variables, own, strict=False):
            variable.assign(value)
        if not good:
            text = (
                f"val loss is no number after epoch {epoch + 1}: training stops; a lower fine_tune.learning_rate helps"
            )
            print(f"fine_tune: {text}", file=sys.stderr)
            self.model.stop_training = True
            return
        self._checkpoint()


@dataclass(frozen=True)
class Tuned:
    """What training came to.

    Attributes:
        epochs: the curves; the last one is kept.
        logits: (N, n_classes) float32 of val.
        states: the start and the last epoch; only the start where val is not watched.
    """

    epochs: Epochs
    logits: np.ndarray
    states: States

    @property
    def right(self) -> int:
        """How many images of val are answered rightly; -1 where what the network makes of them is no number."""
        return int((self.logits.argmax(axis=1) == self.states.targets).sum()) if np.isfinite(self.logits).all() else -1


@dataclass(frozen=True)
class Job:
    """What is to be trained, on what, and how.

    Attributes:
        network: gives logits; what is trainable in it is trained.
        scales: of the learning rate, for each trainable variable.
        momentum: of the average of the weights; 0: there is none.
        tell: is given the row of each epoch.
        checkpoint: keeps what each epoch comes to, which is printed, too; None for one of several folds.
        watched: whether each epoch is judged on val.
    """

    network: keras.Model
    train_set: Batches
    val_set: Batches
    scales: Sequence[float]
    choice: FineTune
    epochs: int
    momentum: float
    checkpoint: Checkpoint | None
    watched: bool
    tell: Callable[[dict[str, float]], None]


def tune(job: Job) -> Tuned:
    """Train the network, and leave it as it is after the last epoch whose loss is a number.

    No epoch is chosen on val: with few images that choice is noise, and takes epochs whose answers are worse.

    Raises:
        UserError: where not one image fits into the memory of the device, or the network has no numbers as it comes.
    """
    variables, parts = job.network.trainable_variables, 1
    start = [keras.ops.convert_to_numpy(variable) for variable in variables]
    while True:
        try:
            return _tune(job, parts)
        except tf.errors.ResourceExhaustedError as error:
            if parts >= job.choice.batch_size:
                raise UserError("fine_tune: not one image fits into the memory of the device") from error
            parts = min(2 * parts, job.choice.batch_size)
            print(f"fine_tune: a batch does not fit into the memory; on in {parts} parts of it")
            for variable, value in zip(variables, start, strict=True):
                variable.assign(value)  # the checkpoint knows how far it came since


def _tune(job: Job, parts: int) -> Tuned:
    choice, checkpoint, epochs = job.choice, job.checkpoint, job.epochs
    trainer = Trainer(job.network, choice.label_smoothing, parts)
    steps = epochs * len(job.train_set)
    optimizer = _optimizer(job, steps)
    trainer.compile(optimizer, jit_compile=False)  # XLA times its kernels
    variables = trainer.trainable_variables
    trainer.optimizer.build(variables)
    noted = Epochs(variables, last=True)
    # Beside what is trained, dropout's place in its random numbers.
    random = [variable for variable in trainer.variables if "int" in variable.dtype]
    state = [*variables, *random, *trainer.optimizer.variables]

    states = States.of(job.val_set.targets, 0)
    job.val_set.split(parts)

    def note(epoch: int, logs: dict[str, float]) -> bool:
        if job.watched or not epoch:
            logits = trainer.predict(job.val_set, verbose=0)
            if not np.isfinite(logits).all():
                return False
            loss, accuracy = states.add(logits)
            logs = {**logs, "val_loss": loss, "val_accuracy": accuracy}
        noted.note(epoch, **logs)
        if epoch and checkpoint:
            of_val = f", val loss {loss:.4f}, val accuracy {accuracy:.4f}" if job.watched else ""
            print(f"fine_tune: epoch {epoch} of {epochs}: loss {logs['loss']:.4f}{of_val}", flush=True)
        job.tell(noted.rows[-1])
        return True

    def save() -> None:
        if checkpoint:
            checkpoint.save(state, noted, states)

    if not checkpoint or not checkpoint.load(state, noted, states):
        if not note(0, {}):
            raise UserError(
                "fine_tune: what the network makes of val is no number before any training; "
                "try fine_tune.precision=float32, or ship the head: fine_tune.unfreeze=none"
            )
        save()
    done = noted.rows[-1]["epoch"]
    if done:
        how = "had ended when it was stopped" if done == epochs else "goes on"
        print(f"fine_tune: {how} after epoch {done} of {epochs}")
        job.tell(noted.rows[-1])  # so that it is seen to run
    each = _EachEpoch(job.train_set, note, save, bool(job.momentum))
    try:
        trainer.fit(
            job.train_set,
            initial_epoch=done,
            epochs=epochs,
            callbacks=[each, keras.callbacks.TerminateOnNaN()],
            shuffle=False,  # of the batches, which each epoch of the dataset orders by itself
            verbose=1 if sys.stdout.isatty() and checkpoint else 0,
        )
    except (KeyboardInterrupt, SystemExit):
        where = "with this fold" if not checkpoint else f"after epoch {noted.rows[-1]['epoch']}"
        print(f"fine_tune: stopped; the same again goes on {where}", file=sys.stderr)
        raise
    noted.restore()
    return Tuned(noted, trainer.predict(job.val_set, verbose=0), states)


def _optimizer(job: Job, steps: int) -> keras.optimizers.Optimizer:
    choice = job.choice
    warm_up = round(choice.warm_up * steps)
    decay = partial(keras.optimizers.schedules.CosineDecay, decay_steps=max(1, steps - warm_up))
    # A warm-up starts at 0, also one of a single step.
    rate = (
        decay(0.0, warmup_target=choice.learning_rate, warmup_steps=warm_up) if warm_up else decay(choice.learning_rate)
    )
    optimizer = LayerwiseAdamW(
        rate,
        global_clipnorm=choice.clip_norm and choice.clip_norm / tf.distribute.get_strategy().num_replicas_in_sync,
        use_ema=job.momentum > 0,
        ema_momentum=job.momentum or 0.99,  # Keras wants one between 0 and 1, used or not
    )
    optimizer.scales, optimizer.decay = job.scales, choice.weight_decay
    return keras.optimizers.LossScaleOptimizer(optimizer) if choice.precision == "float16" else optimizer
