"""The prepared images as the later stages read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import paths
from pipeline.errors import UserError
from pipeline.heads import Examples


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


def load_examples(split: str) -> Examples:
    """The features, targets and, of train, augmented views of one split.

    Raises:
        UserError: where the features are not those of the manifest.
    """
    images = load_split(split)
    features = load_features(split, len(images))
    views = load_views(len(images)) if split == "train" else np.empty((len(images), 0, features.shape[1]), np.float32)
    return Examples(features, images.target.to_numpy(), views)
