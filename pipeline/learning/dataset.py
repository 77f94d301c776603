"""The prepared images as the later stages read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import paths
from pipeline.errors import UserError
from pipeline.learning.heads import Examples


def load_classes() -> list[str]:
    """The labels in the order of the model's outputs."""
    return json.loads(paths.CLASSES.read_text(encoding="utf-8"))


def load_split(split: str) -> pd.DataFrame:
    """The manifest's rows of one split, in its order, with `target`: the label's place among the classes, int32."""
    manifest = pd.read_parquet(paths.MANIFEST)
    images = manifest[manifest.split == split].reset_index(drop=True)
    target = {label: number for number, label in enumerate(load_classes())}
    return images.assign(target=images.label.map(target).astype("int32"))


def _load(file: Path, images: int) -> np.ndarray:
    """Of that many rows, mapped into memory, not loaded."""
    features = np.load(file, mmap_mode="r", allow_pickle=False)
    if len(features) != images:
        raise UserError(f"{file} holds {len(features)} rows where the manifest has {images}; run `dvc repro`")
    return features


def load_examples(split: str) -> Examples:
    """The features, targets and, of train, augmented views of one split, mapped into memory, in manifest order.

    Raises:
        UserError: where the features are not those of the manifest.
    """
    images = load_split(split)
    features = _load(paths.FEATURES[split], len(images))
    views = np.empty((len(images), 0, features.shape[1]), np.float32)
    if split == "train":
        views = _load(paths.TRAIN_VIEWS, len(images))
    return Examples(features, images.target.to_numpy(), views)
