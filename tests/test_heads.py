"""Heads on features: what each setting does, and that blocks, views and mapped files change no result."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from conftest import ROOT
from sklearn.linear_model import LogisticRegression

from headstart.config import load_params
from headstart.errors import UserError
from headstart.head_config import ResolvedHead
from headstart.training import examples as examples_module
from headstart.training import heads, linear, networks
from headstart.training.calibration import log_loss
from headstart.training.examples import FeatureSet
from headstart.training.head_settings import resolve_head

FEATURES, CLASSES = 20, 3
LINEAR = {"hidden": [], "dropout": 0}  # trained by lbfgs
BOTH = pytest.mark.parametrize("changes", [{}, LINEAR], ids=["adam", "lbfgs"])


def make_examples(
    count: int = 300, seed: int = 0, noise: float = 1.0, shares=(1 / 3, 1 / 3, 1 / 3), views: int = 0
) -> FeatureSet:
    """Classes around centers; views are the features with other noise."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(CLASSES, FEATURES)).astype(np.float32)
    targets = random.choice(CLASSES, count, p=shares).astype(np.int32)
    features = random.normal(0, noise, (1 + views, count, FEATURES)).astype(np.float32) + centers[targets]
    return FeatureSet(features[0], targets, features[1:].transpose(1, 0, 2))


TRAIN, VAL, TEST = make_examples(), make_examples(seed=1), make_examples(seed=2)


def settings(**changes: object) -> ResolvedHead:
    """As in params.yaml, but for a training that a test can wait for."""
    changes = {"hidden": [8], "epochs": 15, "learning_rate": 0.01, **changes}
    return resolve_head(load_params(ROOT / "params.yaml").train_head.choice(**changes), CLASSES)


def train(train_set: FeatureSet = TRAIN, val_set: FeatureSet = VAL, seed: int = 0, **changes: object):
    return heads.train(train_set, val_set, CLASSES, settings(**changes), seed)


def accuracy(head: keras.Model, examples: FeatureSet) -> float:
    return float((heads.logits(head, examples).argmax(axis=1) == examples.targets).mean())


def weights(head: keras.Model) -> np.ndarray:
    return np.concatenate([value.ravel() for value in head.get_weights()])


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": []},
        LINEAR,
        {"hidden": [], "optimizer": "adam", "dropout": 0},
        {"optimizer": "sgd"},
        {"optimizer": "rmsprop"},
        {"schedule": "cosine"},
        {"hidden": [16, 8], "activation": "gelu"},
        {"batch_norm": True},
        {"weight_decay": 0.01, "label_smoothing": 0.1, "class_weight": "balanced"},
    ],
    ids=str,
)
def test_every_kind_of_head_learns(changes):
    head, history = train(**changes)
    assert accuracy(head, TEST) > 0.9
    assert history.kept["val_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ([128], 0.2, 0, "adam")),
        ({"optimizer": "adam"}, ([128], 0.2, 0, "adam")),
        ({"weight_decay": 0.1}, ([128], 0.2, 0.1, "adam")),
        ({"optimizer": "lbfgs"}, ([], 0, 0.02, "lbfgs")),
        ({"hidden": []}, ([], 0, 0.02, "lbfgs")),
        ({"hidden": [], "optimizer": "adam"}, ([], 0, 0, "adam")),
        ({"hidden": [], "dropout": 0.5}, ([], 0.5, 0, "adam")),
        ({"hidden": [], "weight_decay": 0}, ([], 0, 0, "lbfgs")),
    ],
    ids=str,
)
def test_null_settings_follow_from_the_others(changes, expected):
    found = resolve_head(load_params(ROOT / "params.yaml").train_head.choice(**changes), CLASSES)
    assert (found.hidden, found.dropout, found.weight_decay, found.optimizer) == expected


def test_one_step_moves_every_weight():
    few = make_examples(30)
    start, _ = train(few, few, epochs=1, batch_size=30, learning_rate=1e-9)
    moved, _ = train(few, few, epochs=1, batch_size=30, learning_rate=0.1)
    for before, after in zip(start.get_weights(), moved.get_weights(), strict=True):
        assert (np.abs(before - after) > 0.01).mean() > 0.5


