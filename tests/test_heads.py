"""Heads on features: what the choices do, and that blocks, views and mapped files change no result."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from conftest import ROOT
from sklearn.linear_model import LogisticRegression

from headstart.config import load_params
from headstart.errors import UserError
from headstart.training import heads
from headstart.training.examples import FeatureSet
from headstart.training.head_settings import list_trials, resolve_head
from headstart.training.search import search

FEATURES, CLASSES = 20, 3
NO_GROUPS = np.arange(300)


def examples(
    count: int = 300, seed: int = 0, noise: float = 1.0, shares=(1 / 3, 1 / 3, 1 / 3), views: int = 0
) -> FeatureSet:
    """Classes around centres of their own; views are the features with other noise."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES)).astype(np.float32)
    targets = random.choice(CLASSES, count, p=shares).astype(np.int32)
    around = random.normal(0, noise, (1 + views, count, FEATURES)).astype(np.float32) + centres[targets]
    return FeatureSet(around[0], targets, around[1:].transpose(1, 0, 2))


def choice(**changes):
    """As params.yaml has it, but for an end of training that a test can wait for."""
    choices = {"hidden": [8], "epochs": 15, "learning_rate": 0.01, **changes}
    return resolve_head(load_params(ROOT / "params.yaml").train_head.choice(**choices), 300, CLASSES)


def accuracy(head: keras.Model, judged: FeatureSet) -> float:
    return float((heads.logits(head, judged).argmax(axis=1) == judged.targets).mean())


def weights(head: keras.Model) -> np.ndarray:
    return np.concatenate([value.ravel() for value in head.get_weights()])


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": []},
        {"hidden": [], "dropout": 0},
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
    head, epochs = heads.train(examples(), examples(seed=1), CLASSES, choice(**changes), 0)
    assert accuracy(head, examples(seed=2)) > 0.9
    assert epochs.kept["val_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("images", "changes", "settled"),
    [
        (89, {}, ([], 0, 0.02, "lbfgs")),
        (90, {}, ([128], 0.2, 0, "adam")),
        (89, {"hidden": [128]}, ([128], 0.2, 0, "adam")),
        (90, {"hidden": []}, ([], 0, 0.02, "lbfgs")),
        (90, {"optimizer": "lbfgs"}, ([], 0, 0.02, "lbfgs")),
        (89, {"optimizer": "adam"}, ([], 0, 0, "adam")),
        (89, {"batch_norm": True}, ([], 0, 0.02, "lbfgs")),
        (89, {"dropout": 0.5}, ([], 0.5, 0, "adam")),
        (89, {"weight_decay": 0}, ([], 0, 0, "lbfgs")),
    ],
    ids=str,
)
def test_what_is_left_open_follows_from_the_images(images, changes, settled):
    found = resolve_head(load_params(ROOT / "params.yaml").train_head.choice(**changes), images, CLASSES)
    assert (found.hidden, found.dropout, found.weight_decay, found.optimizer) == settled


def test_one_step_moves_every_weight():
    start, _ = heads.train(examples(30), examples(30), CLASSES, choice(epochs=1, batch_size=30, learning_rate=1e-9), 0)
    moved, _ = heads.train(examples(30), examples(30), CLASSES, choice(epochs=1, batch_size=30, learning_rate=0.1), 0)
    for before, after in zip(start.get_weights(), moved.get_weights(), strict=True):
        assert (np.abs(before - after) > 0.01).mean() > 0.5


def test_a_linear_head_is_logistic_regression():
    train_set, weight_decay = examples(noise=3.0), 0.02
    head, epochs = heads.train(
        train_set, examples(seed=1), CLASSES, choice(hidden=[], dropout=0, weight_decay=weight_decay), 0
    )
    other = LogisticRegression(C=1 / (weight_decay * len(train_set)), tol=1e-8, max_iter=1000)
    other.fit(train_set.features, train_set.targets)
    found, expected = heads.logits(head, train_set), other.decision_function(train_set.features)
    assert np.abs((found - found.mean(1, keepdims=True)) - (expected - expected.mean(1, keepdims=True))).max() < 0.01
    assert epochs.kept["epoch"] == len(epochs.rows) > 3


