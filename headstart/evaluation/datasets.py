"""What the figures of a run are about: its classes, and the examples of val and test."""

from __future__ import annotations

import hashlib
import io
from typing import NamedTuple

import pandas as pd

from headstart.errors import UserError, one_line
from headstart.evaluation.class_changes import ClassChanges, find_class_changes

JUDGED_BY = ("val", "test")


class Dataset(NamedTuple):
    """Figures of two runs can be compared as they stand if these are equal, by `key`.

    Attributes:
        key: a hash of the classes, and of the val and test examples with their labels.
        classes: their names, sorted.
        labels: of the val and test examples, by item_id.
        sizes: how many examples each split has, by name.
    """

    key: str
    classes: list[str]
    labels: pd.Series
    sizes: dict[str, int]

    def __str__(self) -> str:
        sizes = " and ".join(f"{self.sizes.get(split, 0):,} {split}" for split in JUDGED_BY)
        return f"{len(self.classes):,} classes, {sizes} examples"

    def changes_since(self, base: Dataset) -> ClassChanges:
        """Return how the classes differ from those of `base`."""
        return find_class_changes(base.classes, base.labels, self.classes, self.labels)


def parse_manifest(content: bytes, name: str) -> Dataset:
    """Return what a manifest.parquet, which messages call `name`, says of the data.

    Raises:
        UserError: if it is damaged.
    """
    try:
        table = pd.read_parquet(io.BytesIO(content), columns=["item_id", "label", "split"]).astype(str)
    except Exception as error:  # of many kinds on damaged bytes
        raise UserError(f"{name} cannot be read ({one_line(error)}); run `dvc repro prepare`") from error
    classes = sorted(table.label.unique())
    judged = table[table.split.isin(JUDGED_BY)].sort_values(["split", "item_id"])
    digest = hashlib.sha256(repr(classes).encode())
    for row in judged.itertuples(index=False):
        digest.update(repr(tuple(row)).encode())
    labels = judged.drop_duplicates("item_id").set_index("item_id").label
    return Dataset(digest.hexdigest(), classes, labels, table.split.value_counts().to_dict())
