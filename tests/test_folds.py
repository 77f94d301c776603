"""Judging by folds: who is held out of what, and what is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, SMALL, write_params
from conftest import run_stages as run

from pipeline import fine_tune, paths
from pipeline.errors import UserError
from pipeline.learning import defaults, folds, networks
from pipeline.learning.checkpoint import Checkpoint
from pipeline.learning.fine_tuning import Batches, Job
from pipeline.learning.heads import Examples
from pipeline.params import load_params

CLASSES, IMAGES, FEATURES = 3, 60, 40
PARAMS = load_params(ROOT / "params.yaml")
LINEAR = PARAMS.train_head.choice().settled(IMAGES, CLASSES)


@pytest.fixture
def examples() -> Examples:
    """Labels that nothing tells: only who has seen an image knows its class."""
    random = np.random.default_rng(0)
    targets = (np.arange(IMAGES) % CLASSES).astype(np.int32)
    features = random.normal(size=(IMAGES, FEATURES)).astype(np.float32)
    return Examples(features, targets, np.empty((IMAGES, 0, FEATURES), np.float32))


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

    def job(number: int, fold: folds.Fold, tell) -> Job:
        assert (head.get_weights()[0] == fold.head[0]).all()
        train_set = Batches(inputs, examples.targets, fold.seen, ones, 8, 0, seed=0)
        val_set = Batches(inputs, examples.targets, fold.held_out, ones, 8, 0, seed=None)

        def told(row):
            tell(row)
            on_seen.append(row.get("accuracy"))

        checkpoint = Checkpoint(tmp_path / f"{number}.npz")
        return Job(network, train_set, val_set, [1.0] * 4, choice, 20, 0.5, checkpoint, told, fold=True)

    judged = folds.judge(network, head, made, job, examples.targets, 20)
    assert on_seen[-1] > 0.9
    assert judged.metrics()["tuned_folds_accuracy"] < 0.6
    assert judged.metrics()["head_folds_accuracy"] < 0.6
    assert not judged.candidates.verdict(0.75)[0]
    assert all((one == other).all() for one, other in zip(network.get_weights(), as_it_came, strict=True))


def test_images_of_val_stand_in_the_place_of_their_views():
    views = np.arange(24, dtype=np.float16).reshape(3, 2, 4)
    train_set = Examples(views[:, 0], np.zeros(3, np.int32), views)
    val_set = Examples(np.ones((2, 4), np.float16), np.ones(2, np.int32), np.empty((2, 0, 4), np.float16))
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
        (0, 10, [20, 20], 40, 0),
        (3, 1000, [20, 20], 40, 3),
    ],
)
def test_folds_judge_where_val_is_small(asked, val, classes, groups, number):
    targets = np.repeat(np.arange(len(classes)), classes)
    choice = PARAMS.fine_tune.model_copy(update={"folds": asked})
    assert defaults.folds(choice, val, targets, np.arange(len(targets)) % groups) == number


def test_more_folds_than_images_are_refused(examples):
    with pytest.raises(UserError, match=r"params.yaml: fine_tune.folds 21: .*; lower it, or 0 for val"):
        folds.split(examples, np.arange(IMAGES), 21, CLASSES, LINEAR, seed=0)


@pytest.fixture
def here(tmp_path: Path, extracted, monkeypatch) -> Path:
    """Photos with features, and a linear head."""
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    params = {**SMALL, "data.source": "photos", "train_head.hidden": None, "fine_tune.folds": 2, "fine_tune.epochs": 2}
    write_params(Path("params.yaml"), **params)
    run("train_head")
    return tmp_path


def tuned() -> dict:
    keras.backend.clear_session()  # a process of its own gives layers the same names each time
    run("fine_tune")
    return json.loads(paths.metrics("fine_tune").read_text())


@pytest.mark.parametrize("better", [True, False])
def test_what_the_folds_say_is_done(here, monkeypatch, capsys, better):
    monkeypatch.setattr(folds.Candidates, "verdict", lambda self, confidence: (better, 0.875))
    found = tuned()
    assert found["fine_tuned"] is better
    assert found["tuned_confidence"] == 0.875
    assert found["val_loss"] == found["tuned_val_loss" if better else "head_val_loss"]
    assert found["best_epoch"] == 2
    chosen = json.loads(paths.choices("fine_tune").read_text())
    assert chosen["folds"] == 2
    said = capsys.readouterr().out.splitlines()[-1]
    losses = (found["tuned_folds_loss"], found["tuned_folds_accuracy"], found["head_folds_loss"])
    assert "epoch 2 has cross-validated loss {:.4f} and accuracy {:.4f}, the head {:.4f}".format(*losses) in said


def test_a_training_that_breaks_off_is_not_shipped_whatever_folds_say(here, monkeypatch):
    monkeypatch.setattr(folds.Candidates, "verdict", lambda self, confidence: (True, 1.0))
    original = fine_tune.tune

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

    monkeypatch.setattr(fine_tune, "tune", broken)
    found = tuned()
    assert found["fine_tuned"] is False
    assert found["best_epoch"] == 1


def test_killed_in_a_fold_it_goes_on_there_to_the_same_file(here, monkeypatch):
    tuned()
    whole, state = paths.MODEL.read_bytes(), paths.kept("fine_tune")
    assert not list(state.iterdir())
    trained, judge = [], folds.judge

    def killed(*some, **named):
        with monkeypatch.context() as patch:
            tune = folds.tune

            def stop(job):
                if trained:
                    object.__setattr__(
                        job, "tell", lambda row: (_ for _ in ()).throw(SystemExit) if row["epoch"] == 2 else None
                    )
                trained.append(job)
                return tune(job)

            patch.setattr(folds, "tune", stop)
            return judge(*some, **named)

    with monkeypatch.context() as patch:
        patch.setattr(folds, "judge", killed)
        with pytest.raises(SystemExit):
            tuned()
    assert len(list(state.iterdir())) == 1
    seen = []
    fit = fine_tune.fine_tuning.Trainer.fit
    monkeypatch.setattr(
        fine_tune.fine_tuning.Trainer,
        "fit",
        lambda self, *some, **named: (seen.append(named["epochs"] - named["initial_epoch"]), fit(self, *some, **named))[
            1
        ],
    )
    tuned()
    assert seen == [0, 2, 2]
    assert paths.MODEL.read_bytes() == whole
    assert not list(state.iterdir())
