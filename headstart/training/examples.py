"""Features and what they are examples of, mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart import paths
from headstart.data.manifest import load_split
from headstart.errors import UserError

BLOCK_BYTES = 2**26  # of features that a call works on


@dataclass(frozen=True)
class FeatureSet:
    """Features of examples with their targets.

    Attributes:
        features: (N, feature_dim) float32 or float16, mapped or not.
        targets: (N,) int32.
        views: (N, views, feature_dim), features of augmented views; none if views is 0.
    """

    features: np.ndarray
    targets: np.ndarray
    views: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def subset(self, rows: np.ndarray) -> FeatureSet:
        """The examples of `rows`, in memory."""
        return FeatureSet(self.features[rows], self.targets[rows], self.views[rows])

    def rows(self, rows: np.ndarray | slice, drawn: np.ndarray | None = None) -> np.ndarray:
        """(n, feature_dim) float32: of each of `rows` the view `drawn`, 0 being the image as it is."""
        found = np.array(self.features[rows], np.float32)
        if drawn is not None:
            numbers = np.arange(len(self))[rows][drawn > 0]
            found[drawn > 0] = self.views[numbers, drawn[drawn > 0] - 1]
        return found

    def block_rows(self) -> int:
        """How many rows a block has."""
        return max(1, BLOCK_BYTES // (4 * self.features.shape[1]))

    def blocks(self) -> Iterator[slice]:
        """All rows in order, in blocks of a bounded size."""
        size = self.block_rows()
        for start in range(0, len(self), size):
            yield slice(start, start + size)


def concat(train_set: FeatureSet, val_set: FeatureSet) -> FeatureSet:
    """Both, train first; an example of val, which has no augmented views, stands for its own."""
    features = np.concatenate([train_set.features, val_set.features])
    shape = (len(val_set), *train_set.views.shape[1:])
    plain = np.broadcast_to(val_set.features[:, None], shape).astype(train_set.views.dtype)
    targets = np.concatenate([train_set.targets, val_set.targets])
    return FeatureSet(features, targets, np.concatenate([train_set.views, plain]))


def class_weights(targets: np.ndarray, n_classes: int, kind: str | None) -> np.ndarray:
    """(n_classes,) float32: ones, or for `balanced` N / (n_classes x images of the class), as scikit-learn has it."""
    if kind is None:
        return np.ones(n_classes, np.float32)
    return np.float32(len(targets) / (n_classes * np.maximum(np.bincount(targets, minlength=n_classes), 1)))


def _load(file: Path, images: int) -> np.ndarray:
    """Of that many rows, mapped into memory, not loaded."""
    features = np.load(file, mmap_mode="r", allow_pickle=False)
    if len(features) != images:
        raise UserError(f"{file} holds {len(features)} rows where the manifest has {images}; run `dvc repro`")
    return features


def load_features(split: str) -> FeatureSet:
    """The features, targets and, of train, augmented views of one split, mapped into memory, in manifest order.

    Raises:
        UserError: where the features are not those of the manifest.
    """
    images = load_split(split)
    features = _load(paths.FEATURES[split], len(images))
    views = np.empty((len(images), 0, features.shape[1]), np.float32)
    if split == "train":
        views = _load(paths.TRAIN_VIEWS, len(images))
    return FeatureSet(features, images.target.to_numpy(), views)
