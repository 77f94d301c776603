"""Tell images unlike those that the model was trained on: what they show, no class of it may be.

Command: python -m headstart.serving.ood [--rate 0.05] [--model models/model.keras]    # once, when the model is there

Reads the model, the manifest and the images of its splits; writes models/model.unlike.npz, which predict.py uses where
it lies beside the model. The score is the distance to the KTHth nearest of the training images, by features of unit
length (Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022). The features are those of the
shipped network: features/train.npy are of the backbone before fine-tuning. The limit is set on the test split, so that
of images like those `rate` are flagged at most. Not on val: fine_tune may have trained on it, and what was trained on
lies nearer. Told is how many of each half of test a limit flags that is set on the other half.
"""

from __future__ import annotations

import argparse
import math
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headstart import paths
from headstart.errors import UserError
from headstart.modalities.image.decode import file_hash
from headstart.outputs import Outputs

if TYPE_CHECKING:
    import keras

RATE = 0.05
KTH = 5
AT_MOST = {"train": 5000, "test": 4000}  # images of a split, drawn at random: more change little


class Unlike(NamedTuple):
    """What tells images unlike the training images.

    Attributes:
        features: (n, feature_dim) float32 of training images, each of length 1.
        limit: the distance above which an image is unlike them.
        rate: the share of images of the same kind that may be flagged.
        alarms, tested: how many images of the test split limits flag that are set on its other half, and of how many.
    """

    features: np.ndarray
    limit: float
    rate: float
    alarms: int
    tested: int

    def distances(self, features: np.ndarray) -> np.ndarray:
        """(n,) for (n, feature_dim), in units of the limit: above 1 an image is unlike the training images."""
        return distances(self.features, features) / self.limit


def normed(features: np.ndarray) -> np.ndarray:
    """Each row (feature_dim,) at length 1."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def distances(reference: np.ndarray, features: np.ndarray) -> np.ndarray:
    """(n,): how far each of `features` (n, d) is from the KTHth nearest of `reference` (m, d), of unit length."""
    squares = 2 - 2 * normed(features) @ reference.T
    return np.sqrt(np.maximum(np.partition(squares, KTH - 1, axis=1)[:, KTH - 1], 0))


def limit_for(scores: np.ndarray, rate: float) -> float:
    """What the score of a new image, like those of (n,) `scores`, is above with a chance of `rate` at most.

    Infinite where n is too small. That is split conformal prediction.
    """
    place = math.ceil((len(scores) + 1) * (1 - rate))
    return float(np.sort(scores)[place - 1]) if place <= len(scores) else math.inf


def alarms(scores: np.ndarray, rate: float) -> np.ndarray:
    """(n,) bool: which of `scores`, in an order drawn at random, are above the limit that the other half sets."""
    middle = len(scores) // 2
    first, second = scores[:middle], scores[middle:]
    return np.concatenate([first > limit_for(second, rate), second > limit_for(first, rate)])


def fit(train: np.ndarray, test: np.ndarray, rate: float) -> Unlike:
    """What tells images unlike those of train.

    Args:
        train, test: features (n, feature_dim) of the splits, those of test in an order drawn at random.

    Raises:
        UserError: where the splits are too small.
    """
    least = 2 * (math.ceil(1 / rate) - 1)
    if len(test) < least or len(train) < KTH:
        raise UserError(
            f"test has {len(test)} images and train {len(train)}; for a rate of {rate:g} test must have {least} or "
            f"more, and train {KTH}: allow a higher --rate, or bring more images"
        )
    reference = normed(train)
    found = distances(reference, test)
    return Unlike(reference, max(limit_for(found, rate), 1e-6), rate, int(alarms(found, rate).sum()), len(found))


def with_features(model: keras.Model) -> keras.Model:
    """The classifier, giving its features (N, feature_dim) beside the probabilities (N, n_classes)."""
    import keras

    image = x = keras.Input((None, None, 3), name="image")
    outputs = []
    for layer in model.layers[1:]:  # resize, trunk, head
        x = layer(x, training=False)
        outputs.append(x)
    return keras.Model(image, outputs[-2:])


def ask(both: keras.Model, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and probabilities of a batch, padded as `networks.predict` does it."""
    padded = np.zeros((max(batch_size, 2), *images.shape[1:]), np.float32)
    padded[: len(images)] = images
    features, probabilities = both.predict_on_batch(padded)
    return np.asarray(features)[: len(images)], np.asarray(probabilities)[: len(images)]


