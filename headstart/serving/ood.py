"""Out-of-distribution detection: flag inputs unlike those that the model was trained on.

`headstart ood` fits a detector to a trained model and writes it beside the model; `headstart predict` uses it. The
score is the distance to the K-th nearest training example, by features of unit length (Sun et al., "Out-of-Distribution
Detection with Deep Nearest Neighbors", 2022, https://arxiv.org/abs/2204.06507). The features are those of the shipped
network's last layer: features/train.npy are of the backbone before fine-tuning. The threshold is set on the test split,
so that at most a share `rate` of similar examples is flagged. Not on val, which fine_tune may have trained on: what was
trained on lies nearer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headstart import paths
from headstart.arrays import read_arrays, write_arrays
from headstart.data.files import file_hash
from headstart.errors import UserError, one_line
from headstart.lockfile import describe_other_source
from headstart.modalities.lengths import map_batches
from headstart.outputs import Outputs
from headstart.serving.model_file import DAMAGES, load_classifier, warn_of_other_model

if TYPE_CHECKING:
    from headstart.modalities import Batch
    from headstart.training.networks import Classifier

RATE = 0.05
K = 5
AT_MOST = {"train": 5000, "test": 4000}  # examples of a split, drawn at random: more change little
FIT = "run `headstart ood`"


class Detector(NamedTuple):
    """A fitted detector.

    Attributes:
        features: (n, feature_dim) float32 of training examples, each of unit length.
        threshold: the distance above which an example is out of distribution.
        rate: the share of in-distribution examples that may be flagged.
        flagged, tested: how many examples of the test split are flagged by thresholds set on its other half, and out
            of how many.
    """

    features: np.ndarray
    threshold: float
    rate: float
    flagged: int
    tested: int

    @property
    def share_flagged(self) -> float:
        """The share of the test split that is flagged."""
        return self.flagged / self.tested

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Return (n,) for (n, feature_dim), in units of the threshold: above 1 is out of distribution."""
        return knn_distances(self.features, features) / self.threshold


def normalize(features: np.ndarray) -> np.ndarray:
    """Scale each row (feature_dim,) to unit length."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def knn_distances(reference: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return (n,): the distance of each of `features` (n, d) to the K-th nearest of `reference` (m, d), normalized."""
    squares = 2 - 2 * normalize(features) @ reference.T
    return np.sqrt(np.maximum(np.partition(squares, K - 1, axis=1)[:, K - 1], 0))


def conformal_threshold(scores: np.ndarray, rate: float) -> float:
    """Return what a new score like the (n,) `scores` exceeds with a probability of at most `rate`.

    This is split conformal prediction. The threshold is infinite if n is too small.
    """
    place = math.ceil((len(scores) + 1) * (1 - rate))
    return float(np.sort(scores)[place - 1]) if place <= len(scores) else math.inf


