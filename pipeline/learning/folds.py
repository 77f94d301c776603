"""Judging fine-tuning by folds of train and val, where val is too small to tell: an image judges what never saw it.

That is the way of training, as in any cross-validation; what is shipped is then trained that way on all of train.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from pipeline.errors import UserError
from pipeline.learning import calibration, heads, networks
from pipeline.learning.engine import keras
from pipeline.learning.fine_tuning import Batches, Job, tune
from pipeline.learning.heads import Examples
from pipeline.learning.verdict import Candidates
from pipeline.params import HeadChoice


@dataclass(frozen=True)
class Fold:
    """A part of the images, and what was trained on the others.

    Attributes:
        seen: (n,) the rows that are trained on.
        held_out: (m,) the rows that judge.
        head: the weights of a head that was trained on `seen`.
    """

    seen: np.ndarray
    held_out: np.ndarray
    head: list[np.ndarray]


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
        UserError: where there are fewer images of each class, or groups, than folds.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a class with fewer images than there are folds
            kind = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
            parts = list(kind.split(groups, examples.targets, groups))
    except ValueError as error:
        raise UserError(f"params.yaml: fine_tune.folds {number}: {error}; lower it, or 0 for val") from error
    folds = []
    for seen, held_out in parts:
        if not len(held_out):
            continue
        # Where heads stop at the best epoch, these do so on the images that judge them: the bar is a little too high.
        others = examples.some(held_out)
        head, _ = heads.train(examples.some(seen), others, n_classes, choice, seed, bar=False)
        networks.divide_logits(head, calibration.temperature(heads.logits(head, others), others.targets))
        folds.append(Fold(seen, held_out, head.get_weights()))
    return folds


@dataclass(frozen=True)
class Judged:
    """What the folds say of (N,) images.

    Attributes:
        candidates: the heads, and the networks after their last epoch.
        temperature: of the logits of these networks.
    """

    candidates: Candidates
    temperature: float

    def metrics(self) -> dict[str, float]:
        """Log loss and accuracy of both."""
        return {
            f"{name}_folds_{kind}": float(values[place].mean())
            for place, name in enumerate(("head", "tuned"))
            for kind, values in (("loss", self.candidates.losses), ("accuracy", self.candidates.right))
        }


def judge(
    network: keras.Model,
    head: keras.Model,
    folds: Sequence[Fold],
    job: Callable[[int, Fold, Callable[[dict[str, float]], None]], Job],
    targets: np.ndarray,
    epochs: int,
) -> Judged:
    """Train `network`, which ends with the layers of `head`, once a fold; it is left as it came.

    Args:
        job: makes the training of a fold, by its number and by what is to be told its epochs.
        targets: (N,) int32, of all images.
    """
    start, logits = network.get_weights(), np.zeros((2, len(targets), head.output_shape[-1]), np.float32)
    progress = tqdm(total=len(folds) * epochs, desc=f"fine_tune: {len(folds)} folds", unit=" epochs", disable=None)

    def tell(number: int, row: dict[str, float]) -> None:
        progress.update(number * epochs + row["epoch"] - progress.n)

    for number, fold in enumerate(folds):
        network.set_weights(start)
        head.set_weights(fold.head)
        training = job(number, fold, partial(tell, number))
        logits[0, fold.held_out] = _logits(network, training.val_set)
        tune(training)
        logits[1, fold.held_out] = _logits(network, training.val_set)
        progress.update((number + 1) * epochs - progress.n)
    progress.close()
    network.set_weights(start)
    candidates = Candidates.of(targets, 0)
    for each in logits:
        candidates.add(each)
    return Judged(candidates, calibration.temperature(logits[1], targets))


def _logits(network: keras.Model, batches: Batches) -> np.ndarray:
    """Zeros where they are no numbers: a network that knows nothing."""
    return np.nan_to_num(network.predict(batches, verbose=0), nan=0, posinf=0, neginf=0)
