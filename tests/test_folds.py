"""Judging by folds: who is held out of what, and what is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, SHORT, SMALL, write_params
from conftest import run_stages as run

from headstart import paths
from headstart.config import load_params
from headstart.errors import UserError
from headstart.training import defaults, folds, heads, networks, plan
from headstart.training.batches import Batches
from headstart.training.examples import FeatureSet
from headstart.training.fine_tuning import Job
from headstart.training.head_settings import resolve_head
from pipeline import fine_tune

CLASSES, IMAGES, FEATURES = 3, 60, 40
PARAMS = load_params(ROOT / "params.yaml")
LINEAR = resolve_head(PARAMS.train_head.choice(), IMAGES, CLASSES)


@pytest.fixture
def examples() -> FeatureSet:
    """Labels that nothing tells: only who has seen an image knows its class."""
    random = np.random.default_rng(0)
    targets = (np.arange(IMAGES) % CLASSES).astype(np.int32)
    features = random.normal(size=(IMAGES, FEATURES)).astype(np.float32)
    return FeatureSet(features, targets, np.empty((IMAGES, 0, FEATURES), np.float32))


class Features:
    workers = 1

    def __init__(self, features: np.ndarray) -> None:
        self._features = features

    def read(self, rows: np.ndarray, number: int) -> np.ndarray:
        return self._features[rows]


def test_each_image_is_held_out_once_and_its_group_with_it(examples):
    groups = np.arange(IMAGES) // 2
    made = folds.split(examples, groups, 5, CLASSES, LINEAR, seed=0)
    assert sorted(np.concatenate([fold.held_out for fold in made])) == list(range(IMAGES))
    for fold in made:
        assert sorted([*fold.seen, *fold.held_out]) == list(range(IMAGES))
        assert not set(groups[fold.seen]) & set(groups[fold.held_out])


def test_what_judges_has_not_seen_what_is_judged(examples, tmp_path):
    keras.utils.set_random_seed(0)
    head = networks.build_head(FEATURES, CLASSES, [])
    start = keras.Input((FEATURES,))
    network = keras.Model(start, networks.without_softmax(head)(keras.layers.Dense(FEATURES, "relu")(start)))
    as_it_came = network.get_weights()
    choice = PARAMS.fine_tune.model_copy(update={"batch_size": 8, "learning_rate": 0.03, "mixup": 0.0})
    inputs, ones = Features(examples.features), np.ones(CLASSES, np.float32)
    made = folds.split(examples, np.arange(IMAGES), 4, CLASSES, LINEAR, seed=0)
    on_seen = []

    def job(fold: folds.Fold, tell) -> Job:
        assert (head.get_weights()[0] == fold.head[0]).all()
        train_set = Batches(inputs, examples.targets, fold.seen, ones, 8, 0, seed=0)
        val_set = Batches(inputs, examples.targets, fold.held_out, ones, 8, 0, seed=None)

        def told(row):
            tell(row)
            on_seen.append(row.get("accuracy"))

        return Job(network, train_set, val_set, [1.0] * 4, choice, 20, 0.5, None, False, told)

    judged = folds.judge(network, head, made, job, examples.targets, 20, tmp_path / "kept")
    assert on_seen[-1] > 0.9
    assert judged.metrics()["tuned_folds_accuracy"] < 0.6
    assert judged.metrics()["head_folds_accuracy"] < 0.6
    assert not judged.states.verdict(0.75)[0]
    assert all((one == other).all() for one, other in zip(network.get_weights(), as_it_came, strict=True))


def test_images_of_val_stand_in_the_place_of_their_views():
    views = np.arange(24, dtype=np.float16).reshape(3, 2, 4)
    train_set = FeatureSet(views[:, 0], np.zeros(3, np.int32), views)
    val_set = FeatureSet(np.ones((2, 4), np.float16), np.ones(2, np.int32), np.empty((2, 0, 4), np.float16))
    both = folds.together(train_set, val_set)
    assert both.targets.tolist() == [0, 0, 0, 1, 1]
    assert (both.views[:3] == views).all()
    assert (both.rows(np.array([3, 4]), np.array([1, 2])) == 1).all()


@pytest.mark.parametrize(
    ("asked", "val", "classes", "groups", "number"),
    [
        (None, 49, [20, 20], 40, 5),
        (None, 50, [20, 20], 40, 0),
        (None, 10, [3, 2], 5, 3),
        (None, 10, [20, 20], 4, 4),
        (None, 1, [1, 1], 2, 0),
        (None, 10, [501, 500], 1001, 0),
        (0, 10, [20, 20], 40, 0),
        (3, 1000, [20, 20], 40, 3),
    ],
)
def test_folds_judge_where_val_is_small(asked, val, classes, groups, number):
    targets = np.repeat(np.arange(len(classes)), classes)
    choice = PARAMS.fine_tune.model_copy(update={"folds": asked})
    assert defaults.folds(choice, val, targets, np.arange(len(targets)) % groups) == number


def test_more_folds_than_images_are_refused(examples):
    with pytest.raises(
        UserError, match=r"params.yaml: fine_tune.folds 21: no class has so many images in train and val; lower it"
    ):
        folds.split(examples, np.arange(IMAGES), 21, CLASSES, LINEAR, seed=0)


@pytest.fixture
def here(tmp_path: Path, extracted_short, monkeypatch) -> Path:
    """Photos with features, and a linear head."""
    shutil.copytree(extracted_short, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    params = {
        **SMALL,
        **SHORT,
        "data.source": "photos",
        "train_head.hidden": None,
        "fine_tune.folds": 2,
        "fine_tune.epochs": 2,
    }
    write_params(Path("params.yaml"), **params)
    run("train_head")
    return tmp_path


def test_folds_train_heads_as_the_head_was(here, monkeypatch):
    """Also where it was by numbers that no metric is written with."""
    write_params(Path("params.yaml"), **{**load_params().leaves(), "train_head.weight_decay": 2e-9})
    run("train_head")
    used = []
    monkeypatch.setattr(folds, "split", lambda *some: used.append(some[4]) or [])
    fine_tune.make_folds(load_params(), CLASSES)
    assert used == [resolve_head(load_params().train_head.choice(optimizer="lbfgs"), 1, CLASSES)]


def tuned() -> dict:
    keras.backend.clear_session()  # a process of its own gives layers the same names each time
    run("fine_tune")
    return json.loads(paths.metrics("fine_tune").read_text())


def test_no_head_has_a_temperature_of_its_own(examples):
    """It would be fitted on the images that judge, and make the heads look better than they are."""
    made = folds.split(examples, np.arange(IMAGES), 4, CLASSES, LINEAR, seed=0)
    scales = []
    for fold in made:
        head, _ = heads.train(examples.subset(fold.seen), examples.subset(fold.held_out), CLASSES, LINEAR, 0, bar=False)
        scales.append(np.median(head.get_weights()[0] / fold.head[0]))
        assert fold.logits == pytest.approx(heads.logits(head, examples.subset(fold.held_out)) / scales[-1], abs=1e-4)
    assert np.ptp(scales) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("better", [True, False])
def test_what_the_folds_say_is_done(here, monkeypatch, capsys, better):
    monkeypatch.setattr(folds.States, "verdict", lambda self, confidence: (better, 0.875))
    found = tuned()
    assert found["fine_tuned"] is better
    assert found["tuned_confidence"] == 0.875
    assert found["val_loss"] == found["tuned_val_loss" if better else "head_val_loss"]
    assert found["last_epoch"] == 2
    chosen = json.loads(paths.report("fine_tune").read_text())
    assert chosen["folds"] == 2
    said = capsys.readouterr().out.splitlines()[-1]
    losses = (found["tuned_folds_loss"], found["tuned_folds_accuracy"], found["head_folds_loss"])
    assert ("but fewer answers are right" in said) is not better
    assert "epoch 2 has cross-validated loss {:.4f} and accuracy {:.4f}, the head {:.4f}".format(*losses) in said


def test_a_training_that_breaks_off_is_not_shipped_whatever_folds_say(here, monkeypatch, capsys):
    monkeypatch.setattr(folds.States, "verdict", lambda self, confidence: (True, 1.0))
    original = plan.tune

    def broken(job):
        read = job.train_set.__class__.__getitem__

        def no_numbers(self, index):
            inputs, targets, weights = read(self, index)
            return (
                np.full(inputs.shape, np.nan, np.float32) if self is job.train_set and self._epoch else inputs,
                targets,
                weights,
            )

        monkeypatch.setattr(job.train_set.__class__, "__getitem__", no_numbers)
        return original(job)

    monkeypatch.setattr(plan, "tune", broken)
    found = tuned()
    assert found["fine_tuned"] is False
    assert found["last_epoch"] == 1
    assert found["finished"] is False
    assert "broke off after epoch 1, its loss being no number" in capsys.readouterr().out


def test_a_fold_that_breaks_off_says_that_nothing_was_learned(here, monkeypatch):
    def broken(job):
        found = tune(job)
        found.epochs.kept = {"epoch": 1}
        return found

    tune = folds.tune
    monkeypatch.setattr(folds, "tune", broken)
    found = tuned()
    assert found["fine_tuned"] is False
    assert found["tuned_folds_loss"] == pytest.approx(np.log(3), abs=1e-4)


def test_killed_in_a_fold_it_goes_on_there_to_the_same_file(here, monkeypatch, capsys):
    """With dropout in the head, whose random numbers go on from fold to fold were they not set back."""
    params = {**load_params().leaves(), "train_head.hidden": [8], "train_head.dropout": 0.3}
    write_params(Path("params.yaml"), **params)
    run("train_head")
    tuned()
    whole, state = paths.MODEL.read_bytes(), paths.cache_path("fine_tune")
    assert not list(state.iterdir())
    trained, tune = [], folds.tune

    def stop(job):
        if trained:
            raise SystemExit
        trained.append(job)
        return tune(job)

    with monkeypatch.context() as patch:
        patch.setattr(folds, "tune", stop)
        with pytest.raises(SystemExit):
            tuned()
    assert len(list(state.iterdir())) == 1
    monkeypatch.setattr(folds, "tune", lambda job: (trained.append(job), tune(job))[1])
    tuned()
    assert len(trained) == 2
    assert "fold 1 of 2, as it was before it was stopped:" in capsys.readouterr().out
    assert paths.MODEL.read_bytes() == whole
    assert not list(state.iterdir())