def test_the_steps_are_those_of_keras():
    """The same model through plain Keras, without shuffling, has the same weights after two epochs."""
    train_set, batch = examples(64), 16
    chosen = choice(dropout=0, epochs=2, batch_size=batch, optimizer="sgd")
    order = iter([np.arange(64), np.arange(64)])

    class InOrder:
        def permutation(self, count):
            return next(order)

    optimizer = heads._optimizer(chosen, 8)
    keras.utils.set_random_seed(5)
    plain = heads.networks.build_head(FEATURES, CLASSES, [8], "relu", False, 0)
    ours = keras.models.clone_model(plain)
    ours.set_weights(plain.get_weights())
    run = heads._compiled_steps(ours, optimizer, np.ones(CLASSES, np.float32), 0)
    for _ in range(2):
        for features, targets in heads._shuffled(train_set, batch, InOrder()):
            run(features, targets)
    plain.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    plain.fit(train_set.features, train_set.targets, batch, epochs=2, shuffle=False, verbose=0)
    assert weights(ours) == pytest.approx(weights(plain), abs=1e-5)


def test_blocks_change_no_bit(monkeypatch):
    whole, _ = heads.train(examples(), examples(seed=1), CLASSES, choice(epochs=3), 7)
    linear, _ = heads.train(examples(), examples(seed=1), CLASSES, choice(hidden=[], dropout=0), 7)
    monkeypatch.setattr(heads, "BLOCK_BYTES", 4 * FEATURES * 70)
    parts, _ = heads.train(examples(), examples(seed=1), CLASSES, choice(epochs=3), 7)
    assert (weights(whole) == weights(parts)).all()
    in_parts, _ = heads.train(examples(), examples(seed=1), CLASSES, choice(hidden=[], dropout=0), 7)
    assert weights(in_parts) == pytest.approx(weights(linear), abs=1e-2)


def test_an_epoch_has_every_row_once_with_its_target_in_an_order_of_its_own(monkeypatch):
    count = 50
    monkeypatch.setattr(heads, "BLOCK_BYTES", 4 * 4 * 16)
    numbered = FeatureSet(
        np.arange(count, dtype=np.float16)[:, None].repeat(4, 1),
        np.arange(count, dtype=np.int32),
        np.empty((count, 0, 4)),
    )
    orders = []
    random = np.random.default_rng(0)
    for _ in range(2):
        found = list(heads._shuffled(numbered, 8, random))
        assert [features.shape[:2] for features, _ in found] == [(2, 8), (2, 8), (2, 8), (1, 2)]
        assert all(features.dtype == np.float32 for features, _ in found)
        assert all((features[..., 0] == targets).all() for features, targets in found)
        orders.append(np.concatenate([targets.ravel() for _, targets in found]))
        assert sorted(orders[-1]) == list(range(count))
    assert (orders[0] != orders[1]).any()


