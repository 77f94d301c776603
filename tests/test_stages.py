"""The stages one after the other in one process, on a few photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SMALL, write_params
from conftest import run_stages as run

from headstart import paths
from headstart.backbones import keras_applications
from headstart.config import load_params
from headstart.errors import UserError
from headstart.evaluation.compare import params_of, read_workspace
from headstart.modalities.image.pixels import load
from headstart.serving import predict
from headstart.tracking import records
from headstart.training import networks


@pytest.fixture
def here(tmp_path: Path, extracted, monkeypatch) -> Path:
    """Photos with their features."""
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, extracted) -> Path:
    """A folder after all five stages."""
    folder = tmp_path_factory.mktemp("finished") / "here"
    shutil.copytree(extracted, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", "train_head.epochs": 30})
        run("train_head", "fine_tune", "evaluate")
    return folder


def test_files_shapes_and_metrics(finished, monkeypatch):
    monkeypatch.chdir(finished)
    manifest = pd.read_parquet(paths.MANIFEST)
    for split, file in paths.FEATURES.items():
        features = np.load(file)
        assert features.shape == ((manifest.split == split).sum(), 1280)
        assert features.dtype == np.float32

    # Row n of the features is image n of the manifest.
    meta = json.loads(paths.FEATURES_META.read_text())
    trunk = keras_applications.build_trunk("tiny", "pretrained", meta["image_size"], meta["pooling"], 0)
    assert keras_applications.weights_sha256(trunk) == meta["weights_sha256"]
    last = manifest[manifest.split == "test"].iloc[-1]
    pixels = load(finished / "photos" / last.path, meta["image_size"])
    expected = networks.predict(trunk, pixels[None], 16)[0]
    assert np.abs(np.load(paths.FEATURES["test"])[-1] - expected).max() <= 1e-4 * np.abs(expected).max()

    metrics = json.loads(paths.metrics("evaluate").read_text())
    predictions = pd.read_csv(paths.PREDICTIONS)
    assert metrics["accuracy"] == pytest.approx((predictions.label == predictions.predicted).mean(), abs=1e-6)
    found = json.loads(paths.report("evaluate").read_text())
    for which, expected in (("final", metrics), ("head", metrics["head"])):
        judged = found[which]["metrics"]
        assert {name: judged[name]["value"] for name in judged} == pytest.approx(
            {name: expected[name] for name in judged}, abs=1e-6
        )
        assert all(row["low"] <= row["value"] <= row["high"] for row in judged.values())
        assert [row["class"] for row in found[which]["classes"]] == json.loads(paths.CLASSES.read_text())
    assert metrics["accuracy_low"] == found["final"]["metrics"]["accuracy"]["low"]
    gained = (metrics["accuracy"] - metrics["head"]["accuracy"]) * len(predictions)
    assert found["gain"]["mended"] - found["gain"]["broken"] == pytest.approx(gained, abs=1e-3)
    confusion = pd.read_csv(paths.CONFUSION)
    assert (confusion.actual == confusion.predicted).mean() == pytest.approx(metrics["accuracy"], abs=1e-6)
    assert (
        pd.read_csv(paths.CLASSES_PLOT).support.sum() == pd.read_csv(paths.RELIABILITY).images.sum() == len(confusion)
    )
    assert metrics["accuracy"] > 0.9  # plain, upright and level stripes
    assert set(metrics["head"]) == {"accuracy", "macro_f1", "log_loss", "calibration_error", "top_2_accuracy"}
    probabilities = predictions[["p_blue", "p_green", "p_red"]]
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert (probabilities.idxmax(axis=1) == "p_" + predictions.predicted).all()
    assert len(pd.read_csv(paths.CONFUSION)) == metrics["images"] == (manifest.split == "test").sum()


def test_head_training_leaves_the_images_alone(here):
    (here / "photos").rename(here / "elsewhere")
    run("train_head")


def test_the_best_epoch_is_kept(here):
    run("train_head")
    curves = pd.read_csv(paths.curves("train_head"))
    metrics = json.loads(paths.metrics("train_head").read_text())
    assert metrics["best_epoch"] == curves.epoch[curves.val_loss.idxmin()]
    assert metrics["unscaled_val_loss"] == pytest.approx(curves.val_loss.min(), abs=1e-5)


def test_the_winner_of_a_search_is_trained_and_the_trials_are_a_table(here):
    choices = {"train_head.search": {"learning_rate": [1e-6, 0.01], "hidden": [[], [8]]}, "train_head.epochs": 10}
    choices["train_head.dropout"] = 0.2  # without, a linear head has no learning rate
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", **choices})
    run("train_head")
    trials = pd.read_csv(paths.TRIALS)
    assert len(trials) == 4
    best = trials[trials["rank"] == 1].iloc[0]
    assert best.learning_rate == 0.01
    assert json.loads(paths.metrics("train_head").read_text())["val_loss"] == pytest.approx(best.val_loss, abs=1e-4)
    dense = [layer for layer in networks.load(paths.HEAD)[0].layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense[:-1]] == json.loads(best.hidden)
    assert json.loads(paths.report("train_head").read_text())["hidden"] == json.loads(best.hidden)


def test_a_search_may_leave_open_what_params_may(here, capsys):
    choices = {"train_head.search": {"dropout": [None, 0.5], "weight_decay": [None]}, "train_head.epochs": 1}
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", "train_head.hidden": None, **choices})
    run("train_head")
    assert "trials is dropout null, weight_decay null: log loss" in capsys.readouterr().out
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    shutil.copytree(ROOT / "pipeline", "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    head = next(item for item in records.collect(load_params().leaves(), "train_head") if item.stage == "train_head")
    assert [trial["dropout"] for trial in head.trials] == ["null", "0.5"]
    # What compare and review read knows a search as params.yaml has it.
    assert params_of(read_workspace, "workspace") == load_params().leaves()


def test_few_images_get_a_linear_head_and_it_is_told(here, capsys):
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", "train_head.hidden": None})
    run("train_head")
    assert "train_head: a linear head, for " in capsys.readouterr().out
    chosen = {"hidden": [], "dropout": 0.0, "optimizer": "lbfgs", "weight_decay": 0.02}
    asked = load_params().train_head.choice().model_dump()
    assert json.loads(paths.report("train_head").read_text()) == asked | chosen


def test_the_head_learns_from_augmented_views(here):
    changes = {"extract.views": 2, "extract.storage": "float16", "train_head.epochs": 30, "fine_tune.unfreeze": "none"}
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", **changes})
    run("extract")
    views = np.load(paths.TRAIN_VIEWS)
    # The plain features alone are of no use here: what is learned, is learned from views.
    np.save(paths.FEATURES["train"], np.load(paths.FEATURES["train"]) * 0)
    run("train_head")
    assert views.shape[1] == 2
    assert json.loads(paths.metrics("train_head").read_text())["val_accuracy"] > 0.9


def test_without_unfreezing_the_head_is_shipped(here):
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", "fine_tune.unfreeze": "none"})
    run("train_head", "fine_tune", "evaluate")
    metrics = json.loads(paths.metrics("evaluate").read_text())
    assert {name: metrics[name] for name in metrics["head"]} == pytest.approx(metrics["head"], abs=1e-5)
    tuned = json.loads(paths.metrics("fine_tune").read_text())
    assert tuned["fine_tuned"] is False
    assert tuned["val_loss"] == tuned["head_val_loss"]
    assert pd.read_csv(paths.curves("fine_tune")).empty


def test_fine_tuning_that_does_harm_is_not_kept(here):
    changes = {"fine_tune.unfreeze": "all", "fine_tune.learning_rate": 1, "train_head.epochs": 30}
    changes |= {"fine_tune.warm_up": 0}
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", **changes})
    run("train_head", "fine_tune", "evaluate")
    assert json.loads(paths.metrics("fine_tune").read_text())["fine_tuned"] is False
    assert json.loads(paths.metrics("evaluate").read_text())["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("adam", "training diverged; lower the learning_rate"),
        ("lbfgs", "training diverged; features that are no numbers, or too large ones, do that"),
    ],
)
def test_training_that_diverges_is_told(here, optimizer, message):
    choices = {"train_head.hidden": [], "train_head.optimizer": optimizer}
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", **choices})
    features = np.load(paths.FEATURES["train"])
    np.save(paths.FEATURES["train"], np.full_like(features, np.nan))
    with pytest.raises(UserError, match=message):
        run("train_head")


def test_features_of_other_images_are_refused(here):
    np.save(paths.FEATURES["val"], np.load(paths.FEATURES["val"])[1:])
    with pytest.raises(UserError, match=r"val\.npy holds \d+ rows where the manifest has \d+"):
        run("train_head")


def test_weights_that_changed_under_the_features_are_refused(here):
    run("train_head")
    meta = json.loads(paths.FEATURES_META.read_text())
    paths.FEATURES_META.write_text(json.dumps({**meta, "weights_sha256": "0"}))
    with pytest.raises(UserError, match="weights of tiny are not those that the features were made by"):
        run("fine_tune")


@pytest.mark.parametrize(("backbone", "weights"), [("vgg16", "file"), ("resnet50", "none")])
def test_the_classic_recipe(here, backbone, weights):
    if weights == "file":
        base = keras.applications.VGG16(include_top=False, weights=None)
        base.save_weights("own.weights.h5")
        weights = "own.weights.h5"
    recipe = {"extract.pooling": "flatten", "train_head.hidden": [128], "train_head.dropout": 0}
    source = {"data.source": "photos", "backbone": backbone, "weights": weights}
    write_params(Path("params.yaml"), **{**SMALL, **source, **recipe})
    run("prepare", "extract", "train_head", "fine_tune", "evaluate")
    meta = json.loads(paths.FEATURES_META.read_text())
    assert meta["preprocessing"] == "BGR minus ImageNet's mean"
    if weights != "none":
        assert meta["weights_sha256"] == keras_applications.weights_sha256(base)
    head, _ = networks.load(paths.HEAD)
    assert [layer.units for layer in head.layers if isinstance(layer, keras.layers.Dense)] == [128, 3]
    assert 0 <= json.loads(paths.metrics("evaluate").read_text())["accuracy"] <= 1


def test_predict_answers_as_evaluate_does(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert predict.main(["photos/red/000.png", "photos/blue", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in rows] == ["red"] + ["blue"] * 16
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)

    # The same image gets the same probabilities from predict as from evaluate.
    judged = pd.read_csv(paths.PREDICTIONS).iloc[0]
    assert predict.main([f"photos/{judged.path}", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)[0]["probabilities"]
    assert alone == pytest.approx({name: judged[f"p_{name}"] for name in alone}, abs=1e-6)

    cut = tmp_path / "cut.jpg"
    cut.write_bytes(b"\xff\xd8\xff\xe0")
    assert predict.main(["photos/red/000.png", str(cut)]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("red  ")
    assert printed.out.endswith("photos/red/000.png\n")
    assert f"{cut}: damaged: its header" in printed.err
    for wrong, message in [
        (["nowhere.jpg"], "nowhere.jpg does not exist"),
        (["photos/red/000.png", "--model", str(paths.HEAD)], "the model 'head' takes no images; give"),
        (["photos/red/000.png", "--model", "models"], "models is not a model of this pipeline"),
    ]:
        assert predict.main(wrong) == 1
        assert message in capsys.readouterr().err
