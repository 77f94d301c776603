"""Trying choices of a head on features that are there already: a trial takes moments, since no image is touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from headstart.errors import UserError
from headstart.framework import keras
from headstart.head_config import TrainHead
from headstart.training import calibration, heads
from headstart.training.examples import FeatureSet
from headstart.training.head_settings import list_trials, resolve_head

WORST_LOSS = 1e6  # of a trial that diverged


def search(
    train_set: FeatureSet, val_set: FeatureSet, n_classes: int, groups: np.ndarray, choices: TrainHead, seed: int
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train a head with every trial of `choices`, and judge each on val or, with folds, within train.

    A trial is judged by its log loss after temperature scaling: what label smoothing and the like do to confidence
    alone does not count.

    Args:
        groups: (N,) of the training images; those of a group are in one fold.

    Returns:
        The winner's changes to `choices`; the table: trial (counted from 1), the changes, val_loss and val_accuracy,
        means over the folds, and rank (1: the winner). Both empty where nothing is searched.

    Raises:
        UserError: where a class has fewer images or groups than there are folds.
    """
    rows = []
    trials = list_trials(choices, seed)
    for number, changes in enumerate(tqdm(trials, desc="search", unit=" trials", disable=None), 1):
        choice, losses, hits = resolve_head(choices.choice(**changes), len(train_set), n_classes), [], []
        for some, others in _folds(train_set, val_set, groups, choices.search_folds, seed):
            keras.backend.clear_session()  # thousands of heads would fill the memory
            try:
                head, _ = heads.train(some, others, n_classes, choice, seed, progress=False)
            except UserError:  # it diverged: a result like any other
                losses.append(np.inf)
                hits.append(0.0)
                continue
            found = heads.logits(head, others)
            found /= calibration.temperature(found, others.targets)
            losses.append(calibration.log_loss(found, others.targets).mean())
            hits.append((found.argmax(axis=1) == others.targets).mean())
        # No JSON and no tracker takes an infinite loss.
        loss = min(float(np.mean(losses)), WORST_LOSS)
        texts = {key: _text(value) for key, value in changes.items()}
        rows.append({"trial": number, **texts, "val_loss": loss, "val_accuracy": np.mean(hits)})
    table = pd.DataFrame(rows, columns=["trial", *choices.search, "val_loss", "val_accuracy"])
    table["rank"] = table.val_loss.astype(float).rank(method="first").astype(int)
    return (trials[int(table["rank"].argmin())] if trials else {}), table


def _text(value: Any) -> Any:
    return value if isinstance(value, (int, float, str)) else json.dumps(value)


def _folds(
    train_set: FeatureSet, val_set: FeatureSet, groups: np.ndarray, folds: int | None, seed: int
) -> Iterator[tuple[FeatureSet, FeatureSet]]:
    if folds is None:
        yield train_set, val_set
        return
    try:
        kind = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        split = list(kind.split(groups, train_set.targets, groups))
    except ValueError as error:
        raise UserError(f"params.yaml: train_head.search_folds {folds}: {error}; lower it, or null for val") from error
    for some, others in split:
        yield train_set.subset(some), train_set.subset(others)
