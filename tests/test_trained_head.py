"""The head that cross-validation chooses: its temperature, what params change in it, and how many examples train it."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import keras
import numpy as np
import pytest
from scipy.special import log_softmax
from test_head_choice import CLASSES, DIM, accuracy, logits_of, make_examples, train, xor_examples

from headstart.training import calibration, head_choice, heads, linear, linear_file, networks, trained_head
from headstart.training.examples import FeatureSet, class_weights, concat
from headstart.training.head_choice import HIDDEN


def test_a_temperature_of_few_examples_is_nearer_to_one():
    assert head_choice.shrink(4.0, head_choice.HALFWAY) == pytest.approx(2.0)
    assert head_choice.shrink(0.25, head_choice.HALFWAY) == pytest.approx(0.5)
    shrunk = [head_choice.shrink(4.0, count) for count in (0, 10, 100, 1000, 10**6)]
    assert shrunk == sorted(shrunk)
    assert (shrunk[0], shrunk[-1]) == (1.0, pytest.approx(4.0, abs=0.01))


def test_the_temperature_is_fitted_in_cross_validation_and_shrunk():
    train_set, val_set = make_examples(60, (0.3, 0, 0, 0)), make_examples(30, (0.3, 0, 0, 0), seed=1)
    trained = train(train_set, val_set)
    targets = concat(train_set, val_set).targets
    fitted = calibration.fit_temperature(trained.held_out * trained.temperature, targets)
    assert trained.temperature == pytest.approx(head_choice.shrink(fitted, len(targets)), rel=1e-3)
    assert abs(np.log(fitted)) > abs(np.log(trained.temperature)) > 0


# --- params, views, large sets


def test_balanced_class_weights_find_a_rare_class():
    plenty, test_set = make_examples(900, (0.2, 0, 0, 0)), make_examples(900, (0.2, 0, 0, 0), seed=2)
    rare = plenty.subset(np.flatnonzero((plenty.targets < 2) | (np.arange(900) % 30 == 2)))
    recall = {}
    for kind in (None, "balanced"):
        trained = train(rare, make_examples(30, (0.2, 0, 0, 0), seed=1), {"last": [DIM]}, class_weight=kind)
        recall[kind] = (logits_of(trained, test_set).argmax(axis=1)[test_set.targets == 2] == 2).mean()
    assert recall["balanced"] > recall[None] + 0.15


def test_label_smoothing_bounds_the_confidence():
    examples = make_examples(signal=(5, 5, 5, 5))
    confidence = []
    for smoothing in (0.0, 0.3):
        trained = train(examples, make_examples(60, (5, 5, 5, 5), seed=1), label_smoothing=smoothing)
        confidence.append(np.exp(log_softmax(logits_of(trained, examples) * trained.temperature, axis=1)).max(axis=1))
    assert confidence[1].mean() < 0.9 < confidence[0].mean()


def test_a_head_learns_from_views_what_does_not_last():
    """One feature gives the class away, but not in augmented views; others tell it in all of them."""
    random = np.random.default_rng(0)

    def spoiled(seed: int, views: int) -> FeatureSet:
        plain = make_examples(150, (0.4, 0, 0, 0), seed, views)
        plain.features[:, 0] = 10 * plain.targets
        plain.views[:, :, 0] = 10 * random.integers(0, CLASSES, plain.views.shape[:2])
        return plain

    test_set = make_examples(300, (0.4, 0, 0, 0), seed=5)
    test_set.features[:, 0] = 10 * random.integers(0, CLASSES, 300)
    found = [accuracy(train(spoiled(0, views), spoiled(1, 0), refit=False), test_set) for views in (0, 4)]
    assert found[1] > found[0] + 0.1


def test_of_many_examples_a_sample_chooses_and_all_train(monkeypatch):
    monkeypatch.setattr(trained_head, "MAX_SAMPLE", 120)
    fitted, fit = [], linear.fit
    monkeypatch.setattr(linear, "fit", lambda *a, **k: (fitted.append(len(a[0])), fit(*a, **k))[1])
    signal = (0.1, 0.1, 0.6, 0.6)
    train_set, val_set, test_set = (make_examples(count, signal, seed) for seed, count in enumerate((900, 90, 300)))
    trained = train(train_set, val_set, refit=False)
    assert trained.choice["depth"] == "half"
    assert trained.dim == 4 * DIM
    assert max(fitted) == 900
    assert fitted.count(96) > 10  # four parts of the sample in five
    assert trained.refitted is False
    assert np.isnan(trained.held_out[:900]).all()
    assert trained.held_out[900:] == pytest.approx(logits_of(trained, val_set), abs=1e-4)
    assert accuracy(trained, test_set) > 0.9
    assert {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"} <= set(trained.curves.columns)


def test_of_many_examples_a_hidden_head_is_trained_too_and_val_decides(monkeypatch):
    monkeypatch.setattr(trained_head, "MAX_SAMPLE", 120)
    trained = train(xor_examples(1500), xor_examples(300, seed=1), {"last": [DIM]}, refit=False)
    assert trained.choice["head"] == HIDDEN
    assert accuracy(trained, xor_examples(300, seed=2)) > 0.9
    easy = train(make_examples(600), make_examples(150, seed=1), {"last": [DIM] * 4}, refit=False)
    assert easy.choice["head"] == "last"


def test_a_sample_has_each_class_by_its_share(monkeypatch):
    monkeypatch.setattr(trained_head, "MAX_SAMPLE", 100)
    many = make_examples(600)
    shares = many.subset(np.flatnonzero((many.targets < 2) | (np.arange(600) % 12 == 2)))
    seen, original = [], head_choice.select
    monkeypatch.setattr(head_choice, "select", lambda sample, *a: (seen.append(sample), original(sample, *a))[1])
    train(shares, make_examples(60, seed=1), refit=False)
    counts, total = np.bincount(shares.targets), len(shares)
    assert np.bincount(seen[0].targets) == pytest.approx(100 * counts / total, abs=1)


def test_a_single_example_of_each_class_gives_a_linear_head_and_a_line_that_says_why(capsys):
    few = make_examples(3)
    trained = train(few, few, groups=np.tile(np.arange(3), 2), refit=False)
    assert trained.choice == {}
    assert trained.dim == DIM
    assert trained.settings.hidden == []
    assert "to choose one by cross-validation takes two examples of a class" in capsys.readouterr().out


def test_start_heads_on_features_as_they_are_decay_as_the_chosen_one():
    """The same decay for features on any scale: what counts is how far it bends the logits."""
    examples = make_examples(signal=(1, 1, 1, 1))
    decays = [
        trained_head.start_decay(dataclasses.replace(examples, features=scale * examples.features), 0.01)
        for scale in (np.float32(1), np.float32(2))
    ]
    assert decays[1] == pytest.approx(4 * decays[0], rel=1e-3)
    weights = class_weights(examples.targets, CLASSES, None)
    scaled = dataclasses.replace(examples, features=2 * examples.features)
    found = [
        linear.fit(each, weights, decay).logits(each.features)
        for each, decay in zip((examples, scaled), decays, strict=True)
    ]
    assert found[0] == pytest.approx(found[1], abs=0.02)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_linear_head_is_written_as_keras_writes_it(tmp_path, n_classes):
    """By a template, which saves loading Keras."""
    examples = make_examples(n_classes=n_classes)
    trained = train(examples, examples, {"last": [DIM]})
    assert len(trained.head) == 1
    trained.save(tmp_path / "head.keras", list("abc")[:n_classes])
    keras.backend.clear_session()  # so that operations have the names of a process of their own
    networks.save(networks.from_layers(trained.head), tmp_path / "other.keras", list("abc")[:n_classes])
    ours, theirs = (zipfile.ZipFile(tmp_path / name) for name in ("head.keras", "other.keras"))
    assert set(ours.namelist()) == set(theirs.namelist())
    for name in set(ours.namelist()) - {"model.weights.h5"}:
        assert json.loads(ours.read(name)) == json.loads(theirs.read(name)), name
    loaded, classes = networks.load(tmp_path / "head.keras")
    assert classes == list("abc")[:n_classes]
    other, _ = networks.load(tmp_path / "other.keras")
    assert (heads.logits(loaded, examples.prefix(DIM)) == heads.logits(other, examples.prefix(DIM))).all()


def test_with_another_keras_it_is_keras_that_writes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(linear_file.importlib.metadata, "version", lambda name: "9.9")
    examples = make_examples()
    trained = train(examples, examples, {"last": [DIM]})
    trained.save(tmp_path / "head.keras", list("abc"))
    loaded, _ = networks.load(tmp_path / "head.keras")
    assert heads.logits(loaded, examples.prefix(DIM)) == pytest.approx(logits_of(trained, examples), abs=1e-5)
