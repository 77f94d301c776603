"""Heads by cross-validation: which is selected, that nothing held out is used, and that what is shipped is the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import ROOT
from scipy.special import log_softmax

from headstart.backbones.depths import DEPTHS
from headstart.config import load_params
from headstart.training import head_choice, heads, linear, networks
from headstart.training.examples import FeatureSet, split_folds
from headstart.training.head_choice import AVERAGE, HIDDEN, Candidate, Selection
from headstart.training.trained_head import TrainedHead, train_chosen

CLASSES, DIM = 3, 12
WIDTHS = {"last": [DIM], "quarter": [DIM], "half": [DIM, DIM]}
PARAMS = load_params(ROOT / "params.yaml").train_head


def make_examples(
    count: int = 240, signal: tuple[float, ...] = (1, 1, 1, 1), seed: int = 0, views: int = 0, n_classes: int = CLASSES
) -> FeatureSet:
    """Classes around centers, in as many tensors as `signal` has strengths; features are not negative."""
    random, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    targets = (np.arange(count) % n_classes).astype(np.int32)
    tensors = []
    for strength in signal:
        centers = strength * fixed.normal(size=(n_classes, DIM))
        tensors.append(np.abs(3 + random.normal(0, 1, (1 + views, count, DIM)) + centers[targets]))
    features = np.concatenate(tensors, axis=2).astype(np.float32)
    return FeatureSet(features[0], targets, features[1:].transpose(1, 0, 2))


def xor_examples(count: int = 400, seed: int = 0) -> FeatureSet:
    """Two classes: whether two of the features are both large or both small; the others are noise."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (count, 2))
    features = np.abs(random.normal(1, 0.3, (count, DIM)))
    features[:, :2] = np.abs(4 * bits + random.normal(0, 0.3, (count, 2)))
    targets = (bits[:, 0] ^ bits[:, 1]).astype(np.int32)
    return FeatureSet(features.astype(np.float32), targets, np.empty((count, 0, DIM), np.float32))


def select(examples: FeatureSet, widths=WIDTHS, seed: int | None = None, groups=None) -> Selection:
    n_classes = int(examples.targets.max()) + 1
    groups = np.arange(len(examples)) if groups is None else groups
    folds = split_folds(examples.targets, groups, 5, 0, "folds")
    return head_choice.select(examples, folds, np.ones(n_classes, np.float32), widths, 0.0, seed)


def train(
    train_set: FeatureSet, val_set: FeatureSet, widths=WIDTHS, groups=None, refit: bool = True, **changes: object
) -> TrainedHead:
    n_classes, count = int(train_set.targets.max()) + 1, len(train_set) + len(val_set)
    params = PARAMS.model_copy(update=changes)
    groups = np.arange(count) if groups is None else groups
    return train_chosen(train_set, val_set, groups, n_classes, widths, params, refit, 0)


def logits_of(trained: TrainedHead, examples: FeatureSet) -> np.ndarray:
    network = networks.from_layers(trained.head) if isinstance(trained.head, list) else trained.head
    return heads.logits(network, examples.prefix(trained.dim))


def accuracy(trained: TrainedHead, examples: FeatureSet) -> float:
    return float((logits_of(trained, examples).argmax(axis=1) == examples.targets).mean())


def test_the_params_that_come_with_the_project_leave_the_head_open():
    assert PARAMS.asked_for() == []
    assert tuple(WIDTHS) == DEPTHS


# --- which one is selected


@pytest.mark.parametrize(
    ("signal", "depths", "names"),
    [
        ((0.2, 0.2, 1, 1), {"half"}, {"half", AVERAGE}),
        ((0.2, 1.5, 0, 0), {"quarter", "half"}, {"quarter", "half", AVERAGE}),
        ((1, 0, 0, 0), {"last"}, {"last"}),
    ],
    ids=["early layers", "the last quarter", "the last layer"],
)
def test_features_are_taken_from_the_depth_that_helps(signal, depths, names):
    selection = select(make_examples(signal=signal))
    assert selection.best.depth in depths
    assert selection.best.name in names
    assert set(selection.found) == {*DEPTHS, AVERAGE}
    summary = selection.summary()
    assert summary["losses"][selection.best.name] == min(summary["losses"].values())
    assert set(summary["decays"]) == set(DEPTHS)


def test_the_head_on_early_layers_is_better_on_other_examples():
    train_set, val_set, test_set = (make_examples(signal=(0.2, 0.2, 1, 1), seed=seed) for seed in range(3))
    several, last = train(train_set, val_set), train(train_set, val_set, {"last": [DIM]})
    assert several.dim == 4 * DIM
    assert last.dim == DIM
    assert accuracy(several, test_set) > accuracy(last, test_set) + 0.2


