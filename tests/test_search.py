"""Hyperparameter search for heads: what is tried, how it is scored, and which trial is the best."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ROOT
from test_heads import CLASSES, FEATURES, TRAIN, VAL, make_examples

from headstart.config import load_params
from headstart.errors import UserError
from headstart.head_config import TrainHead
from headstart.training import heads
from headstart.training.examples import FeatureSet
from headstart.training.head_settings import list_trials
from headstart.training.search import search

NO_GROUPS = np.arange(300)


def params(**changes: object) -> TrainHead:
    raw = load_params(ROOT / "params.yaml").train_head.model_dump()
    return TrainHead(**{**raw, "hidden": [8], "epochs": 5, "learning_rate": 0.01, **changes})


@pytest.mark.parametrize("folds", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_the_best_trial_has_the_lowest_loss(folds):
    searched = params(search={"learning_rate": [1e-6, 0.01], "hidden": [[16]]}, search_folds=folds, dropout=0.2)
    best, table = search(TRAIN, VAL, CLASSES, NO_GROUPS, searched, 0)
    assert best["learning_rate"] == 0.01
    assert list(table.columns) == ["trial", "learning_rate", "hidden", "val_loss", "val_accuracy", "rank"]
    assert len(table) == 2
    first = table[table["rank"] == 1].iloc[0]
    assert first.val_loss == table.val_loss.min()
    assert first.hidden == str(best["hidden"])
    if not folds:
        assert search(TRAIN, VAL, CLASSES, NO_GROUPS, searched, 0)[1].equals(table)


@pytest.mark.slow
def test_folds_keep_a_group_together_and_leave_val_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(heads, "train", lambda some, others, *_, **__: (seen.append((some, others)), (None, None))[1])
    monkeypatch.setattr(heads, "logits", lambda _, others: np.eye(CLASSES, dtype=np.float32)[others.targets])
    numbered = FeatureSet(NO_GROUPS[:, None].repeat(FEATURES, 1).astype(np.float32), TRAIN.targets, TRAIN.views)
    search(numbered, VAL, CLASSES, NO_GROUPS // 3, params(search={"dropout": [0.1]}, search_folds=4), 0)
    held_out = [others.features[:, 0] for _, others in seen]
    assert sorted(np.concatenate(held_out)) == list(range(300))
    for some, others in seen:
        assert not set(some.features[:, 0] // 3) & set(others.features[:, 0] // 3)


def test_a_trial_that_diverges_ranks_last_and_the_others_go_on(monkeypatch):
    original = heads.train

    def train(train_set, val_set, n_classes, settings, *rest, **named):
        if settings.learning_rate == 1.0:
            raise UserError("training diverged")
        return original(train_set, val_set, n_classes, settings, *rest, **named)

    monkeypatch.setattr(heads, "train", train)
    searched = params(search={"learning_rate": [1.0, 0.01]}, epochs=2)
    best, table = search(TRAIN, VAL, CLASSES, NO_GROUPS, searched, 0)
    assert best == {"learning_rate": 0.01}
    assert list(table["rank"]) == [2, 1]
    assert np.isfinite(table.val_loss).all()


def test_random_search_draws_from_the_grid():
    searched = params(search={"dropout": [0, 0.1, 0.2], "hidden": [[], [4], [8]]}, search_trials=4)
    drawn, grid = list_trials(searched, 1), list_trials(searched.model_copy(update={"search_trials": None}), 1)
    assert len(drawn) == 4 < len(grid) == 9
    assert all(trial in grid for trial in drawn)
    assert drawn == list_trials(searched, 1)
    assert len({str(list_trials(searched, seed)) for seed in range(5)}) > 1


def test_without_a_search_nothing_is_tried():
    best, table = search(TRAIN, TRAIN, CLASSES, NO_GROUPS, params(), 0)
    assert best == {}
    assert list(table.columns) == ["trial", "val_loss", "val_accuracy", "rank"]
    assert table.empty


def test_more_folds_than_a_class_has_examples_are_refused():
    few = make_examples(12, shares=(0.5, 0.5, 0))
    with pytest.raises(UserError, match=r"train_head\.search_folds 50"):
        search(few, few, CLASSES, np.arange(12), params(search={"dropout": [0.1]}, search_folds=50), 0)
