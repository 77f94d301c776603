"""One training of a network's upper blocks with the head: epoch by epoch, resumed after a kill."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from headstart.errors import UserError
from headstart.fine_tune_config import ResolvedFineTune
from headstart.framework import keras, tf
from headstart.training.batches import Batches
from headstart.training.checkpoint import Checkpoint
from headstart.training.defaults import choose_ema_momentum
from headstart.training.history import History
from headstart.training.optimizers import LayerwiseAdamW
from headstart.training.verdict import PairedScores

FAR_BEHIND = 1.5  # times the log loss of the head
OnEpochEnd = Callable[[dict[str, float]], None]  # takes the row of an epoch


class Trainer(keras.Model):
    """Trains a network that gives logits, with gradient accumulation over `parts` of a batch.

    The gradient is the weighted mean over the whole batch with any number of parts and devices. Keras' own
    `gradient_accumulation_steps` does not serve: it moves the exponential moving average after every part instead of
    every batch, float16's loss scale may change between parts, and an epoch's last, smaller batch would need as many
    parts as the others.
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

    def call(self, inputs: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.network(inputs, training=training)

    def held_out_logits(self, held_out: Batches) -> np.ndarray:
        """Return the logits of held-out examples in their order, (N, n_classes) float32."""
        return held_out.sort_back(self.predict(held_out.source(), verbose=0))

    def train_step(self, data: tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs, targets, weights = data
        variables = self.trainable_variables
        size = -(-tf.shape(targets)[0] // self.parts)

        def step(number: tf.Tensor, *gradients: tf.Tensor) -> tuple[tf.Tensor, ...]:
            rows = slice(number * size, (number + 1) * size)
            with tf.GradientTape() as tape:
                logits = self({name: array[rows] for name, array in inputs.items()}, training=True)
                losses = self._cross_entropy(targets[rows], logits)
                loss = self.optimizer.scale_loss(tf.reduce_sum(losses * weights[rows]))
            self._loss.update_state(losses)
            self._accuracy.update_state(targets[rows], logits)
            new = tape.gradient(loss, variables)
            return (number + 1, *(a + b for a, b in zip(gradients, new, strict=True)))

        start = (tf.constant(0), *(tf.zeros_like(variable) for variable in variables))
        _, *gradients = tf.while_loop(lambda number, *_: number < self.parts, step, start, parallel_iterations=1)
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            # The optimizer clips before it sums over replicas, so each of them needs its share of the whole gradient.
            total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients = [gradient / replicas for gradient in total]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {metric.name: metric.result() for metric in self.metrics}


@dataclass(frozen=True)
class TrainResult:
    """The end of one training.

    Attributes:
        history: the curves; its weights are those of the last epoch.
        logits: (N, n_classes) float32 of the held-out examples, after the last epoch.
        scores: of the head that is to be beaten, and of the network after the last epoch that was scored.
        gave_up: whether training ended early, since the network was far behind the head.
    """

    history: History
    logits: np.ndarray
    scores: PairedScores
    gave_up: bool

    @property
    def last_epoch(self) -> int:
        """The last epoch whose loss was not NaN."""
        return self.history.kept["epoch"]

    @property
    def n_correct(self) -> int:
        """How many held-out examples are classified correctly; -1 if there is NaN in the logits."""
        if not np.isfinite(self.logits).all():
            return -1
        return int((self.logits.argmax(axis=1) == self.scores.targets).sum())


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, and how.

    Attributes:
        network: gives logits; its trainable variables are trained, each at its share, `scales`, of the learning rate.
        held_out: the examples that it is scored on; after each epoch if `watch_val`.
        head_logits: (N, n_classes) of these by the head that is to be beaten.
        give_up_after: the epoch after which training ends if the network is FAR_BEHIND the head; 0: it never does.
        checkpoint: where each epoch is saved; None: nowhere, and epochs are not printed either.
        on_epoch_end: called after each epoch; epoch 0 is before training.
    """

    network: keras.Model
    train_set: Batches
    held_out: Batches
    head_logits: np.ndarray
    scales: Sequence[float]
    settings: ResolvedFineTune
    epochs: int
    give_up_after: int
    checkpoint: Checkpoint | None
    watch_val: bool
    on_epoch_end: OnEpochEnd

    @property
    def ema_momentum(self) -> float:
        """Momentum of the exponential moving average of the weights; 0: there is none."""
        return choose_ema_momentum(self.settings, self.epochs, len(self.train_set.targets))


def train(job: TrainingJob) -> TrainResult:
    """Train the network, and leave it as it is after the last epoch whose loss is not NaN.

    There is no early stopping: on a small val the choice of an epoch is mostly noise, and gave worse networks.

    Raises:
        UserError: if memory is too small for a single example, or the network gives NaN before any training.
    """
    variables, parts = job.network.trainable_variables, 1
    start = [keras.ops.convert_to_numpy(variable) for variable in variables]
    while True:
        try:
            return _train(job, parts)
        except tf.errors.ResourceExhaustedError as error:
            if parts >= job.settings.batch_size:
                raise UserError(
                    "out of memory with a single example; unfreeze less by fine_tune.unfreeze, or lower extract.size"
                ) from error
            parts = min(2 * parts, job.settings.batch_size)
            print(f"fine_tune: out of memory; accumulating gradients over {parts} parts of a batch")
            for variable, value in zip(variables, start, strict=True):
                variable.assign(value)  # a checkpoint then restores the epochs that are done


def _train(job: TrainingJob, parts: int) -> TrainResult:
    trainer = Trainer(job.network, job.settings.label_smoothing, parts)
    optimizer = make_optimizer(job, job.epochs * len(job.train_set))
    trainer.compile(optimizer, jit_compile=False)  # XLA times its kernels: the same bits would not come again
    trainer.optimizer.build(trainer.trainable_variables)
    job.held_out.set_parts(parts)
    each_epoch = _EachEpoch(job, trainer)
    done = each_epoch.start()
    try:
        trainer.fit(
            job.train_set.source(),
            initial_epoch=job.epochs if each_epoch.gave_up else done,
            epochs=job.epochs,
            callbacks=[each_epoch, keras.callbacks.TerminateOnNaN()],
            shuffle=False,  # of the batches: each epoch of the dataset has an order of its own
            verbose=1 if sys.stdout.isatty() and job.checkpoint else 0,
        )
    except (KeyboardInterrupt, SystemExit):
        where = f"after epoch {each_epoch.history.rows[-1]['epoch']}" if job.checkpoint else "with this fold"
        print(f"fine_tune: stopped; the same command resumes {where}", file=sys.stderr)
        raise
    each_epoch.history.restore()
    logits = trainer.held_out_logits(job.held_out)
    return TrainResult(each_epoch.history, logits, each_epoch.scores, each_epoch.gave_up)


class _EachEpoch(keras.callbacks.Callback):
    """After each epoch, scores the network, by the moving average of its weights if any, and saves a checkpoint."""

    def __init__(self, job: TrainingJob, trainer: Trainer) -> None:
        super().__init__()
        self._job, self._trainer, self._variables = job, trainer, trainer.trainable_variables
        random = [variable for variable in trainer.variables if "int" in variable.dtype]  # states of dropout's seeds
        self._state = [*self._variables, *random, *trainer.optimizer.variables]
        self.history, self.scores = History(self._variables, keep_last=True), PairedScores.empty(job.held_out.targets)
        self.gave_up = False

    def start(self) -> int:
        """Resume from the checkpoint, or score the network before training; return how many epochs are done.

        Raises:
            UserError: if the network gives NaN before any training.
        """
        job = self._job
        if not job.checkpoint or not job.checkpoint.load(self._state, self.history, self.scores):
            self.scores.add(job.head_logits)
            if not self._record(0, {}):
                raise UserError(
                    "the network gives NaN for val before any training; "
                    "try fine_tune.precision=float32, or keep the head alone with fine_tune.unfreeze=none"
                )
            self._save()
        done = self.history.rows[-1]["epoch"]
        if done and not self._give_up_if_far_behind(done):
            how = "had finished when the run was stopped" if done == job.epochs else "resumes"
            print(f"fine_tune: training {how} after epoch {done} of {job.epochs}")
            job.on_epoch_end(self.history.rows[-1])  # so that a progress bar starts there
        return done

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._job.train_set.set_epoch(epoch)  # Keras calls the dataset's own on_epoch_end before the first epoch, too

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs, optimizer, unaveraged = dict(logs or {}), self._trainer.optimizer, []
        if not np.isfinite(logs["loss"]):
            self._stop(f"loss is NaN in epoch {epoch + 1}: training stops")
            return
        if self._job.ema_momentum:
            unaveraged = [keras.ops.convert_to_numpy(variable) for variable in self._variables]
            optimizer.finalize_variable_values(self._variables)
        finite = self._record(epoch + 1, {**logs, "learning_rate": float(optimizer.learning_rate)})
        for variable, value in zip(self._variables, unaveraged, strict=False):
            variable.assign(value)
        if finite:
            self._save()
            self._give_up_if_far_behind(epoch + 1)
        else:
            self._stop(f"the network gives NaN after epoch {epoch + 1}: training stops; lower fine_tune.learning_rate")

    def _record(self, epoch: int, logs: dict[str, float]) -> bool:
        """Record an epoch; return False if the network gives NaN."""
        job, val = self._job, ""
        if job.watch_val or epoch in (0, job.give_up_after):
            logits = self._trainer.held_out_logits(job.held_out)
            if not np.isfinite(logits).all():
                return False
            loss, accuracy = self.scores.add(logits)
            logs = {**logs, "val_loss": loss, "val_accuracy": accuracy}
            val = f", val loss {loss:.4f}, val accuracy {accuracy:.4f}"
        elif not all(np.isfinite(keras.ops.convert_to_numpy(variable)).all() for variable in self._variables):
            return False  # the loss of a batch says nothing about the step that follows it
        self.history.append(epoch, **logs)
        if epoch and job.checkpoint:
            print(f"fine_tune: epoch {epoch} of {job.epochs}: loss {logs['loss']:.4f}{val}", flush=True)
        job.on_epoch_end(self.history.rows[-1])
        return True

    def _give_up_if_far_behind(self, epoch: int) -> bool:
        head, network = (losses.mean() for losses in (self.scores.losses[0], self.scores.losses[-1]))
        self.gave_up = bool(epoch == self._job.give_up_after and network > FAR_BEHIND * head)
        if self.gave_up:
            reason = f"log loss {network:.4f} on held-out examples, {head:.4f} by the head: training ends"
            self._stop(f"after epoch {epoch} of {self._job.epochs} {reason}")
        return self.gave_up

    def _save(self) -> None:
        if self._job.checkpoint:
            self._job.checkpoint.save(self._state, self.history, self.scores)

    def _stop(self, reason: str) -> None:
        print(f"fine_tune: {reason}", file=sys.stderr)
        self._trainer.stop_training = True


def make_optimizer(job: TrainingJob, steps: int) -> keras.optimizers.Optimizer:
    """Return AdamW with linear warm-up, cosine decay to zero, gradient clipping and an average of the weights."""
    settings = job.settings
    warm_up = round(settings.warm_up * steps)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=settings.learning_rate, warmup_steps=warm_up
    )
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    optimizer = LayerwiseAdamW(
        rate,
        global_clipnorm=settings.clip_norm and settings.clip_norm / replicas,
        use_ema=job.ema_momentum > 0,
        ema_momentum=job.ema_momentum or 0.99,  # Keras checks it even if it is not used
    )
    optimizer.scales, optimizer.decay = job.scales, settings.weight_decay
    return keras.optimizers.LossScaleOptimizer(optimizer) if settings.precision == "float16" else optimizer
