"""The head that train_head wrote, checked against the features and classes of the stage that reads it."""

from __future__ import annotations

from pathlib import Path

from headstart import paths
from headstart.data.prepared import load_classes
from headstart.errors import damaged
from headstart.framework import keras
from headstart.training import networks


def load_head(feature_dim: int) -> tuple[keras.Model, list[str]]:
    """Return the head that train_head wrote for features of that length, and the class names, those of the manifest.

    Raises:
        UserError: as `networks.load`, or if the head is for other features or classes.
    """
    head, classes = networks.load(paths.HEAD)
    if head.input_shape != (None, feature_dim):
        raise damaged(paths.HEAD, f"must take {feature_dim} features, got the shape {head.input_shape}", "train_head")
    check_classes(paths.HEAD, classes, "train_head")
    return head, classes


def check_classes(file: Path, classes: list[str], stage: str) -> None:
    """Raise UserError if the classes of a model that `stage` wrote are not those of the manifest."""
    if classes != load_classes():
        got = ", ".join(map(str, classes))[:200]
        raise damaged(file, f"must have the classes of {paths.CLASSES}, got {got}", stage)
