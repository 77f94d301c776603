"""What fine_tune does where params.yaml leaves it open: it follows from the data, and what the head makes of them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from headstart.config import FineTune
from headstart.data.files import Source
from headstart.features.activations import RawExamples
from headstart.framework import keras
from headstart.modalities import Augmentation, Modality
from headstart.training import networks

# Steps of training, in the spirit of BiT's HyperRule (https://arxiv.org/abs/1912.11370, section 3.3): the same for all
# data of up to 20,000 images, within bounds for the epochs.
STEPS, EPOCHS, MAX_VIEWS = 750, (5, 30), 9
# The share of all steps that the average of the weights reaches back over. On flowers the val loss of the average does
# not jump from epoch to epoch, as that of the weights themselves does.
AVERAGED = 0.2
# Below so many images of val, of at most so many with train, as many folds judge in its place.
FEW, AT_MOST, FOLDS = 50, 1000, 5
# Up to so many images of train and val the network that earned its place is trained again, on both.
REFIT_AT_MOST = 5000
PROBES = 1000  # images of val that tell how they may be changed
# What the head knew of the plain images, it must still know of this share of the changed ones: a crop or a mirror image
# that it cannot tell any more may be of another class, as a digit is.
STILL_KNOWN = 0.9


def schedule(choice: FineTune, images: int) -> tuple[int, int]:
    """Epochs, and augmented views of an image: as `choice` says, or by the number of training images."""
    epochs = choice.epochs or int(np.clip(round(STEPS / -(-images // choice.batch_size)), *EPOCHS))
    return epochs, min(epochs - 1, MAX_VIEWS) if choice.views is None else choice.views


def ema_momentum(choice: FineTune, epochs: int, images: int) -> float:
    """Of the average of the weights: as `choice` says, or by the number of steps; 0: there is none."""
    steps = epochs * -(-images // choice.batch_size)
    return max(0.0, 1 - 1 / (AVERAGED * steps)) if choice.ema is None else choice.ema


def folds(choice: FineTune, val_images: int, targets: np.ndarray, groups: np.ndarray) -> int:
    """How many judge: as `choice` says, or FOLDS where val is small and the images can be split so; 0: val does.

    Args:
        targets, groups: (N,) of the images of train and val.
    """
    if choice.folds is not None:
        return choice.folds
    most = min(FOLDS, int(np.bincount(targets).max()), len(np.unique(groups)))
    return most if val_images < FEW and len(targets) <= AT_MOST and most > 1 else 0


def refit(choice: FineTune, images: pd.DataFrame) -> bool:
    """Whether what earned its place is trained on train and val: as `choice` says, or where these are few images.

    A val that the source brings is for its owner to give away.

    Args:
        images: of train and val.
    """
    given = images.given[images.split == "val"]
    return len(images) <= REFIT_AT_MOST and not given.any() if choice.refit is None else choice.refit


def augmentation(
    settings: FineTune,
    network: keras.Model,
    examples: pd.DataFrame,
    source: Source,
    modality: Modality,
    size: int,
    seed: int,
) -> Augmentation | None:
    """How training examples are changed: as `settings` say, or as much as leaves them what they are.

    Args:
        network: the encoder with the head.
        examples: of val.
    """
    sample = examples.sample(min(PROBES, len(examples)), random_state=seed)

    def correct(augmentation: Augmentation | None, view: int) -> np.ndarray:
        batches = RawExamples(sample, source, modality, size, augmentation).batches(view, networks.PREDICTION_BATCH)
        answers = [networks.predict(network, batch, networks.PREDICTION_BATCH).argmax(axis=1) for batch in batches]
        return np.concatenate(answers) == sample.target.to_numpy()

    plain: list[np.ndarray] = []  # computed when it is first asked for

    def still_recognized(augmentation: Augmentation, view: int) -> bool:
        if not plain:
            plain.append(correct(None, 0))
        known = plain[0]
        return bool(known.any() and correct(augmentation, view)[known].mean() >= STILL_KNOWN)

    return modality.choose_augmentation(settings, still_recognized)