def test_the_last_layer_stays_unless_another_is_better_by_a_standard_error():
    """The lowest loss of several is often so by chance."""
    kept = 0
    for seed in range(8):
        selection = select(make_examples(60, (0.4, 0.1, 0.1, 0.1), seed))
        last, lowest = selection.found["last"], min(selection.found.values(), key=lambda one: one.losses.mean())
        assert selection.best is last or selection.best.beats(last)
        kept += selection.best is last is not lowest
    assert kept > 0


def test_better_means_by_more_than_a_standard_error_of_the_paired_difference():
    logits, losses = np.zeros((100, 2)), np.random.default_rng(0).gamma(1, 1, 100)
    step = np.tile([1.0, -1.0], 50)  # its standard error is a tenth
    last = Candidate("last", "last", logits, losses)
    better, similar = (Candidate("half", "half", logits, losses - gain + step) for gain in (0.11, 0.09))
    assert better.beats(last)
    assert not similar.beats(last)
    assert not last.beats(last)


def test_the_average_is_of_the_logits_of_all_depths():
    found = select(make_examples(signal=(0.5, 0.5, 0.5, 0.5))).found
    assert found[AVERAGE].logits == pytest.approx(np.mean([found[name].logits for name in DEPTHS], axis=0))
    assert found[AVERAGE].depth == "half"


def test_a_hidden_layer_is_selected_where_classes_need_one():
    examples, test_set = xor_examples(), xor_examples(seed=1)
    selection = select(examples, {"last": [DIM]}, seed=0)
    assert selection.best.name == HIDDEN
    assert selection.epochs > 0
    trained = train(examples, xor_examples(100, seed=2), {"last": [DIM]})
    assert trained.choice["head"] == HIDDEN
    assert accuracy(trained, test_set) > 0.9
    assert select(make_examples(), seed=0).best.name != HIDDEN


@pytest.mark.parametrize("changes", [{"label_smoothing": 0.1}, {"class_weight": "balanced"}], ids=str)
def test_no_hidden_head_is_tried_where_examples_do_not_count_the_same(changes):
    examples = xor_examples()
    rare = np.flatnonzero((examples.targets == 0) | (np.arange(len(examples)) % 4 == 0))
    trained = train(examples.subset(rare), xor_examples(100, seed=2), {"last": [DIM]}, **changes)
    assert HIDDEN not in trained.choice["losses"]


def test_an_example_far_from_all_others_leaves_the_hidden_head_calibrated():
    """Its probabilities are 0 and 1 in float32, but its logits are finite."""
    examples = xor_examples()
    examples.features[0] *= 10_000
    trained = train(examples, xor_examples(100, seed=2), {"last": [DIM]})
    assert trained.choice["head"] == HIDDEN
    assert np.isfinite(trained.held_out).all()
    assert trained.temperature < 2


# --- nothing that is held out is used


def test_copies_stay_together_in_cross_validation():
    """Random labels: only a head that has seen the copy of an example knows its class."""
    random = np.random.default_rng(0)
    half = FeatureSet(
        np.abs(random.normal(3, 1, (150, 60))).astype(np.float32),
        random.integers(0, 3, 150).astype(np.int32),
        np.empty((150, 0, 60), np.float32),
    )
    copies = np.tile(np.arange(150), 2)
    found = {}
    for name, groups in (("together", copies), ("apart", np.arange(300))):
        trained = train(half, half, {"last": [60]}, groups)
        found[name] = (trained.held_out.argmax(axis=1) == np.tile(half.targets, 2)).mean()
    assert found["together"] < 0.5 < 0.8 < found["apart"]


def test_labels_of_a_fold_do_not_shape_its_own_logits(monkeypatch):
    monkeypatch.setattr(head_choice, "DECAYS", (0.01,))
    monkeypatch.setattr(head_choice, "START", 0)
    examples = make_examples(signal=(0.5, 0.5, 0.5, 0.5))
    folds = split_folds(examples.targets, np.arange(len(examples)), 5, 0, "folds")
    held_out, targets = folds[0][1], examples.targets.copy()
    targets[held_out] = (targets[held_out] + 1) % CLASSES
    weights, found = np.ones(CLASSES, np.float32), []
    for each in (examples, dataclasses.replace(examples, targets=targets)):
        found.append(head_choice.select(each, folds, weights, WIDTHS, 0.0, None).found)
    for name in found[0]:
        before, after = (one[name].logits for one in found)
        assert (before[held_out] == after[held_out]).all()
        assert (before != after).any()