def test_a_linear_head_is_logistic_regression():
    train_set, weight_decay = make_examples(noise=3.0), 0.02
    head, history = train(train_set, **LINEAR, weight_decay=weight_decay)
    other = LogisticRegression(C=1 / (weight_decay * len(train_set)), tol=1e-8, max_iter=1000)
    other.fit(train_set.features, train_set.targets)
    found, expected = heads.logits(head, train_set), other.decision_function(train_set.features)
    assert np.abs((found - found.mean(1, keepdims=True)) - (expected - expected.mean(1, keepdims=True))).max() < 0.01
    assert history.kept["epoch"] == len(history.rows) > 3


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", keras.optimizers.SGD), ("adam", keras.optimizers.Adam)])
def test_the_steps_are_those_of_keras(optimizer, kind):
    """Steps over whole batches, so that their order does not matter."""
    head, _ = train(TRAIN, TRAIN, dropout=0, epochs=5, batch_size=300, optimizer=optimizer, weight_decay=0)
    keras.utils.set_random_seed(0)
    plain = networks.build_head(FEATURES, CLASSES, [8])
    arguments = {"momentum": heads.MOMENTUM} if optimizer == "sgd" else {}
    plain.compile(kind(0.01, **arguments), "sparse_categorical_crossentropy")
    plain.fit(TRAIN.features, TRAIN.targets, 300, epochs=5, verbose=0)
    assert weights(head) == pytest.approx(weights(plain), abs=1e-5)


def test_blocks_change_no_bit(monkeypatch):
    whole, _ = train(epochs=3, seed=7)
    linear, _ = train(**LINEAR, seed=7)
    monkeypatch.setattr(examples_module, "BLOCK_BYTES", 4 * FEATURES * 70)
    parts, _ = train(epochs=3, seed=7)
    assert (weights(whole) == weights(parts)).all()
    in_parts, _ = train(**LINEAR, seed=7)
    assert weights(in_parts) == pytest.approx(weights(linear), abs=1e-2)


def test_an_epoch_has_every_row_once_with_its_target_in_another_order(monkeypatch):
    count = 50
    monkeypatch.setattr(examples_module, "BLOCK_BYTES", 4 * 4 * 16)
    numbers = np.arange(count, dtype=np.int32)
    numbered = FeatureSet(numbers[:, None].repeat(4, 1).astype(np.float16), numbers, np.empty((count, 0, 4)))
    orders, random = [], np.random.default_rng(0)
    for _ in range(2):
        blocks = list(heads.shuffled_blocks(numbered, 8, random))
        assert [features.shape[:2] for features, _ in blocks] == [(2, 8), (2, 8), (2, 8), (1, 2)]
        assert all(features.dtype == np.float32 for features, _ in blocks)
        assert all((features[..., 0] == targets).all() for features, targets in blocks)
        orders.append(np.concatenate([targets.ravel() for _, targets in blocks]))
        assert sorted(orders[-1]) == list(range(count))
    assert (orders[0] != orders[1]).any()


