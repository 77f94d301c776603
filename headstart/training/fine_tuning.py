"""One training of a network's upper blocks with the head: epoch by epoch, resumed after a kill."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headstart.errors import UserError
from headstart.fine_tune_config import ResolvedFineTune
from headstart.framework import keras, tf
from headstart.training.batches import Batches
from headstart.training.checkpoint import Checkpoint
from headstart.training.defaults import choose_ema_momentum
from headstart.training.history import History
from headstart.training.trainer import Trainer
from headstart.training.verdict import PairedScores

FAR_BEHIND = 1.5  # times the log loss of the head
OnEpochEnd = Callable[[dict[str, float]], None]  # takes the row of an epoch


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
        trainer: of the network, whose trainable variables are trained.
        held_out: the examples that it is scored on; after each epoch if `watch_val`.
        head_logits: (N, n_classes) of these by the head that is to be beaten.
        give_up_after: the epoch after which training ends if the network is FAR_BEHIND the head; 0: it never does.
        checkpoint: where each epoch is saved; None: nowhere, and epochs are not printed either.
        on_epoch_end: called after each epoch; epoch 0 is before training.
    """

    trainer: Trainer
    train_set: Batches
    held_out: Batches
    head_logits: np.ndarray
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
    trainer, variables = job.trainer, job.trainer.trainable_variables
    start = [keras.ops.convert_to_numpy(variable) for variable in variables]
    while True:
        try:
            return _train(job)
        except tf.errors.ResourceExhaustedError as error:
            if trainer.parts >= job.settings.batch_size:
                raise UserError(
                    "out of memory with a single example; unfreeze less by fine_tune.unfreeze, or lower extract.size"
                ) from error
            trainer.set_parts(min(2 * trainer.parts, job.settings.batch_size))
            print(f"fine_tune: out of memory; accumulating gradients over {trainer.parts} parts of a batch")
            for variable, value in zip(variables, start, strict=True):
                variable.assign(value)  # a checkpoint then restores the epochs that are done


def _train(job: TrainingJob) -> TrainResult:
    trainer = job.trainer
    trainer.begin(job.epochs * len(job.train_set), job.settings.learning_rate, job.ema_momentum)
    job.held_out.set_parts(trainer.parts)
    each_epoch = _EachEpoch(job)
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

    def __init__(self, job: TrainingJob) -> None:
        super().__init__()
        trainer = job.trainer
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
