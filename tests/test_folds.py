"""Folds of fine-tuning: nothing is scored by a network that has seen it, and a killed run resumes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SHORT, SMALL, write_params
from conftest import run_stages as run

from headstart import paths
from headstart.config import load_params
from headstart.errors import UserError
from headstart.training import folds, heads, networks, plan, selection
from headstart.training.examples import FeatureSet
from headstart.training.head_report import read_head_report
from headstart.training.head_settings import resolve_head
from headstart.training.trainer import Trainer
from headstart.training.verdict import PairedScores

CLASSES, EXAMPLES, N_TRAIN, FEATURES = 3, 60, 48, 40
PARAMS = load_params(ROOT / "params.yaml")
LINEAR = resolve_head(PARAMS.train_head.choice(hidden=[]), CLASSES)
UNKNOWN = np.full((EXAMPLES, CLASSES), np.nan, np.float32)


@pytest.fixture
def examples() -> FeatureSet:
    """Random labels: only a network that has seen an example knows its class."""
    random = np.random.default_rng(0)
    targets = (np.arange(EXAMPLES) % CLASSES).astype(np.int32)
    features = random.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    return FeatureSet(features, targets, np.empty((EXAMPLES, 0, FEATURES), np.float32))


def make_folds(
    examples: FeatureSet, n_folds: int, groups: np.ndarray | None = None, logits: np.ndarray = UNKNOWN
) -> list[folds.Fold]:
    groups = np.arange(N_TRAIN) if groups is None else groups
    return folds.make_folds(examples, groups, n_folds, CLASSES, LINEAR, 0, logits)


class Features:
    workers, mixes, lengths = 1, True, None

    def __init__(self, features: np.ndarray) -> None:
        self._features = features

    def read(self, rows: np.ndarray, view: int) -> dict[str, np.ndarray]:
        return {"x": self._features[rows]}


def make_plan(
    examples: FeatureSet, network: keras.Model, head: keras.Model, made: list[folds.Fold], folder: Path, **changes
) -> plan.Plan:
    options = {
        "batch_size": 8,
        "learning_rate": 0.03,
        "label_smoothing": 0.1,
        "mixup": 0.0,
        "ema": 0.5,
        "class_weight": None,
    }
    settings = PARAMS.fine_tune.model_copy(update=options)
    values = {
        "settings": settings,
        "trainer": Trainer(network, settings, [1.0] * len(network.trainable_variables)),
        "head": head,
        "start": networks.get_state(network),
        "inputs": Features(examples.features),
        "targets": examples.targets,
        "n_train": N_TRAIN,
        "epochs": 20,
        "views": 0,
        "head_logits": np.zeros((EXAMPLES - N_TRAIN, CLASSES), np.float32),
        "gives_up": False,
        "refits": False,
        "refit_epochs": 0,
        "restarts": False,
        "folds": made,
        "seed": 0,
        "checkpoints": folder / "state",
        "chosen": {},
    }
    return plan.Plan(**{**values, **changes})


def test_each_example_of_train_is_held_out_once_and_its_group_with_it(examples):
    groups = np.arange(N_TRAIN) // 2
    made = make_folds(examples, 4, groups)
    assert sorted(np.concatenate([fold.held_out for fold in made])) == list(range(N_TRAIN))
    for fold in made:
        assert sorted([*fold.train_rows, *fold.held_out]) == list(range(EXAMPLES))
        assert not set(groups[fold.train_rows[fold.train_rows < N_TRAIN]]) & set(groups[fold.held_out])


def make_network(hidden: bool = False) -> tuple[keras.Model, keras.Model]:
    """Return a network on features, and its last layers."""
    keras.utils.set_random_seed(0)
    head = networks.build_head(FEATURES, CLASSES, [])
    x = keras.Input((FEATURES,), name="x")
    below = keras.layers.Dense(FEATURES, "relu")(x) if hidden else x
    return keras.Model({"x": x}, networks.without_softmax(head)(below)), head


def test_no_example_is_scored_by_a_network_that_has_seen_it(examples, tmp_path, monkeypatch):
    network, head = make_network(hidden=True)
    made, train_accuracy, original = make_folds(examples, 2), [], plan.train

    def train(job):
        if train_accuracy:
            assert (head.get_weights()[0] == made[len(train_accuracy) - 1].head[0]).all()
        result = original(job)
        train_accuracy.append(result.history.rows[-1]["accuracy"])
        return result

    monkeypatch.setattr(plan, "train", train)
    tried = make_plan(examples, network, head, made, tmp_path)
    trained = tried.train(lambda row: None)
    before = network.get_weights()
    result = tried.compare(trained)
    assert len(train_accuracy) == 3
    assert min(train_accuracy) > 0.9
    assert len(result.scores.targets) == EXAMPLES
    assert result.metrics()["tuned_held_out_accuracy"] < 0.6
    assert result.metrics()["head_held_out_accuracy"] < 0.6
    assert not result.scores.verdict(0.75)[0]
    assert all((one == other).all() for one, other in zip(network.get_weights(), before, strict=True))


@pytest.mark.parametrize(("gives_up", "trained"), [(True, 1), pytest.param(False, 4, marks=pytest.mark.slow)])
def test_folds_end_as_soon_as_the_head_is_clearly_better(examples, tmp_path, gives_up, trained):
    """On train the head knows all classes, on val no more than chance; the network, by random labels, none."""
    known = 5 * np.eye(CLASSES, dtype=np.float32)[examples.targets]
    made = make_folds(examples, 4, logits=known)
    assert all((fold.logits == known[fold.held_out]).all() for fold in made)
    network, head = make_network()
    tried = make_plan(examples, network, head, made, tmp_path, gives_up=gives_up, epochs=2)
    tried = dataclasses.replace(tried, settings=tried.settings.model_copy(update={"learning_rate": 1e-9}))
    found = selection.fine_tune(tried, lambda row: None)
    assert (found.better, found.report()["folds_trained"]) == (False, trained)
    held_out = EXAMPLES - N_TRAIN + sum(len(fold.held_out) for fold in made[:trained])
    assert len(found.compared.scores.targets) == held_out
    assert len(found.curves()) == 2


@pytest.mark.parametrize(
    ("confidence", "at_once"), [(0.5, True), pytest.param(1 - 1e-12, False, marks=pytest.mark.slow)]
)
def test_folds_end_as_soon_as_the_network_is_clearly_better(examples, tmp_path, confidence, at_once):
    """Here features tell the class, and the head to beat is chance. If more proof is asked for, folds are trained."""
    examples.features[:, :CLASSES] += 1.5 * np.eye(CLASSES)[examples.targets]
    made = make_folds(examples, 3, logits=np.zeros((EXAMPLES, CLASSES), np.float32))
    network, head = make_network()
    tried = make_plan(examples, network, head, made, tmp_path, gives_up=True, epochs=2)
    tried = dataclasses.replace(tried, settings=tried.settings.model_copy(update={"confidence": confidence}))
    found = selection.fine_tune(tried, lambda row: None)
    assert (found.compared.folds == 0) is at_once
    assert found.better is at_once


def test_more_folds_than_examples_of_a_class_or_groups_are_refused(examples):
    with pytest.raises(UserError, match=r"params.yaml: fine_tune.folds 21: no class has so many examples; lower it"):
        make_folds(examples, 21)
    message = r"folds 5: copies and groups of examples stay together, which leaves 3 to divide; lower it"
    with pytest.raises(UserError, match=message):
        make_folds(examples, 5, np.arange(N_TRAIN) % 3)


def test_all_heads_have_the_same_temperature(examples):
    """One each, fitted on the examples that it is scored on, would make the heads look better than they are."""
    scales = []
    for fold in make_folds(examples, 4):
        held_out = examples.subset(fold.held_out)
        head, _ = heads.train(examples.subset(fold.train_rows), held_out, CLASSES, LINEAR, 0, progress=False)
        scales.append(np.median(head.get_weights()[0] / fold.head[0]))
        assert fold.logits == pytest.approx(heads.logits(head, held_out) / scales[-1], abs=1e-4)
    assert np.ptp(scales) == pytest.approx(0, abs=1e-4)


# --- the stage


@pytest.fixture(scope="module")
def with_head(tmp_path_factory, extracted_short) -> Path:
    """Photos with features and a linear head."""
    folder = tmp_path_factory.mktemp("folds") / "here"
    shutil.copytree(extracted_short, folder)
    changes = {"train_head.hidden": [], "fine_tune.folds": 2, "fine_tune.epochs": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(Path("params.yaml"), **{**SMALL, **SHORT, "data.source": "photos", **changes})
        run("train_head")
    return folder


@pytest.fixture
def here(tmp_path: Path, with_head, monkeypatch) -> Path:
    shutil.copytree(with_head, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_fine_tune() -> dict:
    keras.backend.clear_session()  # so that layers have the same names each time, as in a process of their own
    run("fine_tune")
    return json.loads(paths.report("fine_tune").read_text())


def test_folds_train_heads_with_the_settings_of_the_head(here, monkeypatch):
    """Also if these have more digits than metrics are rounded to."""
    write_params(Path("params.yaml"), **{**load_params().leaves(), "train_head.weight_decay": 2e-9})
    run("train_head")
    used = []
    monkeypatch.setattr(folds, "make_folds", lambda *arguments: used.append(arguments[4]) or [])
    manifest = pd.read_parquet(paths.MANIFEST)
    found = read_head_report(int((manifest.split != "test").sum()), CLASSES)
    folds.load_folds(load_params().fine_tune, found, 128, 0)
    assert used == [resolve_head(load_params().train_head.choice(), CLASSES)]


@pytest.mark.slow
@pytest.mark.parametrize("better", [True, False])
def test_val_and_folds_select(here, monkeypatch, capsys, better):
    monkeypatch.setattr(PairedScores, "verdict", lambda self, confidence: (better, 0.875))
    monkeypatch.setattr(PairedScores, "settled", lambda self, confidence: False)
    report = run_fine_tune()
    assert report["selected"] == ("fine_tuned" if better else "head")
    assert report["tuned_confidence"] == 0.875
    assert report["val_loss"] == report["tuned_val_loss" if better else "head_val_loss"]
    assert (report["settings"]["folds"], report["folds_trained"], report["last_epoch"]) == (2, 2, 2)
    lines = capsys.readouterr().out.splitlines()
    assert "fine_tune: training on train, then in up to 2 folds of it, until it is clear what is better" in lines
    line = lines[-1]
    assert ("but it classifies fewer examples correctly" in line) is not better
    loss, accuracy = report["tuned_held_out_loss"], report["tuned_held_out_accuracy"]
    figures = f"has log loss {loss:.4f}, accuracy {accuracy:.4f} and Brier score {report['tuned_brier_score']:.4f}"
    assert f"on val and 2 folds of train the fine-tuned network {figures}" in line
    assert f"the head {report['head_held_out_loss']:.4f}" in line


@pytest.mark.parametrize("refit", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_after_folds_that_win_training_on_train_goes_on_with_val(here, monkeypatch, capsys, refit):
    """Unless train and val are not to be joined."""
    write_params(Path("params.yaml"), **{**load_params().leaves(), "fine_tune.refit": refit})
    monkeypatch.setattr(PairedScores, "verdict", lambda self, confidence: (True, 0.875))
    monkeypatch.setattr(PairedScores, "settled", lambda self, confidence: False)
    seen, original = [], plan.train

    def train(job):
        before = [np.array(variable.numpy()) for variable in job.trainer.network.trainable_variables]
        result = original(job)
        seen.append((len(job.train_set.targets), job.epochs, before, result.history.weights))
        return result

    monkeypatch.setattr(plan, "train", train)
    report = run_fine_tune()
    counts = pd.read_parquet(paths.MANIFEST).split.value_counts()
    both = counts["train"] + counts["val"]
    (n_train, epochs, _, trained), (first, *_), (second, *_), *refits = seen
    assert (n_train, epochs, first + second) == (counts["train"], 2, both + counts["val"])
    assert (report["selected"], report["refitted"], report["last_epoch"]) == ("fine_tuned", refit, 2)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith("; refitted on train + val") is refit
    assert len(pd.read_csv(paths.curves("fine_tune"))) == 2
    if refit:
        ((n_examples, epochs, start, _),) = refits
        assert (n_examples, epochs) == (both, report["settings"]["refit_epochs"])
        assert all((one == other).all() for one, other in zip(start, trained, strict=True))
    else:
        assert not refits


def test_no_fold_is_trained_where_val_settles_it(here, monkeypatch, capsys):
    monkeypatch.setattr(PairedScores, "settled", lambda self, confidence: True)
    report = run_fine_tune()
    assert (report["settings"]["folds"], report["folds_trained"], report["last_epoch"]) == (2, 0, 2)
    assert ": on val the fine-tuned network" in capsys.readouterr().out.splitlines()[-1]


def test_a_fold_that_stops_with_nan_counts_as_nothing_learned(here, monkeypatch, capsys):
    original = plan.train

    def train(job):
        result = original(job)
        if not job.checkpoint:
            result.history.kept = {"epoch": 1}
        return dataclasses.replace(result, gave_up=False)  # of a training that gave up the last logits count

    monkeypatch.setattr(plan, "train", train)
    report = run_fine_tune()
    assert report["selected"] == "head"
    assert report["folds_trained"] == 1
    assert "fold 1 of 2: 5 of 15 classified correctly, 15 by the head" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_killed_in_a_fold_resumes_to_the_same_file(here, monkeypatch, capsys):
    """With dropout in the head, whose random numbers would otherwise go on from fold to fold."""
    write_params(Path("params.yaml"), **{**load_params().leaves(), "train_head.hidden": [8], "train_head.dropout": 0.3})
    run("train_head")
    monkeypatch.setattr(PairedScores, "settled", lambda self, confidence: False)
    run_fine_tune()
    whole, state = paths.MODEL.read_bytes(), paths.cache_path("fine_tune")
    assert not list(state.iterdir())
    trained, original = [], plan.train

    def killed(job):
        if len(trained) == 2:
            raise SystemExit
        trained.append(job)
        return original(job)

    with monkeypatch.context() as patch:
        patch.setattr(plan, "train", killed)
        with pytest.raises(SystemExit):
            run_fine_tune()
    assert len(list(state.iterdir())) == 2  # of the training on train, and of the first fold
    monkeypatch.setattr(plan, "train", lambda job: (trained.append(job), original(job))[1])
    run_fine_tune()
    assert len([job for job in trained if not job.checkpoint]) == 2
    assert "fold 1 of 2, as it was before the run was stopped:" in capsys.readouterr().out
    assert paths.MODEL.read_bytes() == whole
    assert not list(state.iterdir())