def test_each_epoch_draws_each_example_as_it_is_or_as_a_view():
    count, views = 20, 3
    numbers = np.arange(count)[:, None] + 100 * np.arange(1 + views)
    marked = np.float32(numbers[..., None].repeat(4, 2))
    drawn = {number: set() for number in range(count)}
    random, viewed = np.random.default_rng(0), FeatureSet(marked[:, 0], np.arange(count, dtype=np.int32), marked[:, 1:])
    for _ in range(60):
        for features, targets in heads.shuffled_blocks(viewed, 8, random):
            assert (features[..., 0] % 100 == targets).all()
            for value, target in zip(features[..., 0].ravel(), targets.ravel(), strict=True):
                drawn[target].add(int(value) // 100)
    assert all(seen == {0, 1, 2, 3} for seen in drawn.values())


@BOTH
def test_a_head_learns_from_views(changes):
    viewed = make_examples(views=2)
    blind = dataclasses.replace(viewed, features=np.zeros_like(viewed.features))
    head, _ = train(blind, **changes)
    assert accuracy(head, TEST) > 0.9


@BOTH
def test_balanced_class_weights_find_a_rare_class(changes):
    """The classes overlap, so that a rare one is predicted only if its examples weigh more."""
    train_set, test_set = make_examples(noise=4.0, shares=(0.48, 0.48, 0.04)), make_examples(2000, seed=2, noise=4.0)
    recall = {}
    for kind in (None, "balanced"):
        head, _ = train(train_set, make_examples(seed=1, noise=4.0), class_weight=kind, **changes)
        recall[kind] = (heads.logits(head, test_set).argmax(axis=1)[test_set.targets == 2] == 2).mean()
    assert recall["balanced"] > recall[None] + 0.15


@pytest.mark.parametrize("changes", [{"epochs": 100, "dropout": 0, "batch_size": 8}, LINEAR], ids=["adam", "lbfgs"])
def test_label_smoothing_bounds_the_confidence(changes):
    train_set = make_examples(noise=0.1)
    confidence = {}
    for smoothing in (0, 0.3):
        head, _ = train(train_set, train_set, label_smoothing=smoothing, **changes)
        confidence[smoothing] = np.asarray(head(train_set.features)).max(axis=1).mean()
    assert confidence[0.3] == pytest.approx(1 - 0.3 + 0.3 / CLASSES, abs=0.04)
    assert confidence[0] > 0.95


def test_weight_decay_keeps_weights_small():
    sizes = []
    for weight_decay in (0, 1):
        head, _ = train(weight_decay=weight_decay, epochs=40)
        sizes.append(np.abs(head.get_layer("hidden_1").kernel.numpy()).mean())
    assert sizes[1] < 0.9 * sizes[0]


def test_early_stopping_restores_the_epoch_with_the_lowest_val_loss():
    noise = np.random.default_rng(0).normal(size=(100, FEATURES)).astype(np.float32)
    head, history = train(dataclasses.replace(make_examples(100), features=noise), patience=3, epochs=200)
    assert len(history.rows) == history.kept["epoch"] + 3 < 200
    assert log_loss(heads.logits(head, VAL), VAL.targets).mean() == pytest.approx(history.kept["val_loss"], abs=1e-5)
    assert history.kept["val_loss"] == min(row["val_loss"] for row in history.rows)


def test_a_cosine_ends_at_zero():
    _, history = train(schedule="cosine", epochs=4)
    rates = [row["learning_rate"] for row in history.rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden": [], "dropout": 0.1},
            "loss is NaN from the first epoch on: training diverged; lower the learning_rate",
        ),
        (LINEAR, "loss is NaN: training diverged; check the features for NaN and for very large values"),
    ],
    ids=["adam", "lbfgs"],
)
def test_a_loss_that_is_nan_from_the_start_is_an_error(changes, message):
    broken = dataclasses.replace(make_examples(30), features=np.full((30, FEATURES), np.nan, np.float32))
    with pytest.raises(UserError, match=message):
        train(broken, broken, **changes)


def test_training_stops_when_the_loss_becomes_nan(capsys):
    calls = iter(range(100))

    class NaNInEpoch3(FeatureSet):
        def rows(self, *arguments):
            return super().rows(*arguments) * (np.nan if next(calls) == 2 else 1)

    head, history = train(val_set=NaNInEpoch3(VAL.features, VAL.targets, VAL.views), hidden=[], dropout=0.1)
    assert [row["epoch"] for row in history.rows] == [1, 2]
    assert np.isfinite(weights(head)).all()
    assert "loss is NaN in epoch 3: training stops" in capsys.readouterr().err


def test_lbfgs_may_start_at_the_optimum():
    targets = np.arange(30, dtype=np.int32) % CLASSES
    constant = FeatureSet(np.zeros((30, FEATURES), np.float32), targets, np.zeros((30, 0, FEATURES), np.float32))
    head, _ = train(constant, constant, **LINEAR)
    assert heads.logits(head, constant) == pytest.approx(np.zeros((30, CLASSES)))


def test_lbfgs_warns_if_it_stops_too_early(monkeypatch, capsys):
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 2)
    train(**LINEAR)
    assert "lbfgs has not converged after 2 iterations" in capsys.readouterr().err


@pytest.mark.parametrize(("scale", "warns"), [(1, False), (1e30, True)])
def test_lbfgs_warns_about_features_that_are_too_large(capsys, scale, warns):
    scaled = dataclasses.replace(TRAIN, features=TRAIN.features * np.float32(scale))
    train(scaled, scaled, **LINEAR)
    assert ("lbfgs has not converged" in capsys.readouterr().err) == warns


def test_a_linear_head_learns_a_thousand_classes_from_one_example_each():
    n_classes, random = 1000, np.random.default_rng(0)
    centers, targets = random.normal(size=(n_classes, 64)), np.arange(n_classes, dtype=np.int32)
    train_set, val_set = (
        FeatureSet(
            np.float32(centers + random.normal(0, 0.5, centers.shape)),
            targets,
            np.empty((n_classes, 0, 64), np.float32),
        )
        for _ in range(2)
    )
    chosen = resolve_head(load_params(ROOT / "params.yaml").train_head.choice(hidden=[]), n_classes)
    head, history = heads.train(train_set, val_set, n_classes, chosen, 0)
    assert accuracy(head, val_set) > 0.99
    assert history.kept["val_loss"] < 1