def flag_halves(scores: np.ndarray, rate: float) -> np.ndarray:
    """Return (n,) bool: which of the `scores`, in random order, exceed the threshold set on the other half."""
    first, second = np.array_split(scores, [len(scores) // 2])
    return np.concatenate([first > conformal_threshold(second, rate), second > conformal_threshold(first, rate)])


def fit(train: np.ndarray, test: np.ndarray, rate: float) -> Detector:
    """Fit a detector.

    Args:
        train, test: features (n, feature_dim) of the splits, those of test in random order.

    Raises:
        UserError: if the splits are too small.
    """
    minimum = 2 * (math.ceil(1 / rate) - 1)
    if len(test) < minimum or len(train) < K:
        raise UserError(
            f"test has {len(test)} examples and train {len(train)}; a rate of {rate:g} needs at least {minimum} in "
            f"test and {K} in train: raise --rate, or add examples"
        )
    reference = normalize(train)
    scores = knn_distances(reference, test)
    threshold = max(conformal_threshold(scores, rate), 1e-6)
    return Detector(reference, threshold, rate, int(flag_halves(scores, rate).sum()), len(scores))


class Scorer:
    """Runs a classifier for its features and its probabilities at once."""

    def __init__(self, classifier: Classifier) -> None:
        import keras

        from headstart.backbones.base import POOL_LAYER
        from headstart.training import networks

        encoder, head = (classifier.network.get_layer(name) for name in ("encoder", "head"))
        last, features = encoder.get_layer(POOL_LAYER).output, encoder.output
        # One output, so that `networks.predict` takes it: features of the last layer first.
        both = keras.layers.Concatenate()([last, head(features, training=False)])
        self._network = keras.Model(encoder.input, both)
        self._feature_dim, self._predict, self._modality = last.shape[-1], networks.predict, classifier.modality
        self.batch_size = networks.PREDICTION_BATCH

    def score(self, arrays: Sequence[np.ndarray], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features (n, feature_dim) and probabilities (n, n_classes) of loaded examples."""
        run = partial(self._predict, self._network, batch_size=batch_size)
        return self._split(map_batches(run, self._modality, arrays, batch_size))

    def run(self, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """Return features (n, feature_dim) and probabilities (n, n_classes) of all batches."""
        return self._split(np.concatenate([self._predict(self._network, batch, self.batch_size) for batch in batches]))

    def _split(self, both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return both[:, : self._feature_dim], both[:, self._feature_dim :]


def detector_file(model_file: Path) -> Path:
    """Return where the detector of a model lies: beside it."""
    return model_file.with_suffix(".ood.npz")


def save(detector: Detector, model_file: Path) -> Path:
    """Write the detector beside its model, whole or not at all, the features in float16; return the file."""
    file, digest = detector_file(model_file), np.array(file_hash(model_file.read_bytes()))
    outputs, values = Outputs(), {name: np.array(value) for name, value in detector._asdict().items()}
    try:
        write_arrays(outputs.path(file), model=digest, **(values | {"features": values["features"].astype(np.float16)}))
        outputs.commit()
    finally:
        outputs.discard()
    return file


def load(model_file: Path) -> Detector:
    """Read the detector of a model.

    Raises:
        UserError: if there is none, or it is of another model, or damaged.
    """
    file = detector_file(model_file)
    if not file.is_file():
        raise UserError(f"{file} does not exist; {FIT}")
    try:
        values = read_arrays(file)
        model, features = str(values["model"]), normalize(values["features"].astype(np.float32))
        numbers = (values[name].item() for name in ("threshold", "rate", "flagged", "tested"))
        detector = Detector(features, *numbers)
    except DAMAGES as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}); {FIT}") from error
    if model != file_hash(model_file.read_bytes()):
        raise UserError(f"{file} is of another model; {FIT}")
    return detector


def features_of_splits(model_file: Path) -> dict[str, np.ndarray]:
    """Return the features (n, feature_dim) of the splits in AT_MOST, rows in random order.

    Raises:
        UserError: if there is no model, or the data are not those that were prepared.
    """
    if not paths.MANIFEST.is_file():
        raise UserError(f"{paths.MANIFEST} does not exist; run `dvc repro`: the detector is fitted to the splits")
    from tqdm import tqdm

    from headstart.config import load_params
    from headstart.data.layouts import open_examples
    from headstart.data.prepared import load_split
    from headstart.modalities.loading import read_batches

    params, classifier = load_params(), load_classifier(model_file)
    scorer, features = Scorer(classifier), {}
    try:
        with open_examples(params.data, classifier.modality) as source:
            for split, most in AT_MOST.items():
                examples = load_split(split)
                examples = examples.sample(min(most, len(examples)), random_state=0)
                order = np.arange(len(examples))
                if length := classifier.modality.length:  # like ones share a batch
                    order = np.argsort(examples[length], kind="stable")
                examples = examples.iloc[order]
                files = list(examples.path), list(examples.file_hash)
                batches = read_batches(source, classifier.modality, *files, classifier.size, scorer.batch_size)
                count = -(-len(examples) // scorer.batch_size)
                found, _ = scorer.run(tqdm(batches, total=count, desc=split, unit=" batches", disable=None))
                features[split] = found[np.argsort(order)]
    except UserError as error:
        if other := describe_other_source(params.data.source):
            advice = "set it back, or run `dvc repro` for a model of the new data, then `headstart ood`"
            raise UserError(f"{other}; {advice}") from error
        raise
    return features


def fit_ood(rate: float = RATE, model: Path = paths.MODEL) -> None:
    """Fit a detector to the model, write it beside it, and print how many test examples it flags.

    Args:
        rate: share of examples like those in test that may be flagged, in (0, 1).

    Raises:
        UserError: if `rate` is out of range, the splits are too small, or the model or the data are missing.
    """
    if not 0 < rate < 1:
        raise UserError(f"--rate must be in (0, 1), got {rate:g}")
    from scipy.stats import binomtest

    warn_of_other_model(model, "ood")
    features = features_of_splits(model)
    detector = fit(features["train"], features["test"], rate)
    file = save(detector, model)
    interval = binomtest(detector.flagged, detector.tested).proportion_ci(method="wilson")
    print(f"ood: {file}: the threshold flags {detector.rate:.1%} of examples like those in test")
    print(
        f"ood: {detector.flagged} of {detector.tested} test examples are flagged, {detector.share_flagged:.1%}, by "
        f"thresholds set on the other half (95 % interval {interval.low:.1%} to {interval.high:.1%})"
    )
