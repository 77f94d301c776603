"""The trainings that fine-tuning consists of: on train, in folds of it, and the refit on train and val."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from headstart.arrays import read_arrays, write_arrays
from headstart.features.activations import Inputs
from headstart.fine_tune_config import ResolvedFineTune
from headstart.framework import keras
from headstart.training import calibration, networks
from headstart.training.batches import Batches
from headstart.training.checkpoint import Checkpoint
from headstart.training.examples import class_weights
from headstart.training.fine_tuning import OnEpochEnd, TrainingJob, TrainResult, train
from headstart.training.folds import Comparison, Fold
from headstart.training.trainer import Trainer
from headstart.training.verdict import PairedScores

# Of the learning rate, where a refit goes on from the trained network. In one trial with 560 images of CIFAR-10 the log
# loss on 600 others was 0.841 with a tenth, 0.879 with all of it, and 0.859 after a refit from the start.
REFIT_RATE = 0.1


@dataclass(frozen=True)
class Plan:
    """What all trainings share.

    Attributes:
        trainer: of the network, inputs -> logits, whose trainable variables are trained; its last layers are those of
            `head`.
        start: the state of the network before training.
        inputs, targets: of the examples of train, `n_train` of them, then of val; targets are (N,) int32.
        views: how many augmented views each example has.
        head_logits: (n_val, n_classes) of val by the head that fine-tuning must beat, which has not seen it.
        gives_up: whether trainings and folds end early where fine-tuning is clearly worse.
        refits: whether a better network is trained again on train and val.
        refit_epochs: for how long.
        restarts: whether it begins from the start, or goes on from where training has ended.
        folds: of train, for when val is too small to decide; empty: val decides.
        checkpoints: how the names of the checkpoints begin.
        chosen: the settings that params.yaml left open, by name.
    """

    settings: ResolvedFineTune
    trainer: Trainer
    head: keras.Model
    start: list[np.ndarray]
    inputs: Inputs
    targets: np.ndarray
    n_train: int
    epochs: int
    views: int
    head_logits: np.ndarray
    gives_up: bool
    refits: bool
    refit_epochs: int
    restarts: bool
    folds: Sequence[Fold]
    seed: int
    checkpoints: Path
    chosen: dict[str, Any]

    @property
    def network(self) -> keras.Model:
        """Inputs -> logits."""
        return self.trainer.network

    def compare(self, trained: TrainResult) -> Comparison:
        """Score the network that was trained on train; where that settles nothing, train in folds, too, one by one.

        The network is left as it is.
        """
        targets, scores = self.targets, trained.scores
        logits, seen = np.zeros((2, len(targets), self.head.output_shape[-1]), np.float32), np.zeros(len(targets), bool)
        logits[:, self.n_train :], seen[self.n_train :] = (self.head_logits, trained.logits), True
        state, done = networks.get_state(self.network), 0
        for fold in self.folds if trained.last_epoch == self.epochs else ():
            if self.gives_up and scores.settled(self.settings.confidence):
                break
            done += 1
            tuned = self._fold_logits(done, fold)
            logits[:, fold.held_out], seen[fold.held_out] = (fold.logits, tuned), True
            scores = PairedScores.empty(targets[seen])
            for each in logits:
                scores.add(each[seen])
        networks.set_state(self.network, state)
        return Comparison(scores, calibration.fit_temperature(logits[1, seen], targets[seen]), done)

    def _fold_logits(self, number: int, fold: Fold) -> np.ndarray:
        """Return the logits of the held-out examples by a network that was trained on the others."""
        file, resumed = self._checkpoint_file(f"-fold{number}"), ", as it was before the run was stopped"
        tuned, name = _read_logits(file, fold.logits.shape), f"fine_tune: fold {number} of {len(self.folds)}"
        if tuned is None:
            networks.set_state(self.network, self.start)
            self.head.set_weights(fold.head)
            with tqdm(total=self.epochs, desc=name, unit=" epochs", disable=None, leave=False) as progress:

                def advance(row: dict[str, float]) -> None:
                    progress.update(row["epoch"] > 0)

                result = train(self._job(fold.train_rows, fold.held_out, fold.logits, advance))
            # A training that ended with NaN has learned nothing: all classes are equally likely.
            ended = result.gave_up or (result.last_epoch == self.epochs and np.isfinite(result.logits).all())
            tuned, resumed = result.logits if ended else np.zeros_like(fold.logits), ""
            with contextlib.suppress(OSError):  # a killed run then starts this fold again
                write_arrays(file, logits=tuned)
        after, before = ((each.argmax(axis=1) == self.targets[fold.held_out]).sum() for each in (tuned, fold.logits))
        print(f"{name}{resumed}: {after} of {len(tuned)} classified correctly, {before} by the head", flush=True)
        return tuned

    def train(self, on_epoch_end: OnEpochEnd) -> TrainResult:
        """Train on train, and score each epoch on val."""
        rows = np.arange(len(self.targets))
        job = self._job(rows[: self.n_train], rows[self.n_train :], self.head_logits, on_epoch_end, "", watch_val=True)
        return train(job)

    def refit(self, result: TrainResult) -> bool:
        """Go on with training on train and val, for `refit_epochs`.

        Args:
            result: of the training on train.

        Returns:
            Whether the refit is kept. It is discarded, and the network restored, if its loss became NaN or if it
            classifies fewer examples of val correctly than the network that has not seen them.
        """
        before = networks.get_state(self.network)
        print(
            f"fine_tune: refitting on train + val, {len(self.targets):,} examples instead of {self.n_train:,}, in "
            f"{self.refit_epochs} epochs"
        )
        job = self._job_on_both(lambda _: None, self.refit_epochs)
        if self.restarts:
            networks.set_state(self.network, self.start)
        else:
            rate = self.settings.learning_rate * REFIT_RATE
            job = replace(job, settings=self.settings.model_copy(update={"learning_rate": rate}))
        refitted = train(job)
        if refitted.last_epoch == self.refit_epochs and refitted.n_correct >= result.n_correct:
            return True
        networks.set_state(self.network, before)
        print("fine_tune: the refit is worse on val and is discarded; the network trained on train alone is kept")
        return False

    def delete_checkpoints(self) -> None:
        """Delete all checkpoints: to be called when the results are written."""
        with contextlib.suppress(OSError):
            for file in self.checkpoints.parent.glob(f"{self.checkpoints.name}*.npz"):
                file.unlink(missing_ok=True)

    def _checkpoint_file(self, name: str) -> Path:
        return self.checkpoints.with_name(f"{self.checkpoints.name}{name}.npz")

    def _job(
        self,
        train_rows: np.ndarray,
        held_out: np.ndarray,
        head_logits: np.ndarray,
        on_epoch_end: OnEpochEnd,
        checkpoint: str | None = None,
        watch_val: bool = False,
    ) -> TrainingJob:
        settings = self.settings
        weights = class_weights(self.targets[train_rows], self.head.output_shape[-1], settings.class_weight)

        def batches(rows: np.ndarray, views: int, seed: int | None) -> Batches:
            size = settings.batch_size
            return Batches(self.inputs, self.targets, rows, weights, size, views, seed, settings.mixup)

        return TrainingJob(
            trainer=self.trainer,
            train_set=batches(train_rows, self.views, self.seed),
            held_out=batches(held_out, 0, None),
            head_logits=head_logits,
            settings=settings,
            epochs=self.epochs,
            give_up_after=-(-self.epochs // 3) if self.gives_up else 0,
            checkpoint=None if checkpoint is None else Checkpoint(self._checkpoint_file(checkpoint)),
            watch_val=watch_val,
            on_epoch_end=on_epoch_end,
        )

    def _job_on_both(self, on_epoch_end: OnEpochEnd, epochs: int) -> TrainingJob:
        rows = np.arange(len(self.targets))
        job = self._job(rows, rows[self.n_train :], self.head_logits, on_epoch_end, "-refit")
        return replace(job, epochs=epochs, give_up_after=0)


def _read_logits(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        logits = read_arrays(file)["logits"]
        return logits if logits.shape == shape else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        print(f"{file}: cannot be used ({error}); the fold is trained again", file=sys.stderr)
        return None
