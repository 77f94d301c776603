"""Where stages meet: the files of dvc.yaml under names, and the folder for what DVC must not touch."""

from __future__ import annotations

import os
from pathlib import Path

PREPARED = Path("data/prepared")
MANIFEST = PREPARED / "manifest.parquet"
FILES = PREPARED / "files.parquet"
CLASSES = PREPARED / "classes.json"
READING = PREPARED / "reading.json"
QUARANTINE = PREPARED / "quarantine.csv"
IGNORED = PREPARED / "ignored.csv"
WATCHED = Path("data/watched")  # a file for each thing that data.watch names
FEATURES = {split: Path(f"features/{split}.npy") for split in ("train", "val", "test")}
TRAIN_VIEWS = Path("features/train_views.npy")
FEATURES_META = Path("features/meta.json")
TRIALS = Path("plots/train_head_search.csv")
HEAD = Path("models/head.keras")
HELD_OUT = Path("predictions/head.npy")
MODEL = Path("models/model.keras")
VAL_PREDICTIONS = Path("predictions/val.csv")
PREDICTIONS = Path("predictions/test.csv")
CONFUSION = Path("plots/confusion.csv")
CLASSES_PLOT = Path("plots/classes.csv")
RELIABILITY = Path("plots/reliability.csv")
PRECISION_RECALL = Path("plots/precision_recall.csv")
ROC = Path("plots/roc.csv")
DATA_PAGE = Path("reports/data.html")  # the pages are no outputs of a stage: `headstart report` makes them
RESULTS_PAGE = Path("reports/report.html")


def metrics(stage: str) -> Path:
    """The figures of `stage` that people compare, JSON."""
    return Path(f"metrics/{stage}.json")


def report(stage: str) -> Path:
    """Everything else that `stage` has to say, JSON."""
    return Path(f"reports/{stage}.json")


def curves(stage: str) -> Path:
    """The curves of `stage`, CSV with a row per epoch."""
    return Path(f"plots/{stage}.csv")


def is_address(source: str) -> bool:
    """Whether `source` is a URL rather than a path."""
    return "://" in source


def workspace_root() -> Path:
    """The root of the repository, also for an experiment that DVC runs in a copy of it (`--temp`, `--queue`)."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def cache_path(name: str) -> Path:
    """Where `name` survives what DVC does to outputs: beside DVC's own temporary files, untracked, shared by all
    experiments of this repository. Everything there can be deleted at any time; it is computed again when needed.
    """
    return workspace_root() / ".dvc" / "tmp" / "headstart" / name
