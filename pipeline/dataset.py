"""The prepared images as the later stages read them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from pipeline import paths
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
    """(images, feature_dim) float32, in manifest order.

    Raises:
        UserError: where the features are not those of the manifest.
    """
    features = np.load(paths.FEATURES[split], allow_pickle=False)
    if len(features) != images:
        raise UserError(
            f"{paths.FEATURES[split]} holds {len(features)} rows where the manifest has {images}; run `dvc repro`"
        )
    return features
