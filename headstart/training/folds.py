"""Judging fine-tuning by folds of train and val, where val is too small to tell: an image judges what never saw it.

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

from headstart.config import HeadChoice
from headstart.errors import UserError
from headstart.framework import keras
from headstart.training import calibration, checkpoint, heads, networks
from headstart.training.examples import Examples
from headstart.training.fine_tuning import Job, tune
from headstart.training.verdict import States


@dataclass(frozen=True)
class Fold:
    """A part of the images, and what was trained on the others.

    Attributes:
        seen: (n,) the rows that are trained on.
        held_out: (m,) the rows that judge.
        head: the weights of a head that was trained on `seen`.
        logits: (m, n_classes) float32 of it, for `held_out`.
    """

    seen: np.ndarray
    held_out: np.ndarray
    head: list[np.ndarray]
    logits: np.ndarray

    def digest(self) -> bytes:
        """Of all that shapes what is trained from here."""
        arrays = [self.seen, self.held_out, *self.head]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).digest()


def together(train_set: Examples, val_set: Examples) -> Examples:
    """Both, train first; an image of val, which has no augmented views, stands in the place of its own."""
    features = np.concatenate([train_set.features, val_set.features])
    shape = (len(val_set), *train_set.views.shape[1:])
    plain = np.broadcast_to(val_set.features[:, None], shape).astype(train_set.views.dtype)
    targets = np.concatenate([train_set.targets, val_set.targets])
    return Examples(features, targets, np.concatenate([train_set.views, plain]))


def split(
    examples: Examples, groups: np.ndarray, number: int, n_classes: int, choice: HeadChoice, seed: int
) -> list[Fold]:
    """The folds, each with a head of its own.

    Args:
        groups: (N,); images of a group are in one fold.
        number: of folds.
        choice: how the head was trained, a settled one.

    Raises:
        UserError: where each class has fewer images than there are folds.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a class with fewer images than there are folds
            kind = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
            parts = list(kind.split(groups, examples.targets, groups))
    except ValueError as error:
        raise UserError(
            f"params.yaml: fine_tune.folds {number}: no class has so many images in train and val; lower it, or 0"
        ) from error
    trained = []
    for seen, held_out in parts:
        if not len(held_out):
            continue
        # Where heads stop at the best epoch, these do so on the images that judge them: the bar is a little too high.
        others = examples.some(held_out)
        head, _ = heads.train(examples.some(seen), others, n_classes, choice, seed, bar=False)
        trained.append((seen, held_out, head, heads.logits(head, others)))
    # One for all: one each, of the few images that it is then judged by, would make heads look better than they are.
    rows = np.concatenate([held_out for _, held_out, *_ in trained])
    temperature = calibration.temperature(np.concatenate([logits for *_, logits in trained]), examples.targets[rows])
    folds = []
    for seen, held_out, head, logits in trained:
        networks.divide_logits(head, temperature)
        folds.append(Fold(seen, held_out, head.get_weights(), logits / np.float32(temperature)))
    return folds


@dataclass(frozen=True)
class Judged:
    """What the folds say of (N,) images.

    Attributes:
        states: the heads, and the networks after their last epoch.
        temperature: of the logits of these networks.
    """

    states: States
    temperature: float

    def metrics(self) -> dict[str, float]:
        """Log loss and accuracy of both."""
        return {
            f"{name}_folds_{kind}": float(values[place].mean())
            for place, name in enumerate(("head", "tuned"))
            for kind, values in (("loss", self.states.losses), ("accuracy", self.states.right))
        }


def judge(
    network: keras.Model,
    head: keras.Model,
    folds: Sequence[Fold],
    job: Callable[[Fold, Callable[[dict[str, float]], None]], Job],
    targets: np.ndarray,
    epochs: int,
    kept: Path,
) -> Judged:
    """Train `network`, which ends with the layers of `head`, once a fold; it is left as it came.

    Args:
        job: makes the training of a fold, by it and by what is to be told its epochs.
        targets: (N,) int32, of all images.
        kept: the start of the names of files, a fold each, from which a judgement that was stopped goes on.
    """
    start = networks.values(network)
    logits = np.zeros((2, len(targets), head.output_shape[-1]), np.float32)
    progress = tqdm(total=len(folds) * epochs, desc=f"fine_tune: {len(folds)} folds", unit=" epochs", disable=None)

    def tell(before: int, row: dict[str, float]) -> None:
        progress.update(before + row["epoch"] - progress.n)

    for number, fold in enumerate(folds):
        file = kept.with_name(f"{kept.name}-fold{number}.npz")
        found = _read(file, fold.logits.shape)
        again = ", as it was before it was stopped" if found is not None else ""
        if found is None:
            networks.assign(network, start)
            head.set_weights(fold.head)
            tuned = tune(job(fold, partial(tell, number * epochs)))
            # What broke off, or makes no numbers, knows nothing: all classes alike.
            good = tuned.epochs.kept["epoch"] == epochs and np.isfinite(tuned.logits).all()
            found = tuned.logits if good else np.zeros_like(fold.logits)
            with contextlib.suppress(OSError):  # then a kill costs more
                checkpoint.write(file, logits=found)
            del tuned
            gc.collect()  # the optimizer, which keeps itself alive
        logits[:, fold.held_out] = fold.logits, found
        before, after = (logits[:, fold.held_out].argmax(axis=2) == targets[fold.held_out]).sum(axis=1)
        progress.update((number + 1) * epochs - progress.n)
        name = f"fold {number + 1} of {len(folds)}{again}"
        progress.write(f"fine_tune: {name}: {after} of {len(found)} images right, {before} by the head")
    progress.close()
    networks.assign(network, start)
    states = States.of(targets, 0)
    for each in logits:
        states.add(each)
    return Judged(states, calibration.temperature(logits[1], targets))


def _read(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            logits = arrays["logits"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # it is trained again
        return None
    return logits if logits.shape == shape else None
