"""The head that train_head wrote, checked against features and classes, and the one that fine-tuning starts from."""

from __future__ import annotations

from pathlib import Path

from headstart import paths
from headstart.data.prepared import load_classes
from headstart.errors import damaged
from headstart.framework import keras
from headstart.training import calibration, heads, networks
from headstart.training.examples import load_features
from headstart.training.head_report import HeadReport


def load_head(feature_dim: int) -> tuple[keras.Model, list[str]]:
    """Return the head that train_head wrote, and the class names, those of the manifest.

    Args:
        feature_dim: of the extracted features, of which the head takes the first.

    Raises:
        UserError: as `networks.load`, or if the head is for other features or classes.
    """
    head, classes = networks.load(paths.HEAD)
    shape = head.input_shape
    if len(shape) != 2 or not 0 < (shape[1] or 0) <= feature_dim:
        raise damaged(paths.HEAD, f"must take at most {feature_dim} features, got the shape {shape}", "train_head")
    check_classes(paths.HEAD, classes, "train_head")
    return head, classes


def start_head(found: HeadReport, last: int, seed: int) -> keras.Model:
    """Return a head to start fine-tuning from: it takes the `last` features of the last layer, and has not seen val.

    It is a copy of the one that train_head wrote, if params.yaml asked for that.
    """
    if not found.choice:
        return networks.load(paths.HEAD)[0]
    train_set, val_set = load_features("train").prefix(last), load_features("val").prefix(last)
    start, _ = heads.train(train_set, val_set, found.logits.shape[1], found.settings, seed, progress=False)
    networks.divide_logits(start, calibration.fit_temperature(heads.logits(start, val_set), val_set.targets))
    return start


def check_classes(file: Path, classes: list[str], stage: str) -> None:
    """Raise UserError if the classes of a model that `stage` wrote are not those of the manifest."""
    if classes != load_classes():
        got = ", ".join(map(str, classes))[:200]
        raise damaged(file, f"must have the classes of {paths.CLASSES}, got {got}", stage)
