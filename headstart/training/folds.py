"""Cross-validation of fine-tuning over train and val, for when val is too small to show whether it helps.

Each example is scored by a head and by a network that were trained without it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from headstart.head_config import ResolvedHead
from headstart.training import calibration, heads, networks
from headstart.training.examples import FeatureSet, split_folds
from headstart.training.verdict import PairedScores


@dataclass(frozen=True)
class Fold:
    """The rows (n,) to train on, those (m,) to score, and a head that was trained on the former.

    Attributes:
        head: its weights.
        logits: (m, n_classes) float32 of the head for `held_out`.
    """

    train_rows: np.ndarray
    held_out: np.ndarray
    head: list[np.ndarray]
    logits: np.ndarray

    def digest(self) -> bytes:
        """Return a fingerprint of everything that shapes a training on this fold."""
        arrays = [self.train_rows, self.held_out, *self.head]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).digest()


def make_folds(
    examples: FeatureSet, groups: np.ndarray, n_folds: int, n_classes: int, settings: ResolvedHead, seed: int
) -> list[Fold]:
    """Split the examples into folds, and train a head for each.

    Args:
        groups: (N,); examples of a group are in one fold.
        settings: how the head was trained, with nothing left open.

    Raises:
        UserError: if each class has fewer examples than there are folds.
    """
    trained = []
    for train_rows, held_out in split_folds(examples.targets, groups, n_folds, seed, "fine_tune.folds"):
        # Early stopping sees the examples that the head is scored on, which favours the head a little.
        held_out_set = examples.subset(held_out)
        head, _ = heads.train(examples.subset(train_rows), held_out_set, n_classes, settings, seed, progress=False)
        trained.append((train_rows, held_out, head, heads.logits(head, held_out_set)))
    # One temperature for all heads: one each, fitted to the few examples that it is scored on, would flatter them.
    targets = np.concatenate([examples.targets[held_out] for _, held_out, *_ in trained])
    temperature = calibration.fit_temperature(np.concatenate([logits for *_, logits in trained]), targets)
    folds = []
    for train_rows, held_out, head, logits in trained:
        networks.divide_logits(head, temperature)
        folds.append(Fold(train_rows, held_out, head.get_weights(), logits / np.float32(temperature)))
    return folds


@dataclass(frozen=True)
class CrossValResult:
    """The scores of the heads and of the fine-tuned networks, and a temperature for the logits of the latter."""

    scores: PairedScores
    temperature: float

    def metrics(self) -> dict[str, float]:
        """Return log loss and accuracy of both."""
        return {
            f"{name}_folds_{kind}": float(values[place].mean())
            for place, name in enumerate(("head", "tuned"))
            for kind, values in (("loss", self.scores.losses), ("accuracy", self.scores.correct))
        }
