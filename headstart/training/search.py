"""Hyperparameter search for the head on cached features: a trial takes moments, since no example is read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from headstart.errors import UserError
from headstart.head_config import ResolvedHead, TrainHead
from headstart.training import calibration
from headstart.training.examples import FeatureSet, split_folds
from headstart.training.head_settings import list_trials, resolve_head

WORST_LOSS = 1e6  # of a trial that diverged


def search(
    train_set: FeatureSet, val_set: FeatureSet, n_classes: int, groups: np.ndarray, params: TrainHead, seed: int
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train a head for each trial of `params`, and score it on val or by cross-validation within train.

    The score is the log loss after temperature scaling: label smoothing and the like change confidence alone, which
    must not count.

    Args:
        groups: (N,) of the training examples; those of a group are in one fold.

    Returns:
        The best trial's changes to `params`; a table with a row per trial: trial (counted from 1), the changes,
        val_loss and val_accuracy, means over the folds, and rank (1: the best). Both are empty without a search.

    Raises:
        UserError: if each class has fewer examples than there are folds.
    """
    trials, rows, folds = list_trials(params, seed), [], []
    if trials and params.search_folds:
        folds = split_folds(train_set.targets, groups, params.search_folds, seed, "train_head.search_folds")
    for number, changes in enumerate(tqdm(trials, desc="search", unit=" trials", disable=None), 1):
        settings = resolve_head(params.choice(**changes), n_classes)
        parts = ((train_set.subset(some), train_set.subset(others)) for some, others in folds)
        scores = [_score(*part, n_classes, settings, seed) for part in (parts if folds else [(train_set, val_set)])]
        loss, accuracy = np.mean(scores, axis=0)
        loss = min(loss, WORST_LOSS)  # neither JSON nor MLflow takes infinity
        texts = {key: x if isinstance(x, (int, float, str)) else json.dumps(x) for key, x in changes.items()}
        rows.append({"trial": number, **texts, "val_loss": loss, "val_accuracy": accuracy})
    table = pd.DataFrame(rows, columns=["trial", *params.search, "val_loss", "val_accuracy"])
    table["rank"] = table.val_loss.astype(float).rank(method="first").astype(int)
    return (trials[int(table["rank"].argmin())] if trials else {}), table


def _score(
    train_set: FeatureSet, held_out: FeatureSet, n_classes: int, settings: ResolvedHead, seed: int
) -> tuple[float, float]:
    """Return log loss and accuracy of a head on `held_out`; an infinite loss if training diverges."""
    from headstart.framework import keras  # a search is rare, and loading TensorFlow takes seconds
    from headstart.training import heads

    keras.backend.clear_session()  # thousands of heads would fill the memory
    try:
        head, _ = heads.train(train_set, held_out, n_classes, settings, seed, progress=False)
    except UserError:  # a trial that diverges is a result like any other
        return np.inf, 0.0
    logits = heads.logits(head, held_out)
    logits /= calibration.fit_temperature(logits, held_out.targets)
    losses = calibration.log_loss(logits, held_out.targets)
    return float(losses.mean()), float((logits.argmax(axis=1) == held_out.targets).mean())