def ask_all(both: keras.Model, batches: Iterable[np.ndarray], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, feature_dim) and probabilities (n, n_classes) of all batches."""
    features, probabilities = zip(*(ask(both, batch, batch_size) for batch in batches), strict=True)
    return np.concatenate(features), np.concatenate(probabilities)


def file_of(model_file: Path) -> Path:
    """Where what `fit` makes lies: beside the model."""
    return model_file.with_suffix(".unlike.npz")


def save(unlike: Unlike, model_file: Path) -> Path:
    """Write it beside the model, whole or not at all; features in float16."""
    file = file_of(model_file)
    outputs, values = Outputs(), {**unlike._asdict(), "features": unlike.features.astype(np.float16)}
    try:
        np.savez(outputs.path(file), model=np.array(file_hash(model_file.read_bytes())), **values)
        outputs.commit()
    finally:
        outputs.discard()
    return file


def load(model_file: Path) -> Unlike:
    """What lies beside the model.

    Raises:
        UserError: where there is none, or it is of another model, or damaged.
    """
    file, run = file_of(model_file), "run `python -m headstart.serving.ood`"
    if not file.is_file():
        raise UserError(f"{file} does not exist; {run}")
    try:
        with np.load(file, allow_pickle=False) as kept:
            model = str(kept["model"])
            found = Unlike(
                normed(kept["features"].astype(np.float32)),
                *(float(kept["limit"]), float(kept["rate"]), int(kept["alarms"]), int(kept["tested"])),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error}); {run}") from error
    if model != file_hash(model_file.read_bytes()):
        raise UserError(f"{file} is of another model; {run}")
    return found


def learn(model_file: Path, rate: float) -> Unlike:
    """Run the model over the splits, and fit.

    Raises:
        UserError: where there is no model, or the images are not those that were prepared.
    """
    if not paths.MANIFEST.is_file():
        raise UserError(f"{paths.MANIFEST} does not exist; run `dvc repro`: this needs the images of the splits")
    from tqdm import tqdm

    from headstart.config import load_params
    from headstart.data.manifest import load_split
    from headstart.data.sources import open_source
    from headstart.modalities.image.pixels import read_images
    from headstart.training import networks

    params = load_params()
    model, _ = networks.load(model_file)
    size, batch_size = networks.image_size(model), networks.PREDICTION_BATCH
    both, features = with_features(model), {}
    with open_source(params.data.source, params.data.root) as source:
        for split, most in AT_MOST.items():
            images = load_split(split)
            images = images.sample(min(most, len(images)), random_state=0)
            batches = read_images(source, list(images.path), list(images.file_hash), size, batch_size)
            bar = tqdm(batches, total=-(-len(images) // batch_size), desc=split, unit=" batches", disable=None)
            features[split], _ = ask_all(both, bar, batch_size)
    return fit(features["train"], features["test"], rate)


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m headstart.serving.ood", description=__doc__.split("\n")[0])
    what = "of images like those in test that may be flagged, default: %(default)s"
    parser.add_argument("--rate", type=float, default=RATE, help=what)
    parser.add_argument("--model", type=Path, default=paths.MODEL, metavar="FILE", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        if not 0 < arguments.rate < 1:
            raise UserError(f"--rate must be in (0, 1), got {arguments.rate:g}")
        unlike = learn(arguments.model, arguments.rate)
        file = save(unlike, arguments.model)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    from scipy.stats import binomtest

    interval = binomtest(unlike.alarms, unlike.tested).proportion_ci(method="wilson")
    share = f"{unlike.alarms} of {unlike.tested} test images are flagged, {unlike.alarms / unlike.tested:.1%}"
    print(f"unlike: {file}: the limit flags {unlike.rate:.1%} of images like those in test")
    print(f"unlike: {share} by limits of the other half (95 % interval {interval.low:.1%} to {interval.high:.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
