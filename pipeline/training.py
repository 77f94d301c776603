"""What training a head and fine-tuning share."""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd

from pipeline.engine import keras
from pipeline.errors import UserError


def verbosity() -> int:
    """Keras' `verbose`: a bar with rate and ETA on a terminal, else a line an epoch."""
    return 1 if sys.stdout.isatty() else 2


class KeepBest(keras.callbacks.Callback):
    """Notes the curves, and leaves the model with the weights of the epoch whose val_loss was the lowest.

    Attributes:
        best: the row of that epoch: epoch (counted from 1), loss, accuracy, val_loss, val_accuracy, learning_rate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.best: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self._weights: list[Any] = []

    def note(self, epoch: int, logs: dict[str, float]) -> None:
        """Take the model as it stands for the result of `epoch`; 0 is before any training."""
        row = {"epoch": epoch, **{name: float(value) for name, value in logs.items()}}
        self._rows.append(row)
        if row["val_loss"] < self.best.get("val_loss", float("inf")):
            self.best = row
            self._weights = [keras.ops.convert_to_numpy(weight) for weight in self.model.trainable_weights]

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.note(epoch + 1, {**(logs or {}), "learning_rate": float(self.model.optimizer.learning_rate)})

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        for weight, value in zip(self.model.trainable_weights, self._weights, strict=False):
            weight.assign(value)

    def summary(self) -> str:
        """The epoch that was kept, in words."""
        return (
            f"val loss {self.best['val_loss']:.4f}, the lowest, after epoch {self.best['epoch']} "
            f"(accuracy {self.best['val_accuracy']:.4f})"
        )

    def curves(self) -> pd.DataFrame:
        """A row an epoch, counted from 1: nothing is known of the training images before the first.

        Raises:
            UserError: where the loss was never a number.
        """
        if not self.best:
            raise UserError("the loss is not a number after any epoch: training diverged; lower the learning_rate")
        columns = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]
        return pd.DataFrame([row for row in self._rows if row["epoch"] > 0], columns=columns)
