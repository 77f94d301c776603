"""What fine_tune does about params that are null: it follows from the data and from what the head recognizes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd

from headstart.backbones.base import Backbone
from headstart.features.activations import RawExamples
from headstart.features.views import ViewLoader
from headstart.fine_tune_config import FineTune, ResolvedFineTune
from headstart.framework import keras
from headstart.modalities import Augmentation
from headstart.training import networks
from headstart.training.examples import FOLDS, possible_folds

# As many steps for all data of up to 20,000 examples, within bounds for the epochs, in the spirit of BiT's HyperRule
# (https://arxiv.org/abs/1912.11370, section 3.3).
STEPS = {"quick": 250, "default": 400, "thorough": 750}
EPOCHS = {"quick": (3, 8), "default": (5, 30), "thorough": (5, 30)}
MAX_VIEWS = 9
REFIT_SHARE = 3  # a refit that starts from the trained network takes one part in so many of the epochs
# The share of all steps that the exponential moving average of the weights reaches back. On flowers the average's val
# loss changes smoothly from epoch to epoch, that of the weights themselves does not.
AVERAGED = 0.2
# With fewer val examples than the first, and with train at most the second, folds of train are held out, too.
SMALL_VAL, MAX_FOLDED = 50, 1000
PROBES = 1000  # examples of val on which augmentations are tried
# An augmentation is too strong if the head no longer classifies this share of what it classified correctly before: a
# crop or a mirror image of an example may belong to another class, as with digits.
STILL_RECOGNIZED = 0.9


def choose_schedule(settings: FineTune, n_examples: int, folds: bool = False) -> tuple[int, int]:
    """Return the number of epochs and of augmented views of each training example.

    Args:
        folds: whether there is a training for each fold; then half as many epochs are enough, if effort is default.
    """
    wanted = STEPS[settings.effort] / -(-n_examples // settings.batch_size)
    least, most = EPOCHS[settings.effort]
    if folds and settings.effort == "default":
        most //= 2
    epochs = settings.epochs or int(np.clip(round(wanted), least, most))
    return epochs, min(epochs - 1, MAX_VIEWS) if settings.views is None else settings.views


def choose_refit_epochs(settings: FineTune, epochs: int) -> int:
    """Return how many epochs a refit takes: as many as before, from the same start, if effort is thorough."""
    return epochs if settings.effort == "thorough" else max(1, round(epochs / REFIT_SHARE))


def choose_ema_momentum(settings: FineTune, epochs: int, n_examples: int) -> float:
    """Return the momentum of the exponential moving average of the weights; 0 means none."""
    steps = epochs * -(-n_examples // settings.batch_size)
    return max(0.0, 1 - 1 / (AVERAGED * steps)) if settings.ema is None else settings.ema


def resolve_fine_tune(settings: FineTune, backbone: Backbone) -> ResolvedFineTune:
    """Return `settings` with learning rate and label smoothing, where they are null those that suit the backbone."""
    given = settings.model_dump()
    chosen = {name: getattr(backbone, name) for name in ("learning_rate", "label_smoothing") if given[name] is None}
    return ResolvedFineTune(**{**given, **chosen})


def choose_folds(settings: FineTune, n_val: int, targets: np.ndarray, groups: np.ndarray) -> int:
    """Return the number of folds of train, 0 if val alone decides: one less than FOLDS if val, the first, is small.

    Args:
        targets, groups: (n_train,) of the examples of train.
    """
    if settings.folds is not None:
        return settings.folds
    possible = min(FOLDS - 1, possible_folds(targets, groups))
    return possible if n_val < SMALL_VAL and n_val + len(targets) <= MAX_FOLDED and possible > 1 else 0


def choose_augmentation(
    settings: FineTune, network: keras.Model, examples: pd.DataFrame, loader: ViewLoader, seed: int
) -> Augmentation | None:
    """Return the augmentation that `settings` ask for, or the strongest with which examples are still recognized.

    Args:
        network: the encoder with the head.
        examples: of val.
    """
    sample = examples.sample(min(PROBES, len(examples)), random_state=seed)

    def correct(augmentation: Augmentation | None, view: int) -> np.ndarray:
        changed = RawExamples(sample, replace(loader, augmentation=augmentation))
        batches = changed.batches(view, networks.PREDICTION_BATCH)
        predicted = [networks.predict(network, batch, networks.PREDICTION_BATCH).argmax(axis=1) for batch in batches]
        return np.concatenate(predicted) == sample.target.to_numpy()

    correct_as_is = cache(lambda: correct(None, 0))

    def still_recognized(augmentation: Augmentation, view: int) -> bool:
        known = correct_as_is()
        return bool(known.any() and correct(augmentation, view)[known].mean() >= STILL_RECOGNIZED)

    return loader.modality.choose_augmentation(settings, still_recognized)
