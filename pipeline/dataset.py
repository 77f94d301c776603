"""The prepared images as the later stages read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import paths
from pipeline.engine import keras
from pipeline.errors import UserError


def load_classes() -> list[str]:
    """The labels in the order of the model's outputs."""
    return json.loads(paths.CLASSES.read_text(encoding="utf-8"))


def load_split(split: str) -> pd.DataFrame:
    """The manifest's rows of one split, in its order, with `target`: the label's place among the classes, int32."""
    manifest = pd.read_parquet(paths.MANIFEST)
    images = manifest[manifest.split == split].reset_index(drop=True)
    target = {label: number for number, label in enumerate(load_classes())}
    return images.assign(target=images.label.map(target).astype("int32"))


def load_features(split: str, images: int) -> np.ndarray:
    """(images, feature_dim) float32 or float16 in manifest order, mapped into memory, not loaded.

    Raises:
        UserError: where the features are not those of the manifest.
    """
    return _load(paths.FEATURES[split], images)


def load_views(images: int) -> np.ndarray:
    """(images, views, feature_dim): augmented views of the training images, mapped into memory, not loaded.

    Raises:
        UserError: where they are not those of the manifest.
    """
    return _load(paths.TRAIN_VIEWS, images)


def _load(file: Path, images: int) -> np.ndarray:
    features = np.load(file, mmap_mode="r", allow_pickle=False)
    if len(features) != images:
        raise UserError(f"{file} holds {len(features)} rows where the manifest has {images}; run `dvc repro`")
    return features


EVALUATION_BATCH = 256  # rows at once where nothing is learned from them


class FeatureBatches(keras.utils.PyDataset):
    """Batches of features (b, feature_dim) float32 and targets (b,) int32; only those are in memory.

    Args:
        features: (N, feature_dim), mapped or not.
        targets: (N,) int32.
        views: (N, views, feature_dim): each image is drawn anew for each epoch, as it is or as one of its views.
        seed: shuffles every epoch anew and draws the views; None keeps the order.
    """

    def __init__(
        self,
        features: np.ndarray,
        targets: np.ndarray,
        batch_size: int,
        views: np.ndarray | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self._features, self._targets, self._batch_size = features, targets, batch_size
        self._views = views if views is not None and views.shape[1] else None
        self._random = None if seed is None else np.random.default_rng(seed)
        self._order = np.arange(len(features))
        self._drawn = np.zeros(len(features), np.int64)  # 0: as it is
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self._features) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        # Sorted: a disk reads forwards. Within a batch the order means nothing.
        rows = np.sort(self._order[index * self._batch_size : (index + 1) * self._batch_size])
        batch = np.asarray(self._features[rows], np.float32)
        if self._views is not None:
            drawn = self._drawn[rows]
            batch[drawn > 0] = self._views[rows[drawn > 0], drawn[drawn > 0] - 1]
        return batch, self._targets[rows]

    def on_epoch_end(self) -> None:
        if self._random is not None:
            self._order = self._random.permutation(len(self._features))
            if self._views is not None:
                self._drawn = self._random.integers(0, 1 + self._views.shape[1], len(self._features))
