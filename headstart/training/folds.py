"""Cross-validation of fine-tuning over train and val, for when val is too small to show whether it helps.

Each example is scored by a head and by a network that were trained without it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from headstart.framework import keras
from headstart.head_config import ResolvedHead
from headstart.training import calibration, checkpoint, heads, networks
from headstart.training.examples import FeatureSet, split_folds
from headstart.training.fine_tuning import OnEpochEnd, TrainingJob, train
from headstart.training.verdict import PairedScores


@dataclass(frozen=True)
class Fold:
    """Held-out examples, and a head trained on the others.

    Attributes:
        train_rows: (n,) the rows to train on.
        held_out: (m,) the rows to score.
        head: weights of a head that was trained on `train_rows`.
        logits: (m, n_classes) float32 of that head for `held_out`.
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
    """The result of cross-validation.

    Attributes:
        scores: of the heads, and of the fine-tuned networks.
        temperature: fitted to the logits of the fine-tuned networks.
    """

    scores: PairedScores
    temperature: float

    def metrics(self) -> dict[str, float]:
        """Return log loss and accuracy of both."""
        return {
            f"{name}_folds_{kind}": float(values[place].mean())
            for place, name in enumerate(("head", "tuned"))
            for kind, values in (("loss", self.scores.losses), ("accuracy", self.scores.correct))
        }


def cross_validate(
    network: keras.Model,
    head: keras.Model,
    folds: Sequence[Fold],
    make_job: Callable[[Fold, OnEpochEnd], TrainingJob],
    targets: np.ndarray,
    epochs: int,
    checkpoints: Path,
) -> CrossValResult:
    """Train `network`, which ends with the layers of `head`, once per fold, and restore it.

    Args:
        targets: (N,) int32, of all examples.
        checkpoints: how the names of the folds' files begin, from which a killed run resumes.
    """
    start = networks.get_state(network)
    logits = np.zeros((2, len(targets), head.output_shape[-1]), np.float32)
    progress = tqdm(total=len(folds) * epochs, desc=f"fine_tune: {len(folds)} folds", unit=" epochs", disable=None)

    def on_epoch_end(epochs_before: int, row: dict[str, float]) -> None:
        progress.update(epochs_before + row["epoch"] - progress.n)

    for number, fold in enumerate(folds):
        file = checkpoints.with_name(f"{checkpoints.name}-fold{number}.npz")
        tuned = _read_logits(file, fold.logits.shape)
        resumed = ", as it was before the run was stopped" if tuned is not None else ""
        if tuned is None:
            networks.set_state(network, start)
            head.set_weights(fold.head)
            result = train(make_job(fold, partial(on_epoch_end, number * epochs)))
            # A training that ended with NaN has learned nothing: all classes are equally likely.
            finished = result.last_epoch == epochs and np.isfinite(result.logits).all()
            tuned = result.logits if finished else np.zeros_like(fold.logits)
            with contextlib.suppress(OSError):  # a killed run then starts this fold again
                checkpoint.write_arrays(file, logits=tuned)
            del result
            gc.collect()  # the optimizer has reference cycles
        logits[:, fold.held_out] = fold.logits, tuned
        before, after = (logits[:, fold.held_out].argmax(axis=2) == targets[fold.held_out]).sum(axis=1)
        progress.update((number + 1) * epochs - progress.n)
        name = f"fold {number + 1} of {len(folds)}{resumed}"
        progress.write(f"fine_tune: {name}: {after} of {len(tuned)} classified correctly, {before} by the head")
    progress.close()
    networks.set_state(network, start)
    scores = PairedScores.empty(targets)
    for each in logits:
        scores.add(each)
    return CrossValResult(scores, calibration.fit_temperature(logits[1], targets))


def _read_logits(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            logits = arrays["logits"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # the fold is trained again
        return None
    return logits if logits.shape == shape else None
