"""The stages one after the other in one process, on a few photos: their files, and what params change in them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SMALL, write_params
from conftest import run_stages as run
from modality_cases import CASES, each_modality, examples_of

from headstart import paths, stage
from headstart.backbones import get_backbone
from headstart.backbones.base import weights_sha256
from headstart.config import load_params
from headstart.data.layouts import open_examples
from headstart.data.predictions import parse_predictions
from headstart.errors import UserError
from headstart.lockfile import Workspace, read_stages
from headstart.modalities import get_modality
from headstart.report.pages import make_pages
from headstart.training import calibration, heads, networks
from headstart.training.examples import load_features


@pytest.fixture
def here(tmp_path: Path, extracted, monkeypatch) -> Path:
    """Photos with their features."""
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def finished(request, monkeypatch) -> Path:
    """The current folder, after all five stages: to be read only, but for pages."""
    folder = examples_of(request)
    monkeypatch.chdir(folder)
    return folder


def set_params(**changes: object) -> None:
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", **changes})


def report(name: str) -> dict:
    return json.loads(paths.report(name).read_text())


def metrics(name: str) -> dict:
    return json.loads(paths.metrics(name).read_text())


each_finished = each_modality("finished", "finished")


@each_finished
def test_features_are_those_of_the_manifest(finished):
    manifest, meta, params = pd.read_parquet(paths.MANIFEST), json.loads(paths.FEATURES_META.read_text()), load_params()
    for split, file in paths.FEATURES.items():
        features = np.load(file)
        assert features.shape == ((manifest.split == split).sum(), meta["feature_dim"])
        assert features.dtype == np.float32
    assert meta["feature_dim"] == sum(map(sum, meta["depths"].values())) > sum(meta["depths"]["last"])
    backbone = get_backbone(meta["backbone"])
    encoder = backbone.build(params.weights, meta["size"], meta["pooling"], params.seed, "half")
    assert weights_sha256(encoder) == meta["weights_sha256"]
    last = manifest[manifest.split == "test"].iloc[-1]
    modality = get_modality(meta["kind"], backbone.reading())
    assert set(meta["versions"]) >= {*modality.libraries}
    with open_examples(params.data, modality) as source:
        batch = modality.batch([modality.load(source.read(last.path), meta["size"])])
    expected = encoder.predict_on_batch(batch)[0]
    assert np.abs(np.load(paths.FEATURES["test"])[-1] - expected).max() <= 1e-4 * np.abs(expected).max()


@each_finished
def test_evaluation_is_consistent(finished):
    test_set = pd.read_parquet(paths.MANIFEST).query("split == 'test'")
    predictions = parse_predictions(paths.PREDICTIONS.read_bytes(), "test.csv")
    found, accuracy = report("evaluate"), metrics("evaluate")["accuracy"]
    assert len(predictions) == found["examples"] == len(test_set)
    assert accuracy == pytest.approx((predictions.label == predictions.predicted).mean(), abs=1e-6)
    assert accuracy > 0.7  # stripes, texts of a few words, and tones are easy
    probabilities = predictions[[f"p_{name}" for name in json.loads(paths.CLASSES.read_text())]]
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert (probabilities.idxmax(axis=1) == "p_" + predictions.predicted).all()
    for which in ("final", "head"):
        figures = found[which]["metrics"]
        more = {"top_2_accuracy"} if len(probabilities.columns) > 2 else set()
        assert set(figures) == {"accuracy", "macro_f1", "log_loss", "calibration_error"} | more
        assert all(row["low"] <= row["value"] <= row["high"] for row in figures.values())
        assert [row["class"] for row in found[which]["classes"]] == json.loads(paths.CLASSES.read_text())
    assert found["whole_images"]["max_difference"] < 0.05
    for name, value in metrics("evaluate").items():
        assert found["final"]["metrics"][name]["value"] == pytest.approx(value, abs=1e-6)
    confusion = pd.read_csv(paths.CONFUSION)
    assert (confusion.actual == confusion.predicted).mean() == pytest.approx(accuracy, abs=1e-6)
    assert pd.read_csv(paths.CLASSES_PLOT).support.sum() == len(confusion) == len(test_set)


@each_finished
def test_the_shipped_model_gives_the_predictions_of_evaluate_alone_and_in_a_batch(finished):
    model, rows = networks.load_classifier(paths.MODEL), pd.read_csv(paths.PREDICTIONS).head(6)
    with open_examples(load_params().data, model.modality) as source:
        arrays = [model.modality.load(source.read(path), model.size) for path in rows.path]
    expected = rows[[f"p_{name}" for name in model.classes]].to_numpy(float)
    for some in ([0], [1], range(len(rows))):
        found = model.predict(model.modality.batch([arrays[row] for row in some]))
        assert found == pytest.approx(expected[list(some)], abs=2e-6)


@each_finished
def test_the_pages_show_examples_and_what_speaks_for_answers(finished):
    make_pages()
    case = CASES[json.loads(paths.READING.read_text())["kind"]]
    data, results = (file.read_text(encoding="utf-8") for file in (paths.DATA_PAGE, paths.RESULTS_PAGE))
    assert data.count(case.shown) >= len(json.loads(paths.CLASSES.read_text()))
    assert case.shown in results
    assert [one.evidence for one in CASES.values() if one.evidence in results] == [case.evidence]
    for page in (data, results):
        assert not re.findall(r"(?:src|href)=[\"'](?!data:|#|data\.html)", page)
        assert "<script" not in page


@pytest.mark.parametrize("finished", ["finished_sounds"], indirect=True)
def test_a_recording_is_one_example_however_long_it_is_and_fine_tuning_starts_from_activations(finished):
    test = pd.read_parquet(paths.MANIFEST).query("split == 'test'")
    assert test.seconds.max() > load_params().extract.size
    assert len(pd.read_csv(paths.PREDICTIONS)) == len(test)
    settings = report("fine_tune")["settings"]
    assert (settings["trunk_cache"], settings["views"], settings["shift"]) == (True, 1, 0.1)
    model = networks.load_classifier(paths.MODEL)
    with open_examples(load_params().data, model.modality) as source:
        odd = model.modality.load(source.read(test.path.iloc[0]), model.size)[:-7]  # no whole number of steps
    expected = model.predict(model.modality.batch([odd]))
    assert np.asarray(model.network(odd[None])) == pytest.approx(expected, abs=2e-6)


# --- train_head


def test_train_head_reads_no_example(here):
    (here / "photos").rename(here / "elsewhere")
    run("train_head")


def test_the_epoch_with_the_lowest_val_loss_is_restored(here):
    run("train_head")
    curves, found = pd.read_csv(paths.curves("train_head")), report("train_head")
    assert found["best_epoch"] == curves.epoch[curves.val_loss.idxmin()]
    assert found["unscaled_val_loss"] == pytest.approx(curves.val_loss.min(), abs=1e-5)
    assert metrics("train_head") == {"head_val_loss": pytest.approx(found["val_loss"], abs=1e-6)}


def test_the_temperature_is_part_of_the_head(here):
    run("train_head")
    val_set, found = load_features("val"), report("train_head")
    logits = heads.logits(networks.load(paths.HEAD)[0], val_set.prefix(1280))
    assert calibration.val_metrics(logits, val_set.targets)["val_loss"] == pytest.approx(found["val_loss"], abs=1e-4)
    assert found["val_loss"] <= found["unscaled_val_loss"]


def test_the_best_trial_of_a_search_is_trained_and_all_are_listed(here, capsys):
    search = {"learning_rate": [1e-6, 0.01], "hidden": [[], [8]], "weight_decay": [None]}
    # Without dropout a linear head would be trained by lbfgs, which has no learning rate.
    set_params(**{"train_head.search": search, "train_head.epochs": 10, "train_head.dropout": 0.2})
    run("train_head")
    trials = pd.read_csv(paths.TRIALS, keep_default_na=False)
    assert len(trials) == 4
    best = trials[trials["rank"] == 1].iloc[0]
    assert (best.learning_rate, best.weight_decay) == (0.01, "null")
    assert f"best of 4 trials: learning_rate 0.01, hidden {best.hidden}, weight_decay null" in capsys.readouterr().out
    assert report("train_head")["val_loss"] == pytest.approx(best.val_loss, abs=1e-4)
    dense = [layer for layer in networks.load(paths.HEAD)[0].layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense[:-1]] == json.loads(best.hidden)
    assert report("train_head")["settings"]["hidden"] == json.loads(best.hidden)


def test_the_head_learns_from_augmented_views(here):
    changes = {"extract.views": 2, "extract.storage": "float16", "train_head.epochs": 30}
    set_params(**changes)
    run("extract")
    # The plain features are useless here, so that all that is learned comes from the views.
    np.save(paths.FEATURES["train"], np.load(paths.FEATURES["train"]) * 0)
    run("train_head")
    assert np.load(paths.TRAIN_VIEWS).shape[1] == 2
    assert report("train_head")["val_accuracy"] > 0.9


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("adam", "training diverged; lower the learning_rate"),
        ("lbfgs", "training diverged; check the features for NaN and for very large values"),
    ],
)
def test_training_that_diverges_is_an_error(here, optimizer, message):
    set_params(**{"train_head.hidden": [], "train_head.optimizer": optimizer})
    features = np.load(paths.FEATURES["train"])
    np.save(paths.FEATURES["train"], np.full_like(features, 3e38))
    with pytest.raises(UserError, match=message):
        run("train_head")


def test_features_of_another_manifest_are_refused(here):
    np.save(paths.FEATURES["val"], np.load(paths.FEATURES["val"])[1:])
    with pytest.raises(UserError, match=r"val\.npy: must have the shape \(\d+, \d+\) for this manifest, got"):
        run("train_head")


# --- all stages


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "weights"), [("vgg16", "file"), ("resnet50", "none")])
def test_the_classic_recipe(here, backbone, weights):
    if weights == "file":
        base = keras.applications.VGG16(include_top=False, weights=None)
        base.save_weights("own.weights.h5")
        weights = "own.weights.h5"
    recipe = {"extract.pooling": "flatten", "train_head.hidden": [128], "train_head.dropout": 0}
    set_params(**{"backbone": backbone, "weights": weights, **recipe})
    run("extract", "train_head", "fine_tune", "evaluate")
    meta = json.loads(paths.FEATURES_META.read_text())
    assert meta["preprocessing"] == "BGR minus ImageNet's mean"
    if weights != "none":
        assert meta["weights_sha256"] == weights_sha256(base)
    head, _ = networks.load(paths.HEAD)
    assert [layer.units for layer in head.layers if isinstance(layer, keras.layers.Dense)] == [128, 3]
    assert 0 <= metrics("evaluate")["accuracy"] <= 1


def test_out_of_memory_messages_name_params_of_the_stage():
    """Or of the stage before, by which examples are as large as they are."""
    known, stages = load_params(ROOT / "params.yaml").leaves(), read_stages(Workspace(ROOT))
    assert set(stage.SMALLER) == set(stages)
    for name, advice in stage.SMALLER.items():
        message = stage.explain(name, MemoryError("cannot allocate"))
        assert message == f"out of memory (cannot allocate); {advice}"
        named = re.findall(r"\w+\.\w+(?= |,|$)", advice.replace("params.yaml", ""))
        assert set(named) <= set(known), name
        assert {key.split(".")[0] for key in named} <= set(stages[name]["params"]), name
        assert named or name in ("prepare", "evaluate")
