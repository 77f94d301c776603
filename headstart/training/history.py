"""What training a head and fine-tuning share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from headstart.errors import UserError
from headstart.framework import keras

COLUMNS = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]


class Epochs:
    """Notes the curves, and the weights of one epoch: that whose val_loss was the lowest.

    Args:
        last: whether it is the last one, whatever its val_loss.

    Attributes:
        rows: a row an epoch: epoch (counted from 1; 0 is before any training), and what is known of the other COLUMNS.
        kept: the row of that epoch.
        weights: the values of the variables after it.
    """

    def __init__(self, variables: Sequence[keras.Variable], last: bool = False) -> None:
        self._variables, self._last = variables, last
        self.rows: list[dict[str, Any]] = []
        self.kept: dict[str, Any] = {}
        self.weights: list[np.ndarray] = []

    def note(self, epoch: int, **values: float) -> None:
        """Take the variables as they stand for the result of `epoch`."""
        row = {"epoch": epoch, **{name: float(value) for name, value in values.items()}}
        self.rows.append(row)
        if self._last or row["val_loss"] < self.kept.get("val_loss", float("inf")):
            self.kept = row
            self.weights = [keras.ops.convert_to_numpy(variable) for variable in self._variables]

    def keep_last(self) -> None:
        """Take the last epoch, whatever its val_loss: what has converged is not to be stopped on the way.

        Raises:
            UserError: where its loss is not a number.
        """
        if not np.isfinite([self.rows[-1]["loss"], self.rows[-1]["val_loss"]]).all():
            raise UserError(
                "the loss is not a number: training diverged; features that are no numbers, or too large ones, do that"
            )
        self.kept = self.rows[-1]
        self.weights = [keras.ops.convert_to_numpy(variable) for variable in self._variables]
        self.restore()

    def restore(self) -> None:
        """Give the variables the values that they had after that epoch.

        Raises:
            UserError: where the loss was never a number.
        """
        if not self.kept:
            raise UserError("the loss is not a number after any epoch: training diverged; lower the learning_rate")
        for variable, value in zip(self._variables, self.weights, strict=True):
            variable.assign(value)

    def epochs_since(self) -> int:
        """How many epochs that one lies back."""
        return self.rows[-1]["epoch"] - self.kept.get("epoch", 0)

    def curves(self) -> pd.DataFrame:
        """A row an epoch, counted from 1: nothing is known of the training images before the first."""
        return pd.DataFrame([row for row in self.rows if row["epoch"] > 0], columns=COLUMNS)
