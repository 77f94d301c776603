"""The prepared examples as the later stages read them."""

from __future__ import annotations

import json

import pandas as pd

from headstart import paths


def load_classes() -> list[str]:
    """The labels in the order of the model's outputs."""
    return json.loads(paths.CLASSES.read_text(encoding="utf-8"))


def load_split(split: str) -> pd.DataFrame:
    """The manifest's rows of one split, in its order, with `target`: the label's place among the classes, int32."""
    manifest = pd.read_parquet(paths.MANIFEST)
    images = manifest[manifest.split == split].reset_index(drop=True)
    target = {label: number for number, label in enumerate(load_classes())}
    return images.assign(target=images.label.map(target).astype("int32"))
