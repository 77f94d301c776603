"""Folds of train that are held out one after the other, for when val is too small to show whether fine-tuning helps.

Each example is scored by a head and by a network that were trained without it. Folds end as soon as the verdict is
clear.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from headstart.config import PARAMS_FILE
from headstart.data.prepared import load_split
from headstart.errors import UserError
from headstart.fine_tune_config import FineTune
from headstart.head_config import ResolvedHead
from headstart.training import calibration, heads, networks
from headstart.training.defaults import choose_folds
from headstart.training.examples import FeatureSet, concat, load_features, split_folds
from headstart.training.head_report import HeadReport
from headstart.training.verdict import PairedScores


@dataclass(frozen=True)
class Fold:
    """The rows (n,) to train on, those (m,) to score, and a head that was trained on the former, to start from.

    Attributes:
        head: its weights.
        logits: (m, n_classes) float32 for `held_out` of the head that fine-tuning must beat.
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
    examples: FeatureSet,
    groups: np.ndarray,
    n_folds: int,
    n_classes: int,
    settings: ResolvedHead,
    seed: int,
    head_logits: np.ndarray,
) -> list[Fold]:
    """Split the examples of train into folds, and train a head for each, on all others and on val.

    Args:
        examples: of train, then of val.
        groups: (n_train,); examples of a group are in one fold.
        settings: how the heads to start from are trained, with nothing left open.
        head_logits: (N, n_classes) by heads that have not seen the example; if some are NaN, the heads to start from
            are those to beat.

    Raises:
        UserError: if each class has fewer examples than there are folds.
    """
    trained, val = [], np.arange(len(groups), len(examples))
    for others, held_out in split_folds(examples.targets[: len(groups)], groups, n_folds, seed, "fine_tune.folds"):
        train_rows = np.concatenate([others, val])
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
        to_beat = head_logits[held_out] if np.isfinite(head_logits).all() else logits / np.float32(temperature)
        folds.append(Fold(train_rows, held_out, head.get_weights(), to_beat))
    return folds


def load_folds(settings: FineTune, found: HeadReport, last: int, seed: int) -> list[Fold]:
    """Return the folds of train; none if val alone decides.

    Args:
        last: how many features the last layer gives.
    """
    train_set, val_set = load_features("train").prefix(last), load_features("val").prefix(last)
    groups = load_split("train").connected.to_numpy()
    n_folds = choose_folds(settings, len(val_set), train_set.targets, groups)
    if not n_folds:
        return []
    if found.choice and not np.isfinite(found.logits).all():
        raise UserError(
            f"{PARAMS_FILE}: fine_tune.folds {n_folds}: train_head has no folds of so many examples to compare with; "
            "set it to null, or ask for a head of your own, e.g. with train_head.hidden=[]"
        )
    print(f"fine_tune: training on train, then in up to {n_folds} folds of it, until it is clear what is better")
    examples, n_classes = concat(train_set, val_set), found.logits.shape[1]
    return make_folds(examples, groups, n_folds, n_classes, found.settings, seed, found.logits)


@dataclass(frozen=True)
class Comparison:
    """The scores of the heads and of the fine-tuned networks, on val and on the folds that were trained.

    Attributes:
        temperature: for the logits of the networks.
        folds: in how many folds a network was trained.
    """

    scores: PairedScores
    temperature: float
    folds: int

    def metrics(self) -> dict[str, float]:
        """Return log loss and accuracy of both."""
        return {
            f"{name}_held_out_{kind}": float(values[place].mean())
            for place, name in enumerate(("head", "tuned"))
            for kind, values in (("loss", self.scores.losses), ("accuracy", self.scores.correct))
        }
