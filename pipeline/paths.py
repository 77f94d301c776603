"""Where stages meet: the files of dvc.yaml under names. A test holds the two together."""

from __future__ import annotations

import os
from pathlib import Path

PREPARED = Path("data/prepared")
MANIFEST = PREPARED / "manifest.parquet"
CLASSES = PREPARED / "classes.json"
QUARANTINE = PREPARED / "quarantine.csv"
IGNORED = PREPARED / "ignored.csv"
REPORT = Path("reports/data.html")
FEATURES = {split: Path(f"features/{split}.npy") for split in ("train", "val", "test")}
TRAIN_VIEWS = Path("features/train_views.npy")
FEATURES_META = Path("features/meta.json")
TRIALS = Path("plots/train_head_search.csv")
HEAD = Path("models/head.keras")
MODEL = Path("models/model.keras")
EVALUATION = Path("reports/evaluation.json")
RESULTS = Path("reports/report.html")  # of all results; no output of a stage: it tells what they cost
COST = Path("metrics/cost.json")
CONFUSION = Path("plots/confusion.csv")
CLASSES_PLOT = Path("plots/classes.csv")
RELIABILITY = Path("plots/reliability.csv")
PRECISION_RECALL = Path("plots/precision_recall.csv")
ROC = Path("plots/roc.csv")
PREDICTIONS = Path("predictions/test.csv")


def metrics(stage: str) -> Path:
    """The metrics of `stage`, JSON."""
    return Path(f"metrics/{stage}.json")


def choices(stage: str) -> Path:
    """What a stage that trains chose where params.yaml leaves it open, JSON; no metrics: a diff shows results."""
    return Path(f"reports/{stage}.json")


def curves(stage: str) -> Path:
    """The curves of `stage`, CSV with a row an epoch."""
    return Path(f"plots/{stage}.csv")


def is_address(source: str) -> bool:
    """Whether `source` is an address and no path."""
    return "://" in source


def workspace_root() -> Path:
    """The root of the repository, also for an experiment that DVC runs in a copy of it (`--temp`, `--queue`)."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def kept(name: str) -> Path:
    """Where `name` survives what DVC does to the outputs: beside DVC's own temporary files, not tracked."""
    return workspace_root() / ".dvc" / "tmp" / "headstart" / name
