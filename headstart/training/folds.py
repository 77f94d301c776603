"""Cross-validation of fine-tuning over train and val, if val is too small to judge it: each example is scored by a
network that has not seen it.

What is judged is the way of training, as in any cross-validation; what is shipped is then trained that way.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from headstart.errors import UserError
from headstart.framework import keras
from headstart.head_config import ResolvedHead
from headstart.training import calibration, checkpoint, heads, networks
from headstart.training.examples import FeatureSet
from headstart.training.fine_tuning import OnEpochEnd, TrainingJob, train
from headstart.training.verdict import PairedScores


@dataclass(frozen=True)
class Fold:
    """A part of the examples, and a head trained on the others.

    Attributes:
        train_rows: (n,) the rows that are trained on.
        held_out: (m,) the rows that it is scored on.
        head: the weights of a head that was trained on `train_rows`.
        logits: (m, n_classes) float32 of that head, for `held_out`.
    """

    train_rows: np.ndarray
    held_out: np.ndarray
    head: list[np.ndarray]
    logits: np.ndarray

    def digest(self) -> bytes:
        """A fingerprint of all that shapes what is trained from here."""
        arrays = [self.train_rows, self.held_out, *self.head]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).digest()


def make_folds(
    examples: FeatureSet, groups: np.ndarray, number: int, n_classes: int, settings: ResolvedHead, seed: int
) -> list[Fold]:
    """Split the examples, and train a head for each fold.

    Args:
        groups: (N,); examples of a group are in one fold.
        number: of folds.
        settings: how the head was trained, with nothing left open.

    Raises:
        UserError: if each class has fewer examples than there are folds.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a class with fewer examples than there are folds
            splitter = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
            parts = list(splitter.split(groups, examples.targets, groups))
    except ValueError as error:
        raise UserError(
            f"params.yaml: fine_tune.folds {number}: no class has so many examples in train and val; lower it, or 0"
        ) from error
    trained = []
    for train_rows, held_out in parts:
        if not len(held_out):
            continue
        # Heads that stop early do so on the examples that they are scored on: the bar is a little too high.
        others = examples.subset(held_out)
        head, _ = heads.train(examples.subset(train_rows), others, n_classes, settings, seed, progress=False)
        trained.append((train_rows, held_out, head, heads.logits(head, others)))
    # One for all: one each, fitted to the few examples that it is scored on, would flatter the heads.
    rows = np.concatenate([held_out for _, held_out, *_ in trained])
    temperature = calibration.temperature(np.concatenate([logits for *_, logits in trained]), examples.targets[rows])
    folds = []
    for train_rows, held_out, head, logits in trained:
        networks.divide_logits(head, temperature)
        folds.append(Fold(train_rows, held_out, head.get_weights(), logits / np.float32(temperature)))
    return folds


@dataclass(frozen=True)
class CrossValResult:
    """What the folds say of (N,) examples.

    Attributes:
        scores: of the heads, and of the networks after their last epoch.
        temperature: of the logits of these networks.
    """

    scores: PairedScores
    temperature: float

    def metrics(self) -> dict[str, float]:
        """Log loss and accuracy of both."""
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
    """Train `network`, which ends with the layers of `head`, once per fold; it is left as it was.

    Args:
        targets: (N,) int32, of all examples.
        checkpoints: the start of the names of files, one per fold, from which a killed run resumes.
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
            # A training that broke off, or gives NaN, has learned nothing: all classes are equally likely.
            finished = result.last_epoch == epochs and np.isfinite(result.logits).all()
            tuned = result.logits if finished else np.zeros_like(fold.logits)
            with contextlib.suppress(OSError):  # then a kill costs more
                checkpoint.write_arrays(file, logits=tuned)
            del result
            gc.collect()  # the optimizer, which keeps itself alive
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
    return CrossValResult(scores, calibration.temperature(logits[1], targets))


def _read_logits(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            logits = arrays["logits"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # it is trained again
        return None
    return logits if logits.shape == shape else None
