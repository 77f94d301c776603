"""The curves of a training, and the weights of its best or last epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from headstart.errors import UserError

if TYPE_CHECKING:
    import keras

COLUMNS = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]


class History:
    """Records epochs and keeps the weights of the one with the lowest val_loss, as early stopping needs them.

    Args:
        keep_last: keep the weights of the last epoch instead.

    Attributes:
        rows: one per epoch: its number (counted from 1; 0 is before any training) and some or all of COLUMNS.
        kept: the row of the epoch whose weights are kept.
        weights: the values of the variables after that epoch.
    """

    def __init__(self, variables: Sequence[keras.Variable], keep_last: bool = False) -> None:
        self._variables, self._keep_last = variables, keep_last
        self.rows: list[dict[str, Any]] = []
        self.kept: dict[str, Any] = {}
        self.weights: list[np.ndarray] = []

    def append(self, epoch: int, **values: float) -> None:
        """Record `epoch`, after which the variables are as they are now."""
        row = {"epoch": epoch, **{name: float(value) for name, value in values.items()}}
        self.rows.append(row)
        if self._keep_last or row["val_loss"] < self.kept.get("val_loss", float("inf")):
            self.kept = row
            self.weights = [np.array(variable.numpy()) for variable in self._variables]

    def restore(self) -> None:
        """Restore the weights that are kept. Raises UserError if the loss was NaN from the first epoch on."""
        if not self.kept:
            raise UserError("loss is NaN from the first epoch on: training diverged; lower the learning_rate")
        for variable, value in zip(self._variables, self.weights, strict=True):
            variable.assign(value)

    def epochs_without_improvement(self) -> int:
        """Return how many epochs have passed since the one that is kept."""
        return self.rows[-1]["epoch"] - self.kept.get("epoch", 0)

    def curves(self) -> pd.DataFrame:
        """Return a row per epoch, counted from 1."""
        return pd.DataFrame([row for row in self.rows if row["epoch"] > 0], columns=COLUMNS)
