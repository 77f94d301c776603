"""Cross-validation of fine-tuning over train and val, for when val is too small to show whether it helps.

Each example is scored by a head and by a network that were trained without it. Folds end early if fine-tuning is
clearly worse.
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
    """Split the examples into folds, and train a head for each.

    Args:
        groups: (N,); examples of a group are in one fold.
        settings: how the heads to start from are trained, with nothing left open.
        head_logits: (N, n_classes) by heads that have not seen the example; if some are NaN, the heads to start from
            are those to beat.

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
        to_beat = head_logits[held_out] if np.isfinite(head_logits).all() else logits / np.float32(temperature)
        folds.append(Fold(train_rows, held_out, head.get_weights(), to_beat))
    return folds


def load_folds(settings: FineTune, found: HeadReport, last: int, seed: int) -> list[Fold]:
    """Return the folds of cross-validation; none if val is used instead.

    Args:
        last: how many features the last layer gives.
    """
    train_set, val_set = load_features("train").prefix(last), load_features("val").prefix(last)
    targets = np.concatenate([train_set.targets, val_set.targets])
    groups = np.concatenate([load_split(name).connected.to_numpy() for name in ("train", "val")])
    n_folds = choose_folds(settings, len(val_set), targets, groups)
    if not n_folds:
        return []
    if found.choice and not np.isfinite(found.logits).all():
        raise UserError(
            f"{PARAMS_FILE}: fine_tune.folds {n_folds}: train_head has no folds of so many examples to compare with; "
            "set it to null, or ask for a head of your own, e.g. with train_head.hidden=[]"
        )
    print(f"fine_tune: up to {n_folds + 1} trainings: in {n_folds} folds of train and val, then of the network to ship")
    examples, n_classes = concat(train_set, val_set), found.logits.shape[1]
    return make_folds(examples, groups, n_folds, n_classes, found.settings, seed, found.logits)


@dataclass(frozen=True)
class CrossValResult:
    """The scores of the heads and of the fine-tuned networks.

    Attributes:
        logits: (N, n_classes) of the networks, 0 for examples of folds that were not trained.
        temperature: for these.
        trained: in how many folds a network was trained; the scores are of those.
    """

    scores: PairedScores
    logits: np.ndarray
    temperature: float
    trained: int

    def metrics(self) -> dict[str, float]:
        """Return log loss and accuracy of both."""
        return {
            f"{name}_folds_{kind}": float(values[place].mean())
            for place, name in enumerate(("head", "tuned"))
            for kind, values in (("loss", self.scores.losses), ("accuracy", self.scores.correct))
        }
