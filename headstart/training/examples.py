"""Features of examples with their targets, mapped into memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from headstart import paths
from headstart.data.prepared import load_split
from headstart.errors import UserError, damaged

FOLDS = 5
BLOCK_BYTES = 2**26  # of features, or of what is computed from them, that are in memory at once


@dataclass(frozen=True)
class FeatureSet:
    """Features of examples with their targets.

    Attributes:
        features: (N, feature_dim) float32 or float16, mapped or not.
        targets: (N,) int32.
        views: (N, views, feature_dim), of augmented views; the second axis may be empty.
    """

    features: np.ndarray
    targets: np.ndarray
    views: np.ndarray

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.features.shape[1]

    def __len__(self) -> int:
        return len(self.features)

    def subset(self, rows: np.ndarray) -> FeatureSet:
        """Return the examples of `rows`, in memory."""
        return FeatureSet(self.features[rows], self.targets[rows], self.views[rows])

    def prefix(self, dim: int) -> FeatureSet:
        """Return the examples with the first `dim` of their features."""
        return FeatureSet(self.features[:, :dim], self.targets, self.views[:, :, :dim])

    def rows(self, rows: np.ndarray | slice, drawn: np.ndarray | None = None) -> np.ndarray:
        """Return the (n, feature_dim) float32 features of `rows`, not to be written to.

        Args:
            drawn: (n,) which view of each, 0 being the example as it is; None: all as they are.
        """
        if drawn is None:
            return np.asarray(self.features[rows], np.float32)
        features = np.array(self.features[rows], np.float32)
        if drawn.any():
            numbers = np.arange(len(self))[rows][drawn > 0]
            features[drawn > 0] = self.views[numbers, drawn[drawn > 0] - 1]
        return features

    def block_rows(self, n_classes: int = 0) -> int:
        """Return how many rows a block has, of features and, in float64 and twice, of logits."""
        return max(1, BLOCK_BYTES // (4 * max(self.dim, 4 * n_classes)))

    def blocks(self, n_classes: int) -> Iterator[slice]:
        """Yield all rows in order, in blocks of bounded size."""
        size = self.block_rows(n_classes)
        for start in range(0, len(self), size):
            yield slice(start, start + size)


def concat(train_set: FeatureSet, val_set: FeatureSet) -> FeatureSet:
    """Return both, train first. Examples of val have no augmented views; their plain features stand for them."""
    features = np.concatenate([train_set.features, val_set.features])
    shape = (len(val_set), *train_set.views.shape[1:])
    plain = np.broadcast_to(val_set.features[:, None], shape).astype(train_set.views.dtype)
    targets = np.concatenate([train_set.targets, val_set.targets])
    return FeatureSet(features, targets, np.concatenate([train_set.views, plain]))


def class_weights(targets: np.ndarray, n_classes: int, kind: str | None) -> np.ndarray:
    """Return (n_classes,) float32: ones, or for `balanced`, as in scikit-learn, N / (n_classes x size of the class)."""
    if kind is None:
        return np.ones(n_classes, np.float32)
    return np.float32(len(targets) / (n_classes * np.maximum(np.bincount(targets, minlength=n_classes), 1)))


def possible_folds(targets: np.ndarray, groups: np.ndarray) -> int:
    """Return the number of folds by default: FOLDS; fewer if no class has so many examples, or there are fewer groups.

    Args:
        targets, groups: (N,).
    """
    return min(FOLDS, int(np.bincount(targets).max()), len(np.unique(groups)))


def split_folds(
    targets: np.ndarray, groups: np.ndarray, n_folds: int, seed: int, key: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split N examples into stratified folds, and return the rows to train on and the held-out rows of each.

    Args:
        targets, groups: (N,); examples of a group are in one fold.
        key: the param that asks for the folds, for messages.

    Raises:
        UserError: if each class has fewer examples than there are folds, or there are fewer groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # takes half a second, and fine_tune may not need it

    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a class has fewer examples than there are folds
            folds = list(splitter.split(groups, targets, groups))
    except ValueError as error:
        n_groups = len(np.unique(groups))
        reason = "no class has so many examples"
        if n_groups < n_folds:
            reason = f"copies and groups of examples stay together, which leaves {n_groups} to divide"
        raise UserError(f"params.yaml: {key} {n_folds}: {reason}; lower it") from error
    return [(train_rows, held_out) for train_rows, held_out in folds if len(held_out)]


def load_features(split: str, dim: int | None = None) -> FeatureSet:
    """Return the examples of a split in manifest order; augmented views are of train only.

    Args:
        dim: the length that feature vectors must have; None: any.

    Raises:
        UserError: if the features are damaged, or not those of the manifest.
    """
    examples = load_split(split)
    features = _load(paths.FEATURES[split], (len(examples), dim))
    views = np.empty((len(examples), 0, features.shape[1]), np.float32)
    if split == "train":
        views = _load(paths.TRAIN_VIEWS, (len(examples), None, features.shape[1]))
    return FeatureSet(features, examples.target.to_numpy(), views)


def _load(file: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """Map the finite floats of a file into memory; their shape must be `shape`, where None stands for any length."""
    try:
        features = np.lib.format.open_memmap(file, mode="r")
    # All of them from a wrong header.
    except (ValueError, TypeError, OverflowError, EOFError, SyntaxError, TokenError) as error:
        raise damaged(file, "must be a complete .npy file of numbers", "extract") from error
    if features.dtype not in (np.float32, np.float16):
        raise damaged(file, f"must hold float32 or float16, got {features.dtype}", "extract")
    if features.ndim != len(shape) or any(side not in (None, n) for n, side in zip(features.shape, shape, strict=True)):
        expected = ", ".join("any" if side is None else str(side) for side in shape)
        raise damaged(file, f"must have the shape ({expected}) for this manifest, got {features.shape}", "extract")
    rows = max(1, BLOCK_BYTES // max(1, features[:1].nbytes))
    if not all(np.isfinite(features[start : start + rows]).all() for start in range(0, len(features), rows)):
        raise damaged(file, "must hold finite numbers, got NaN or infinity", "extract")
    return features