def test_val_is_kept_apart_without_a_refit():
    train_set, val_set = make_examples(), make_examples(60, seed=1)
    trained = train(train_set, val_set, refit=False)
    others = dataclasses.replace(val_set, targets=(val_set.targets + 1) % CLASSES)
    again = train(train_set, others, refit=False)
    assert trained.refitted is again.refitted is False
    assert (trained.held_out == again.held_out).all()
    assert logits_of(trained, val_set) == pytest.approx(trained.held_out[len(train_set) :], abs=1e-4)
    both = train(train_set, val_set)
    assert both.refitted
    assert logits_of(both, val_set) != pytest.approx(both.held_out[len(train_set) :], abs=1e-2)


# --- what is shipped is what was trained


@pytest.mark.parametrize(("rows", "dim"), [(20, 50), (50, 20)])
def test_a_rotation_keeps_all_products(rows, dim):
    features = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    features -= features.mean(axis=0)
    rotation = linear.rotate(features)
    assert rotation.coordinates.shape[1] <= min(rows, dim)
    assert rotation.coordinates @ rotation.coordinates.T == pytest.approx(features @ features.T, abs=1e-3)
    count = rotation.coordinates.shape[1]
    basis = rotation.basis(count)
    assert features @ basis == pytest.approx(rotation.coordinates, abs=1e-3)
    assert basis.T @ basis == pytest.approx(np.eye(count), abs=1e-4)
    assert rotation.basis(3) == pytest.approx(basis[:, :3], abs=1e-5)
    kernel = np.random.default_rng(1).normal(size=(3, 4))
    assert features @ rotation.unrotate(kernel) == pytest.approx(rotation.coordinates[:, :3] @ kernel, abs=1e-3)
    assert (np.diff((rotation.coordinates**2).sum(axis=0)) <= 1e-3).all()


@pytest.mark.parametrize("name", [*DEPTHS, AVERAGE])
def test_the_shipped_head_gives_the_logits_of_the_rotated_solution(name):
    examples, weights = make_examples(signal=(0.5, 0.5, 0.5, 0.5)), np.ones(CLASSES, np.float32)
    selection = select(examples)
    selection = dataclasses.replace(selection, best=selection.found[name])
    expected = []
    for part in selection.parts:
        rotated = selection.depths[part].examples
        head = linear.fit(rotated, weights, selection.found[part].decay, rough=True)
        expected.append(head.logits(rotated.features))
    shipped = networks.from_layers(head_choice.train_selected(selection, weights, 0.0, 0))
    assert shipped.input_shape[1] == selection.depth.dim
    found = heads.logits(shipped, examples.prefix(selection.depth.dim))
    assert found == pytest.approx(np.mean(expected, axis=0), abs=1e-3)
    assert np.abs(found).max() > 1


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_shipped_hidden_head_gives_the_probabilities_of_the_trained_one(monkeypatch, n_classes):
    examples = make_examples(signal=(0.3, 0, 0, 0), n_classes=n_classes)
    selection = select(examples, {"last": [4 * DIM]})
    best, trained = dataclasses.replace(selection.best, name=HIDDEN), []

    class Recorded(head_choice.MLPClassifier):
        def partial_fit(self, features, targets, classes):
            trained.append((self, features))
            return super().partial_fit(features, targets, classes=classes)

    monkeypatch.setattr(head_choice, "MLPClassifier", Recorded)
    selection = dataclasses.replace(selection, best=best, epochs=3)
    layers = head_choice.train_selected(selection, np.ones(n_classes, np.float32), 0.0, 0)
    assert len(trained) == 3
    network, coordinates = trained[-1]
    found = heads.logits(networks.from_layers(layers), examples)
    assert log_softmax(found, axis=1) == pytest.approx(network.predict_log_proba(coordinates), abs=1e-3)


@pytest.mark.parametrize("dead", [0, 1, 3])
def test_a_tensor_that_differs_by_rounding_alone_is_not_used(dead):
    """Scaled to the variance of the others it would be noise that another engine does not repeat."""
    examples, tensor = make_examples(60, (1, 1, 1, 1)), slice(dead * DIM, (dead + 1) * DIM)
    rounding = np.random.default_rng(0).normal(1, 1e-7, (60, DIM))
    examples.features[:, tensor] = (3 * rounding).astype(np.float32)
    trained = train(examples, examples)
    assert isinstance(trained.head, list)
    kernel = np.zeros((4 * DIM, CLASSES))
    kernel[: trained.dim] = trained.head[0].kernel
    assert not kernel[tensor].any()


def test_features_of_any_scale_and_of_no_variance_give_a_head():
    examples = make_examples(signal=(1, 1, 1, 1))
    features = examples.features * np.float32([1e-3, 1, 1e3, 0]).repeat(DIM)
    broken = dataclasses.replace(examples, features=features)
    trained = train(broken, broken)
    assert np.isfinite(trained.held_out).all()
    assert np.isfinite(logits_of(trained, broken)).all()
    assert accuracy(trained, broken) > 0.9