def test_each_epoch_draws_each_image_as_it_is_or_as_a_view():
    count, views = 20, 3
    numbers = np.arange(count)[:, None] + 100 * np.arange(1 + views)
    marked = np.float32(numbers[..., None].repeat(4, 2))
    drawn = {number: set() for number in range(count)}
    random, viewed = np.random.default_rng(0), FeatureSet(marked[:, 0], np.arange(count, dtype=np.int32), marked[:, 1:])
    for _ in range(60):
        for features, targets in heads._shuffled(viewed, 8, random):
            assert (features[..., 0] % 100 == targets).all()
            for value, target in zip(features[..., 0].ravel(), targets.ravel(), strict=True):
                drawn[target].add(int(value) // 100)
    assert all(seen == {0, 1, 2, 3} for seen in drawn.values())


@pytest.mark.parametrize("changes", [{}, {"hidden": [], "dropout": 0}], ids=["adam", "lbfgs"])
def test_views_are_learned_from(changes):
    shown = examples(views=2)
    blind = FeatureSet(np.zeros_like(shown.features), shown.targets, shown.views)
    head, _ = heads.train(blind, examples(seed=1), CLASSES, choice(**changes), 0)
    assert accuracy(head, examples(seed=2)) > 0.9


@pytest.mark.parametrize("changes", [{}, {"hidden": [], "dropout": 0}], ids=["adam", "lbfgs"])
def test_balanced_classes_weigh_alike(changes):
    """Where one class is rare and the classes overlap, its images are found only if they weigh more."""
    train_set, judged = examples(noise=4.0, shares=(0.48, 0.48, 0.04)), examples(2000, seed=2, noise=4.0)
    recall = {}
    for kind in (None, "balanced"):
        head, _ = heads.train(train_set, examples(seed=1, noise=4.0), CLASSES, choice(class_weight=kind, **changes), 0)
        rare = judged.targets == 2
        recall[kind] = (heads.logits(head, judged).argmax(axis=1)[rare] == 2).mean()
    assert recall["balanced"] > recall[None] + 0.15


@pytest.mark.parametrize(
    "changes", [{"epochs": 100, "dropout": 0, "batch_size": 8}, {"hidden": [], "dropout": 0}], ids=["adam", "lbfgs"]
)
def test_smoothed_labels_bound_the_confidence(changes):
    train_set = examples(noise=0.1)
    confidence = {}
    for smoothing in (0, 0.3):
        head, _ = heads.train(train_set, train_set, CLASSES, choice(label_smoothing=smoothing, **changes), 0)
        confidence[smoothing] = np.asarray(head(train_set.features)).max(axis=1).mean()
    assert confidence[0.3] == pytest.approx(1 - 0.3 + 0.3 / CLASSES, abs=0.04)
    assert confidence[0] > 0.95


def test_weight_decay_keeps_weights_small():
    sizes = []
    for weight_decay in (0, 1):
        head, _ = heads.train(examples(), examples(seed=1), CLASSES, choice(weight_decay=weight_decay, epochs=40), 0)
        sizes.append(np.abs(head.get_layer("hidden_1").kernel.numpy()).mean())
    assert sizes[1] < 0.9 * sizes[0]


def test_training_stops_where_val_falls_no_more_and_the_best_epoch_is_kept():
    noise = FeatureSet(
        np.random.default_rng(0).normal(size=(100, FEATURES)).astype(np.float32),
        examples(100).targets,
        examples(100).views,
    )
    judged = examples(seed=1)
    head, epochs = heads.train(noise, judged, CLASSES, choice(patience=3, epochs=200), 0)
    assert len(epochs.rows) == epochs.kept["epoch"] + 3 < 200
    found = heads.logits(head, judged)
    assert heads.log_loss(found, judged.targets).mean() == pytest.approx(epochs.kept["val_loss"], abs=1e-5)
    assert epochs.kept["val_loss"] == min(row["val_loss"] for row in epochs.rows)


def test_a_cosine_ends_at_zero():
    _, epochs = heads.train(examples(), examples(seed=1), CLASSES, choice(schedule="cosine", epochs=4), 0)
    rates = [row["learning_rate"] for row in epochs.rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("changes", [{"hidden": []}, {"hidden": [], "dropout": 0}], ids=["adam", "lbfgs"])
def test_a_loss_that_is_no_number_is_told(changes):
    broken = FeatureSet(np.full((30, FEATURES), np.nan, np.float32), examples(30).targets, examples(30).views)
    with pytest.raises(UserError, match="training diverged"):
        heads.train(broken, broken, CLASSES, choice(**changes), 0)


def test_training_stops_where_the_loss_is_no_number_any_more(monkeypatch, capsys):
    score, calls = heads._score, iter(range(100))
    nothing = {"val_loss": np.nan, "val_accuracy": 0.0}
    monkeypatch.setattr(heads, "_score", lambda *some: nothing if next(calls) == 2 else score(*some))
    head, epochs = heads.train(examples(), examples(), CLASSES, choice(), 0)
    assert [row["epoch"] for row in epochs.rows] == [1, 2]
    assert np.isfinite(weights(head)).all()
    assert "the loss is no number in epoch 3: training stops" in capsys.readouterr().err


def test_what_has_converged_at_its_start_is_no_failure():
    balanced = np.arange(30, dtype=np.int32) % CLASSES
    nothing = FeatureSet(np.zeros((30, FEATURES), np.float32), balanced, np.zeros((30, 0, FEATURES), np.float32))
    head, _ = heads.train(nothing, nothing, CLASSES, choice(hidden=[], dropout=0), 0)
    assert heads.logits(head, nothing) == pytest.approx(np.zeros((30, CLASSES)))


def test_what_has_not_converged_is_told(monkeypatch, capsys):
    monkeypatch.setattr(heads, "MAX_ITERATIONS", 2)
    heads.train(examples(), examples(), CLASSES, choice(hidden=[], dropout=0), 0)
    assert "lbfgs has not converged after 2 iterations" in capsys.readouterr().err


@pytest.mark.parametrize(("scale", "told"), [(1, False), (1e30, True)])
def test_features_that_no_step_suits_are_told(capsys, scale, told):
    given = examples()
    scaled = FeatureSet(given.features * np.float32(scale), given.targets, given.views)
    heads.train(scaled, scaled, CLASSES, choice(hidden=[], dropout=0), 0)
    assert ("lbfgs has not converged" in capsys.readouterr().err) == told


# --- search


def searching(**changes):
    raw = load_params(ROOT / "params.yaml").train_head.model_dump()
    from headstart.head_config import TrainHead

    return TrainHead(**{**raw, "hidden": [8], "epochs": 10, "learning_rate": 0.01, **changes})


@pytest.mark.parametrize(("folds", "hidden"), [(None, [[], [16]]), (2, [[16]])])
def test_a_search_finds_what_is_better(folds, hidden):
    choices = searching(search={"learning_rate": [1e-6, 0.01], "hidden": hidden}, search_folds=folds, dropout=0.2)
    found, table = search(examples(), examples(seed=1), CLASSES, NO_GROUPS, choices, 0)
    assert found["learning_rate"] == 0.01
    assert list(table.columns) == ["trial", "learning_rate", "hidden", "val_loss", "val_accuracy", "rank"]
    assert len(table) == 2 * len(hidden)
    best = table[table["rank"] == 1].iloc[0]
    assert best.val_loss == table.val_loss.min()
    assert best.hidden == str(found["hidden"])
    again = search(examples(), examples(seed=1), CLASSES, NO_GROUPS, choices, 0)[1]
    assert again.equals(table)


def test_folds_keep_a_group_together_and_leave_val_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(heads, "train", lambda some, others, *_, **__: (seen.append((some, others)), (None, None))[1])
    monkeypatch.setattr(heads, "logits", lambda _, others: np.eye(CLASSES, dtype=np.float32)[others.targets])
    train_set = examples()
    numbered = FeatureSet(NO_GROUPS[:, None].repeat(FEATURES, 1).astype(np.float32), train_set.targets, train_set.views)
    search(numbered, examples(seed=1), CLASSES, NO_GROUPS // 3, searching(search={"dropout": [0.1]}, search_folds=4), 0)
    held_out = [others.features[:, 0] for _, others in seen]
    assert sorted(np.concatenate(held_out)) == list(range(300))
    for some, others in seen:
        assert not set(some.features[:, 0] // 3) & set(others.features[:, 0] // 3)


def test_a_trial_that_diverges_ranks_last_and_the_others_go_on(monkeypatch):
    original = heads.train

    def train(some, others, n_classes, chosen, *rest, **named):
        if chosen.learning_rate == 1.0:
            raise UserError("training diverged")
        return original(some, others, n_classes, chosen, *rest, **named)

    monkeypatch.setattr(heads, "train", train)
    choices = searching(search={"learning_rate": [1.0, 0.01]}, epochs=2)
    found, table = search(examples(), examples(seed=1), CLASSES, NO_GROUPS, choices, 0)
    assert found == {"learning_rate": 0.01}
    assert list(table["rank"]) == [2, 1]
    assert np.isfinite(table.val_loss).all()


def test_drawn_trials_are_some_of_the_grid():
    choices = searching(search={"dropout": [0, 0.1, 0.2], "hidden": [[], [4], [8]]}, search_trials=4)
    drawn, grid = list_trials(choices, 1), list_trials(choices.model_copy(update={"search_trials": None}), 1)
    assert len(drawn) == 4 < len(grid) == 9
    assert all(trial in grid for trial in drawn)
    assert drawn == list_trials(choices, 1)
    assert len({str(list_trials(choices, seed)) for seed in range(5)}) > 1


def test_without_a_search_nothing_is_tried():
    found, table = search(examples(), examples(), CLASSES, NO_GROUPS, searching(), 0)
    assert found == {}
    assert list(table.columns) == ["trial", "val_loss", "val_accuracy", "rank"]
    assert table.empty


def test_folds_that_the_classes_do_not_have_are_told():
    few = examples(12, shares=(0.5, 0.5, 0))
    with pytest.raises(UserError, match=r"train_head\.search_folds 50"):
        search(few, few, CLASSES, np.arange(12), searching(search={"dropout": [0.1]}, search_folds=50), 0)
