"""Where stages meet: the files of dvc.yaml under names. A test holds the two together."""

from __future__ import annotations

from pathlib import Path

MANIFEST = Path("data/prepared/manifest.parquet")
CLASSES = Path("data/prepared/classes.json")
QUARANTINE = Path("data/prepared/quarantine.csv")
FEATURES = {split: Path(f"features/{split}.npy") for split in ("train", "val", "test")}
FEATURES_META = Path("features/meta.json")
HEAD = Path("models/head.keras")
MODEL = Path("models/model.keras")
CONFUSION = Path("plots/confusion.csv")
PREDICTIONS = Path("predictions/test.csv")


def metrics(stage: str) -> Path:
    """The metrics of `stage`, JSON."""
    return Path(f"metrics/{stage}.json")


def curves(stage: str) -> Path:
    """The curves of `stage`, CSV with a row an epoch."""
    return Path(f"plots/{stage}.csv")
