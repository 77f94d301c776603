"""Read the prepared examples, as the later stages do."""

from __future__ import annotations

import json

import pandas as pd

from headstart import paths


def load_classes() -> list[str]:
    """Read the labels in the order of the model's outputs."""
    return json.loads(paths.CLASSES.read_text(encoding="utf-8"))


def load_split(split: str) -> pd.DataFrame:
    """Read the rows of one split in the manifest's order, with `target`, the int32 index of the label."""
    manifest = pd.read_parquet(paths.MANIFEST)
    examples = manifest[manifest.split == split].reset_index(drop=True)
    target = {label: number for number, label in enumerate(load_classes())}
    return examples.assign(target=examples.label.map(target).astype("int32"))
