"""The trainings that fine-tuning consists of: on train, in folds, and the refit on train and val."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.config import FineTune
from headstart.features.activations import Inputs
from headstart.framework import keras
from headstart.training import defaults, networks
from headstart.training.batches import Batches
from headstart.training.checkpoint import Checkpoint
from headstart.training.examples import class_weights
from headstart.training.fine_tuning import OnEpochEnd, TrainingJob, TrainResult, train
from headstart.training.folds import CrossValResult, Fold, cross_validate


@dataclass(frozen=True)
class Plan:
    """What all trainings share.

    Attributes:
        settings: as in params.yaml.
        network: inputs -> logits; its trainable variables are trained.
        head: the model whose layers are its last ones.
        start: the state of the network before training.
        inputs: of the examples of train, then of val.
        targets: (N,) int32, of these examples.
        n_train: how many of them are in train.
        scales: a factor of the learning rate for each trainable variable.
        epochs: of every training.
        views: how many augmented views each example has.
        refits: whether a better network is trained again on train and val.
        seed: of the order of examples, and of mixup.
        checkpoints: how the names of the checkpoints begin.
        chosen: the settings that params.yaml left open, by name.
    """

    settings: FineTune
    network: keras.Model
    head: keras.Model
    start: list[np.ndarray]
    inputs: Inputs
    targets: np.ndarray
    n_train: int
    scales: list[float]
    epochs: int
    views: int
    refits: bool
    seed: int
    checkpoints: Path
    chosen: dict[str, Any]

    def cross_validate(self, folds: Sequence[Fold]) -> CrossValResult:
        """Train once per fold, and restore the network."""
        return cross_validate(
            self.network,
            self.head,
            folds,
            lambda fold, on_epoch_end: self._job(fold.train_rows, fold.held_out, on_epoch_end),
            self.targets,
            self.epochs,
            self.checkpoints,
        )

    def train(self, on_epoch_end: OnEpochEnd) -> TrainResult:
        """Train on train, and score each epoch on val."""
        rows = np.arange(len(self.targets))
        train_rows, val_rows = rows[: self.n_train], rows[self.n_train :]
        return train(self._job(train_rows, val_rows, on_epoch_end, self._checkpoint(""), watch_val=True))

    def refit(self, result: TrainResult) -> bool:
        """Train again from the start, in the same way but on train and val.

        Args:
            result: of the training on train.

        Returns:
            Whether the refit is kept. It is discarded, and the network restored, if its loss became NaN or if it
            classifies fewer examples of val correctly than the network that has not seen them.
        """
        gc.collect()  # the optimizer of `train` has reference cycles
        before, rows = networks.get_state(self.network), np.arange(len(self.targets))
        networks.set_state(self.network, self.start)
        print(f"fine_tune: refitting on train + val, {len(rows):,} examples instead of {self.n_train:,}")
        refitted = train(self._job(rows, rows[self.n_train :], lambda _: None, self._checkpoint("-refit")))
        if refitted.last_epoch == self.epochs and refitted.n_correct >= result.n_correct:
            return True
        networks.set_state(self.network, before)
        print("fine_tune: the refit is worse on val and is discarded; the network trained on train alone is kept")
        return False

    def delete_checkpoints(self) -> None:
        """Delete all checkpoints: to be called when the results are written."""
        with contextlib.suppress(OSError):
            for file in self.checkpoints.parent.glob(f"{self.checkpoints.name}*.npz"):
                file.unlink(missing_ok=True)

    def _checkpoint(self, name: str) -> Checkpoint:
        return Checkpoint(self.checkpoints.with_name(f"{self.checkpoints.name}{name}.npz"))

    def _job(
        self,
        train_rows: np.ndarray,
        held_out: np.ndarray,
        on_epoch_end: OnEpochEnd,
        checkpoint: Checkpoint | None = None,
        watch_val: bool = False,
    ) -> TrainingJob:
        settings = self.settings
        weights = class_weights(self.targets[train_rows], self.head.output_shape[-1], settings.class_weight)

        def batches(rows: np.ndarray, views: int, seed: int | None) -> Batches:
            size = settings.batch_size
            return Batches(self.inputs, self.targets, rows, weights, size, views, seed, settings.mixup)

        return TrainingJob(
            network=self.network,
            train_set=batches(train_rows, self.views, self.seed),
            held_out=batches(held_out, 0, None),
            scales=self.scales,
            settings=settings,
            epochs=self.epochs,
            ema_momentum=defaults.choose_ema_momentum(settings, self.epochs, len(train_rows)),
            checkpoint=checkpoint,
            watch_val=watch_val,
            on_epoch_end=on_epoch_end,
        )
